"""Parts of tensors from file to file, without the tensors.

A conversion changes where values stand, not the values: a fused tensor holds its sources in another order, a chunk
holds a part. Each is a view of one whole tensor; here views become ranges of bytes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import BinaryIO

import torch
from torch import Tensor

# Bytes of the target in memory at a time: small enough to stay in the cache between reads and a write. With 1 MB it
# takes three times as long; copy_file_range, which leaves bytes in the kernel, is no faster.
_BLOCK = 1 << 17
_buffer = memoryview(bytearray(_BLOCK))
_MOST_PARTS = 1024  # of one preadv: Linux's IOV_MAX

Run = tuple[int, int, int]  # where values lie end to end: place in one tensor or view, place in another, how many


@dataclass(frozen=True)
class Span:
    """Values of `dtype` that lie end to end in a file, from byte `offset`.

    `view`, of a whole tensor on the meta device, says which values of that tensor they are, in the file's order.
    """

    file: BinaryIO
    offset: int
    dtype: torch.dtype
    view: Tensor


def gather(sources: list[Span], target: Span) -> int:
    """Fill `target`, in its dtype, with the values that its view shares with those of the sources, of one dtype.

    What no source has becomes zero. Returns how many bytes the sources gave. Raises ValueError where a source's file
    ends too early.
    """
    dtype, size = sources[0].dtype, target.dtype.itemsize
    step = _BLOCK // max(size, dtype.itemsize)
    shares = [_Share(source, target) for source in sources]
    gathered = 0
    for start in range(0, target.view.numel(), step):
        block = _buffer[: min(step, target.view.numel() - start) * dtype.itemsize]
        parts = [share.until(start + step) for share in shares]
        count = sum(run[2] for runs in parts for run in runs)
        if count * dtype.itemsize < len(block):
            block[:] = bytes(len(block))
        for source, runs in zip(sources, parts, strict=True):
            _read(source, runs, block, start)
        if target.dtype is not dtype:
            block = memoryview(torch.frombuffer(block, dtype=dtype).to(target.dtype).view(torch.uint8).numpy())
        _write(target.file, target.offset + start * size, block)
        gathered += count * size
    return gathered


class _Share:
    """What a source has of a target: runs (place in the target, place in the source, how many), taken in order."""

    def __init__(self, source: Span, target: Span):
        self._runs = _common(_runs(target.view), _runs(source.view))
        self._next = next(self._runs, None)

    def until(self, end: int) -> list[Run]:
        """Those up to the target's place `end`; the rest comes later."""
        taken = []
        while self._next and self._next[0] < end:
            place, own, count = self._next
            length = min(count, end - place)
            taken.append((place, own, length))
            self._next = (place + length, own + length, count - length) if length < count else next(self._runs, None)
        return taken


def _read(source: Span, runs: list[Run], block: memoryview, start: int) -> None:
    """Into the block of a target's values from `start`; one call for runs that lie end to end in the source."""
    size = source.dtype.itemsize
    parts: list[memoryview] = []
    offset = end = -1
    for place, own, count in runs:
        if own != end or len(parts) == _MOST_PARTS:
            _read_parts(source.file, offset, parts)
            parts, offset = [], source.offset + own * size
        parts.append(block[(place - start) * size : (place - start + count) * size])
        end = own + count
    _read_parts(source.file, offset, parts)


def _read_parts(file: BinaryIO, offset: int, parts: list[memoryview]) -> None:
    missing = sum(map(len, parts)) - (os.preadv(file.fileno(), parts, offset) if parts else 0)
    if missing:
        raise ValueError(f"{file.name} became shorter while it was read: take another copy of it")


def _write(file: BinaryIO, offset: int, block: memoryview) -> None:
    while block:
        count = os.pwrite(file.fileno(), block, offset)
        block, offset = block[count:], offset + count


def _runs(view: Tensor) -> Iterator[Run]:
    """Of a view: (place in the whole tensor, place in the view, how many).

    In order of both places: a view here leaves out or interleaves, but never turns round.
    """
    shape, strides = list(view.shape), list(view.stride())
    length = 1
    while shape and (shape[-1] == 1 or strides[-1] == length):
        length *= shape.pop()
        strides.pop()
    for number, index in enumerate(product(*map(range, shape))):
        start = view.storage_offset() + sum(i * stride for i, stride in zip(index, strides, strict=True))
        yield start, number * length, length


def _common(one: Iterator[Run], other: Iterator[Run]) -> Iterator[Run]:
    """What two views share: (place in the first, place in the other, how many)."""
    run, peer = next(one, None), next(other, None)
    while run and peer:
        start, end = max(run[0], peer[0]), min(run[0] + run[2], peer[0] + peer[2])
        if start < end:
            yield start - run[0] + run[1], start - peer[0] + peer[1], end - start
        if run[0] + run[2] == end:
            run = next(one, None)
        else:
            peer = next(other, None)
