"""Safetensors files a tensor at a time.

The safetensors library maps whole files, and saves only what is all in memory: either way a process grows as large as
the model. The format is a length, a JSON header and raw bytes, so here a tensor is a place in a file.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .spans import Span

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file; `dtype` is safetensors' name for it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Tensors:
    """The tensors of a Hugging Face folder, by name; no data is read before it is asked for.

    Raises ValueError where there are none, or where a file is missing or broken.
    """

    def __init__(self, folder: Path):
        self.entries: dict[str, Entry] = {}
        self._files: dict[Path, BinaryIO] = {}
        for path in _paths(folder):
            if not path.is_file():
                raise ValueError(f"{path} is missing: {INDEX} names it; download it again")
            for name, entry in _header(path).items():
                if name in self.entries:
                    raise ValueError(
                        f"{path} and {self.entries[name].path} both hold tensor {name}: remove one of them"
                    )
                self.entries[name] = entry

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()

    def span(self, name: str, view: Tensor) -> Span:
        """Where the values of `view`, those of tensor `name`, lie."""
        entry = self.entries[name]
        if entry.path not in self._files:
            self._files[entry.path] = entry.path.open("rb", buffering=0)
        return Span(self._files[entry.path], entry.offset, DTYPES[entry.dtype], view)


def _paths(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        files = index.get("weight_map")
        names = set(files.values()) if isinstance(files, dict) else set()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{folder / INDEX}: weight_map must name files of this folder: download it again")
        return [folder / name for name in sorted(names)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
    found = f", only {pickles[0]}, whose pickle may run code when it is loaded" if pickles else ""
    raise ValueError(
        f"{folder} has neither {SINGLE} nor {INDEX}{found}: "
        "save the model with save_pretrained(safe_serialization=True)"
    )


def _header(path: Path) -> dict[str, Entry]:
    """The entries of a file, checked against its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(start - 8) if start <= min(size, _LONGEST_HEADER) else b""
    try:
        entries = {
            name: Entry(path, item["dtype"], tuple(item["shape"]), start + begin, end - begin)
            for name, item in json.loads(header).items()
            if name != "__metadata__"
            for begin, end in [item["data_offsets"]]
        }
        end = start
        for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.size)):
            if entry.offset != end or any(length < 0 for length in entry.shape):
                raise ValueError("its tensors do not lie end to end")
            end += entry.size
            if entry.dtype in DTYPES and entry.size != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
                raise ValueError("a tensor's size is not that of its shape")
        if end != size:
            raise ValueError(f"it has {size} bytes, its header says {end}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): download it again") from error
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): mend it, or download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object: mend it, or download it again")
    return value


class ShardWriter:
    """Files of at most `limit` bytes, a larger tensor alone in one, with an index where there is more than one.

    `plan` maps every name to dtype and shape, in the order of the files; `span` may then come in any order.
    """

    def __init__(self, folder: Path, plan: dict[str, tuple[torch.dtype, tuple[int, ...]]], limit: int):
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in plan.items()}
        shards: list[list[str]] = [[]]
        filled = 0
        for name, size in sizes.items():
            if shards[-1] and filled + size > limit:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._plan = plan
        self._files: list[BinaryIO] = []
        weight_map = {}
        for number, names in enumerate(shards, 1):
            path = folder / (SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors")
            self._open(path, names, sizes)
            weight_map |= dict.fromkeys(names, path.name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files:
            file.close()

    def span(self, name: str, view: Tensor) -> Span:
        """Room for the values of `view` as tensor `name`, in the planned dtype. Once for each name."""
        (dtype, shape), (file, offset) = self._plan[name], self._places.pop(name)
        assert view.numel() == math.prod(shape), (name, view.shape, shape)
        return Span(file, offset, dtype, view)

    def finish(self) -> None:
        assert not self._places, f"{sorted(self._places)} were not written"

    def _open(self, path: Path, names: list[str], sizes: dict[str, int]) -> None:
        """Write the header. Wide types come first, so that each tensor is aligned to its own."""
        ordered = sorted(names, key=lambda name: -self._plan[name][0].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in ordered:
            dtype, shape = self._plan[name]
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + sizes[name]]}
            end += sizes[name]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = path.open("wb", buffering=0)
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            self._places[name] = (file, 8 + len(text) + header[name]["data_offsets"][0])
