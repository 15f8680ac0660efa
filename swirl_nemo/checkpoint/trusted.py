"""Reading a Megatron distributed checkpoint without running what is in it.

Megatron reads common.pt and objects within .distcp files with torch.load(weights_only=False), and torch reads .metadata
with pickle: each would run any function that a file names. Here .metadata is first read by an unpickler that knows the
format's own classes and no other, and torch is told to load weights only, whoever calls it.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

METADATA, COMMON, CONFIG = ".metadata", "common.pt", "metadata.json"
FORMAT = {"sharded_backend": "torch_dist", "common_backend": "torch"}
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load reads it at each call
_DCP = "torch.distributed.checkpoint"
ALLOWED = {
    f"{_DCP}.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    f"{_DCP}.planner": ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    f"{_DCP}.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "megatron.core.dist_checkpointing.strategies.torch": ("MCoreSavePlan",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "collections": ("OrderedDict",),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def load(sharded: dict, folder: Path) -> dict:
    """`dist_checkpointing.load`, after `check`. Collective. Raises ValueError where the folder would run code."""
    check(folder)
    try:
        with _weights_only():
            return dist_checkpointing.load(sharded, str(folder))
    except (pickle.UnpicklingError, CheckpointException) as error:
        if "Weights only load failed" not in str(error) + repr(getattr(error, "failures", "")):
            raise
        raise ValueError(f"{folder}: an object in its .distcp files is no plain data: {_REFUSED}") from None


_REFUSED = "loading it could run code, so it is refused: import or train that model again"


def check(folder: Path) -> None:
    """Raises ValueError, naming the file, for a checkpoint in another format, one that names code, or a torn one.

    Reads the small files only; of the .distcp files, that they are as long as .metadata says.
    """
    _check_format(folder / CONFIG)
    metadata = _read_metadata(folder / METADATA)
    for info in metadata.storage_data.values():
        name = str(info.relative_path)
        if PurePosixPath(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{folder / METADATA}: names {name!r}, outside its folder: {_REFUSED}")
        path = folder / name
        if not path.is_file() or path.stat().st_size < info.offset + info.length:
            raise ValueError(f"{path}: missing or cut short: import or train that model again")
    _check_common(folder / COMMON)


def _check_format(path: Path) -> None:
    try:
        config = json.loads(path.read_text())
        known = {name: config.get(name) for name in FORMAT}
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{path}: missing or not JSON: no distributed checkpoint of Megatron Core") from None
    if known != FORMAT:
        raise ValueError(f"{path}: format {known}: only {FORMAT} is read, since it can be read without running code")


def _read_metadata(path: Path):
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_data.values()
        return metadata
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: names {error}, which no checkpoint needs: {_REFUSED}") from None
    except Exception as error:  # a pickle of other bytes fails in any way
        what = type(error).__name__
        raise ValueError(f"{path}: missing or damaged ({what}): import or train that model again") from None


def _check_common(path: Path) -> None:
    """Also its archive's members: torch reads them by name and unpacks none, but no honest file has such names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise ValueError(f"{path}: its member {name!r} leads out of its folder: {_REFUSED}")
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = next((line for line in str(error).splitlines() if "GLOBAL" in line), "an object that is no plain data")
        raise ValueError(f"{path}: {' '.join(what.split())[:200]}: {_REFUSED}") from None
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        what = type(error).__name__
        raise ValueError(f"{path}: missing or damaged ({what}): import or train that model again") from None


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
