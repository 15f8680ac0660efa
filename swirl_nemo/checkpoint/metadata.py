"""What a Megatron distributed checkpoint says of itself, read without Megatron and without running what is in it.

`.metadata` is a pickle, and torch would run any function that it names: here an unpickler reads it that knows the
records of torch.distributed.checkpoint and nothing else.
"""

import io
import json
import pickle
from enum import Enum, EnumMeta
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

METADATA, COMMON, CONFIG = ".metadata", "common.pt", "metadata.json"
FORMAT = {"sharded_backend": "torch_dist", "common_backend": "torch"}
MEND = "import or train that model again"
REFUSED = f"loading it could run code, so it is refused: {MEND}"

_DCP = "torch.distributed.checkpoint"
_RECORDS = {
    f"{_DCP}.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    f"{_DCP}.planner": ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    f"{_DCP}.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "collections": ("OrderedDict",),
}


def read_metadata(folder: Path) -> Metadata:
    """`.metadata` of a checkpoint in Megatron's format `torch_dist`, whose files are there and as long as it says.

    Raises ValueError, naming the file, for another format, a name that could run code, a path out of the folder, and a
    missing, damaged or cut file.
    """
    _check_format(folder / CONFIG)
    metadata = _unpickled(folder / METADATA)
    for place in metadata.storage_data.values():
        name = str(place.relative_path)
        if PurePosixPath(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{folder / METADATA}: names {name!r}, outside its folder: {REFUSED}")
        path = folder / name
        if not path.is_file() or path.stat().st_size < place.offset + place.length:
            raise ValueError(f"{path}: missing or cut short: {MEND}")
    return metadata


def _check_format(path: Path) -> None:
    try:
        config = json.loads(path.read_text())
        known = {name: config.get(name) for name in FORMAT}
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{path}: missing or not JSON: no distributed checkpoint of Megatron Core") from None
    if known != FORMAT:
        raise ValueError(f"{path}: format {known}: only {FORMAT} is read, since it can be read without running code")


def _unpickled(path: Path) -> Metadata:
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        metadata.storage_data.values()
    except _Refused as error:
        raise ValueError(f"{path}: names {error}, which no checkpoint needs: {REFUSED}") from None
    except Exception as error:  # a pickle of other bytes fails in any way
        raise ValueError(f"{path}: missing or damaged ({type(error).__name__}): {MEND}") from None
    return metadata


class _Refused(pickle.UnpicklingError):
    pass


class _SavePlan:
    """In place of Megatron's plans, which it keeps for its own next save."""


def _member(kind: Any, name: str) -> Enum:
    """What `getattr` may be in a pickle: Python 3.11.0 to 3.11.3 write an enumeration's members as attributes of it."""
    if not (isinstance(kind, EnumMeta) and name in kind.__members__):
        raise _Refused("builtins.getattr")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module.startswith("megatron.core.dist_checkpointing.") and name == "MCoreSavePlan":
            return _SavePlan
        if name not in _RECORDS.get(module, ()):
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)
