"""Megatron's distributed checkpoints a tensor at a time: without a model, a process group, or Megatron itself.

The format `torch_dist` of Megatron Core 0.11 is torch.distributed.checkpoint's: `.metadata`, a pickle, says which bytes
of which `.distcp` file hold which chunk of which tensor; each chunk is a torch.save of its own.
"""

import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import skip_data

from .mapping import LAYERS
from .metadata import COMMON, CONFIG, FORMAT, METADATA, read_metadata
from .spans import Span

PREFIX = "model."  # MegatronGPTModel keeps its GPTModel under this name
_FILE_SIZE = 5 << 30  # a new file after that many bytes
_MEND = "take another checkpoint"


class DistributedWriter:
    """Writes a checkpoint into the new folder `folder`; `finish` makes it one.

    Each tensor (each layer of a layered one) lies there whole: a model of any tensor and pipeline parallel size reads
    its slices. The archives' checksums are left out, as torch.serialization.set_crc32_options(False) does: torch's
    reader never looks at them.
    """

    def __init__(self, folder: Path, num_layers: int):
        folder.mkdir()
        self._folder, self._num_layers = folder, num_layers
        self._tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._storage: dict[MetadataIndex, _StorageInfo] = {}
        self._files = 0
        self._file = self._next_file()

    def __enter__(self) -> "DistributedWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def span(self, target: str, layer: int, whole: Tensor) -> Span:
        """Room for a tensor like `whole`, on the meta device; for layer `layer` of a target under `decoder.layers.`"""
        key = PREFIX + target
        layered = target.startswith(LAYERS)
        shape = torch.Size((1, *whole.shape) if layered else whole.shape)
        size = torch.Size((self._num_layers, *whole.shape) if layered else whole.shape)
        offsets = torch.Size((layer, *[0] * whole.dim()) if layered else [0] * whole.dim())
        known = self._tensors.setdefault(key, TensorStorageMetadata(TensorProperties(dtype=whole.dtype), size, []))
        assert known.size == size and known.properties.dtype is whole.dtype, key
        index = MetadataIndex(key, offsets, len(known.chunks))
        known.chunks.append(ChunkStorageMetadata(offsets, shape))
        with skip_data():  # a hole in the file
            start, length = self._save(index, torch.empty(shape, dtype=whole.dtype))
        return Span(self._file, start + _data_offset(self._file, start, length, shape, whole.dtype), whole.dtype, whole)

    def write_empty_state(self, module: str) -> None:
        """The `_extra_state` that Megatron refuses a checkpoint without, though only FP8 fills it."""
        copies = self._num_layers if module.startswith(LAYERS) else 1
        for layer in range(copies):
            key = f"{PREFIX}{module}._extra_state/shard_{layer}_{copies}"
            self._tensors[key] = BytesStorageMetadata()
            self._save(MetadataIndex(key), [None])

    def finish(self) -> None:
        metadata = Metadata(self._tensors, storage_data=self._storage)
        metadata.mcore_data = {
            key: {} for key, kind in self._tensors.items() if isinstance(kind, TensorStorageMetadata)
        }
        torch.save({}, self._folder / COMMON)
        versions = {name.replace("backend", "backend_version"): 1 for name in FORMAT}
        (self._folder / CONFIG).write_text(json.dumps(FORMAT | versions))
        with (self._folder / METADATA).open("wb") as file:
            pickle.dump(metadata, file)

    def _save(self, index: MetadataIndex, data: Any) -> tuple[int, int]:
        """Where it begins in the file, and its length."""
        start = self._file.seek(0, io.SEEK_END)
        if start > _FILE_SIZE:
            self._file.close()
            self._file, start = self._next_file(), 0
        torch.save(data, self._file)
        length = self._file.tell() - start
        self._storage[index] = _StorageInfo(Path(self._file.name).name, start, length)
        return start, length

    def _next_file(self) -> BinaryIO:
        self._files += 1
        return (self._folder / f"__0_{self._files - 1}.distcp").open("w+b", buffering=0)


class DistributedTensors:
    """The tensors of a checkpoint, however it was sharded; no data is read before it is asked for.

    Raises ValueError for a folder that is not one, or that is not whole.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        metadata = read_metadata(folder)
        self._tensors = {
            key.removeprefix(PREFIX): kind
            for key, kind in metadata.state_dict_metadata.items()
            if isinstance(kind, TensorStorageMetadata)
        }
        self._storage = metadata.storage_data
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "DistributedTensors":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()

    def targets(self) -> set[str]:
        return set(self._tensors)

    def dtype(self, target: str) -> torch.dtype:
        return self._tensors[target].properties.dtype

    def shape(self, target: str) -> tuple[int, ...]:
        """Of all layers together where it is layered."""
        return tuple(self._tensors[target].size)

    def spans(self, target: str, layer: int, whole: Tensor) -> list[Span]:
        """Where the values of `whole`, on the meta device, lie; of layer `layer` if the target is under
        `decoder.layers.`"""
        kind, layered = self._tensors[target], target.startswith(LAYERS)
        chunks = [chunk for chunk in kind.chunks if not layered or chunk.offsets[0] == layer]
        held = sum(math.prod(chunk.sizes) for chunk in chunks)
        if held != whole.numel() or any(layered and chunk.sizes[0] != 1 for chunk in chunks):
            raise ValueError(f"{self._folder}: {target} has {held} of {whole.numel()} values: {_MEND}")
        return [self._span(target, chunk, whole, layered) for chunk in chunks]

    def _span(self, target: str, chunk: ChunkStorageMetadata, whole: Tensor, layered: bool) -> Span:
        place = self._storage[MetadataIndex(PREFIX + target, chunk.offsets)]
        path = self._folder / place.relative_path
        if place.relative_path not in self._files:
            self._files[place.relative_path] = path.open("rb", buffering=0)
        file = self._files[place.relative_path]
        try:
            start = place.offset + _data_offset(file, place.offset, place.length, chunk.sizes, whole.dtype)
        except Exception as error:  # whatever unpacking broken bytes may raise
            raise ValueError(f"{path}: {target} cannot be read ({error}): {_MEND}") from error
        ranges = list(zip(chunk.offsets, chunk.sizes, strict=True))[layered:]
        view = whole[tuple(slice(first, first + length) for first, length in ranges)]
        return Span(file, start, whole.dtype, view)


def _data_offset(file: BinaryIO, start: int, length: int, shape: torch.Size, dtype: torch.dtype) -> int:
    """Where, in the `length` bytes from `start` that torch.save wrote of a tensor, its values begin.

    Raises where it is another tensor, not one in memory's order, or cut.
    """
    saved = _Slice(file, start, length)
    archive = zipfile.ZipFile(saved)
    (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    storage, offset, size, stride = _TensorRecord(io.BytesIO(archive.read(name))).load()
    kind, number, count = storage[1], storage[2], storage[4]
    expected = torch.empty(shape, dtype=dtype, device="meta")
    steps = [step for step, length in zip(stride, size, strict=True) if length > 1]
    in_order = steps == [step for step, length in zip(expected.stride(), shape, strict=True) if length > 1]
    if (kind, offset, size, count) != (dtype, 0, shape, expected.numel()) or not in_order:
        raise ValueError(f"it is not what {METADATA} says")
    entry = archive.getinfo(f"{name.removesuffix('.pkl')}/{number}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != expected.nbytes:
        raise ValueError("its values have another size")
    saved.seek(entry.header_offset + 26)  # of a local file header's 30 bytes, the lengths of what follows them
    data = entry.header_offset + 30 + sum(struct.unpack("<HH", saved.read(4)))
    if data + expected.nbytes > length:
        raise ValueError("it is cut")
    return data


class _TensorRecord(pickle.Unpickler):
    """What torch.save says of a tensor: (its storage's record, offset, size, stride). Builds nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor's")

    def persistent_load(self, pid: Any) -> Any:
        return pid


_STORAGES = {"FloatStorage": torch.float32, "BFloat16Storage": torch.bfloat16, "HalfStorage": torch.float16}


class _Slice(io.RawIOBase):
    """`length` bytes of a file from `start`, as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count
