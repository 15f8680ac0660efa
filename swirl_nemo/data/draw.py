"""Draws that are fixed by their key alone."""

import hashlib
import json


def uniform(*key: str | int) -> float:
    """A number in [0, 1) that depends on `key` only: the same on every rank, machine and Python process.

    Python's own `hash` is salted per process, so ranks would disagree about templates and splits.
    """
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
