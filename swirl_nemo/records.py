"""JSON and JSON lines on disk: written whole or not at all, read up to a line that was cut."""

import json
import math
import os
from itertools import zip_longest
from pathlib import Path

_MEASURED = ("seconds/", "tokens_per_s/", "memory/")  # of the machine at that moment: no two runs agree on them


def read_lines(path: Path) -> list[dict]:
    """Objects of a JSON-lines file. A last line that was cut while being written is left out.

    Raises ValueError naming file and line for a bad line elsewhere.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise ValueError(f"{path}:{number}: not a line of JSON ({error}): remove it") from None
    return records


def first_difference(one: Path, other: Path) -> str | None:
    """Where two metrics.jsonl first differ in any bit of anything but clocks and memory, in one line; else None."""
    pairs = zip_longest(read_lines(one), read_lines(other), fillvalue={})
    for number, (left, right) in enumerate(pairs, start=1):
        if not left or not right:
            return f"{other if left else one} ends before line {number}"
        for name in left | right:
            values = [json.dumps(line[name]) if name in line else "nothing" for line in (left, right)]
            if values[0] != values[1] and not name.startswith(_MEASURED):
                where = " ".join(str(left[key]) for key in ("phase", "role", "split", "model", "step") if key in left)
                return f"line {number} ({where}): {name} is {values[0]} and {values[1]}"
    return None


def finite(value):
    """`value` with None for every nan and infinity in it, through dicts and lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_line(record: dict) -> bytes:
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def append(path: Path, record: dict) -> None:
    """One more line; makes the folder. A last line that was cut while being written is removed, or it would join it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        file.write(json_line(record))


def write_json(path: Path, values: dict) -> None:
    write(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
