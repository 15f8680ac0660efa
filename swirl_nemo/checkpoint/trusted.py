"""Reading a Megatron distributed checkpoint without running what is in it.

Megatron reads common.pt and objects within .distcp files with torch.load(weights_only=False), and torch reads .metadata
with pickle: each would run any function that a file names. Here both are looked at first, and torch is told to load
weights only, whoever calls it.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from .metadata import COMMON, MEND, REFUSED, read_metadata

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load reads it at each call


def load(sharded: dict, folder: Path) -> dict:
    """`dist_checkpointing.load`, after `check`. Collective. Raises ValueError where the folder would run code."""
    check(folder)
    try:
        with _weights_only():
            return dist_checkpointing.load(sharded, str(folder))
    except (pickle.UnpicklingError, CheckpointException) as error:
        if "Weights only load failed" not in str(error) + repr(getattr(error, "failures", "")):
            raise
        raise ValueError(f"{folder}: an object in its .distcp files is no plain data: {REFUSED}") from None


def check(folder: Path) -> None:
    """Raises ValueError, naming the file, for a checkpoint in another format, one that names code, or a torn one.

    Reads the small files only; of the .distcp files, that they are as long as .metadata says.
    """
    read_metadata(folder)
    _check_common(folder / COMMON)


def _check_common(path: Path) -> None:
    """Also its archive's members: torch reads them by name and unpacks none, but no honest file has such names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise ValueError(f"{path}: its member {name!r} leads out of its folder: {REFUSED}")
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = next((line for line in str(error).splitlines() if "GLOBAL" in line), "an object that is no plain data")
        raise ValueError(f"{path}: {' '.join(what.split())[:200]}: {REFUSED}") from None
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        what = type(error).__name__
        raise ValueError(f"{path}: missing or damaged ({what}): {MEND}") from None


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before
