"""Prefixes and rows packed one behind the other, without padding, and which of their tokens see which.

P prefixes of up to L tokens, B rows of up to S of their own that are run, N tokens in all. Linear layers, norms and
activations see N tokens; attention alone sees them as a grid of P*L and B*S places.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Sequences


@dataclass(frozen=True)
class Runs:
    """The packed tokens once more, as kernels for sequences of different lengths take them: prefixes, then what rows
    have of their own, then padding. Where each begins, and where the last one ends: prefix_starts [P+1], own_starts
    [B+1] int32, counted from the first of its kind.

    seen: the tokens that rows see, for each its prefix's, then its own; seen_starts [B+1] int32.
    """

    prefix_starts: Tensor
    own_starts: Tensor
    seen: Tensor
    seen_starts: Tensor
    num_prefix: int  # tokens of all prefixes
    num_own: int


@dataclass(frozen=True)
class Packing:
    """tokens, positions [N]; slots [P*L + B*S]: the token that stands at a place of the grid, any token where it is
    padding; places [N]: its inverse. Both are None where there is no padding: then the grid is the tokens.

    prefix_lengths [P]; own_lengths, prefix_of [B].
    shards: context-parallel ranks that the tokens are divided among, N/shards each, one behind the other.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor | None
    places: Tensor | None
    prefix_shape: tuple[int, int]
    own_shape: tuple[int, int]
    prefix_lengths: Tensor
    own_lengths: Tensor
    prefix_of: Tensor
    shards: int

    @property
    def longest(self) -> int:
        """An upper bound of every position."""
        return self.prefix_shape[1] + self.own_shape[1]

    @cached_property
    def visible(self) -> Tensor:
        """bool [B, 1, S, L + S]: which of its prefix's and its own tokens a row's token sees."""
        (_, columns), (rows, own_columns) = self.prefix_shape, self.own_shape
        device = self.tokens.device
        prefix = torch.arange(columns, device=device) < self.prefix_lengths[self.prefix_of][:, None]
        own = torch.ones(own_columns, own_columns, dtype=torch.bool, device=device).tril()
        parts = prefix[:, None].expand(rows, own_columns, -1), own.expand(rows, -1, -1)
        return torch.cat(parts, 2)[:, None]

    @cached_property
    def runs(self) -> Runs:
        begins = self.prefix_lengths[self.prefix_of]
        prefix_starts, own_starts, seen_starts = map(
            _starts, (self.prefix_lengths, self.own_lengths, begins + self.own_lengths)
        )
        row = torch.arange(len(begins), device=begins.device).repeat_interleave(begins + self.own_lengths)
        place = torch.arange(len(row), device=row.device) - seen_starts[row]
        own = prefix_starts[-1] + own_starts[row] + place - begins[row]
        seen = torch.where(place < begins[row], prefix_starts[self.prefix_of[row]] + place, own)
        ends = int(prefix_starts[-1]), int(own_starts[-1])
        return Runs(prefix_starts, own_starts, seen, seen_starts, *ends)

    def grid(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N, ...] as [P, L, ...] and [B, S, ...]. Padding repeats a token: no real one sees it."""
        values = values if self.slots is None else values.index_select(0, self.slots)
        split = self.prefix_shape[0] * self.prefix_shape[1]
        return values[:split].unflatten(0, self.prefix_shape), values[split:].unflatten(0, self.own_shape)

    def pack(self, prefixes: Tensor, own: Tensor) -> Tensor:
        """The inverse of `grid`."""
        values = torch.cat([prefixes.flatten(0, 1), own.flatten(0, 1)])
        return values if self.places is None else values.index_select(0, self.places)


def pack_prefixes(prefixes: Tensor, lengths: Tensor, multiple: int) -> Packing:
    """Prompts [P, L] alone: what generation begins with; N is padded to a `multiple`."""
    none = lengths.new_empty(0)
    return _pack(prefixes, lengths, none, prefixes.new_empty(0, 0), none, multiple, shards=1)[0]


def pack(sequences: Sequences, multiple: int, shards: int = 1) -> tuple[Packing, Tensor]:
    """The packing, and which of its tokens predicts each completion token [B, C], any where there is none.

    N / `shards` is padded to a `multiple`, for sequence parallelism and FP8. A row's last token predicts nothing: it is
    left out.
    """
    packing, slots = _pack(
        sequences.prefixes,
        sequences.prefix_lengths,
        sequences.prefix_of,
        sequences.own[:, :-1],
        (sequences.own_lengths - 1).clamp(min=0),
        multiple,
        shards,
    )
    (_, columns), (_, width) = packing.prefix_shape, packing.own_shape
    before = sequences.completion_columns - 1
    rows = torch.arange(len(sequences), device=before.device)[:, None]
    last = sequences.prefix_of * columns + sequences.prefix_lengths[sequences.prefix_of] - 1
    own = packing.prefix_shape[0] * columns + rows * width + before
    return packing, slots[torch.where(before < 0, last[:, None], own).clamp(0, len(slots) - 1)]


def _pack(prefixes, prefix_lengths, prefix_of, own, own_lengths, multiple, shards) -> tuple[Packing, Tensor]:
    """The packing, and the token at each place of the grid."""
    device = prefixes.device
    columns = torch.arange(prefixes.shape[1], device=device)
    own_columns = torch.arange(own.shape[1], device=device)
    begins = prefix_lengths[prefix_of][:, None]
    real = torch.cat([(columns < prefix_lengths[:, None]).flatten(), (own_columns < own_lengths[:, None]).flatten()])
    positions = torch.cat([columns.expand(prefixes.shape).flatten(), (begins + own_columns).flatten()])
    slots = (real.cumsum(0) - 1).clamp(min=0)
    places = real.nonzero()[:, 0]
    missing = -len(places) % (multiple * shards)
    full = len(places) == len(real) and not missing
    places = F.pad(places, (0, missing))
    packing = Packing(
        tokens=torch.cat([prefixes.flatten(), own.flatten()])[places],
        positions=positions[places],
        slots=None if full else slots,
        places=None if full else places,
        prefix_shape=tuple(prefixes.shape),
        own_shape=tuple(own.shape),
        prefix_lengths=prefix_lengths,
        own_lengths=own_lengths,
        prefix_of=prefix_of,
        shards=shards,
    )
    return packing, slots


def _starts(lengths: Tensor) -> Tensor:
    """int32 [n + 1] of lengths [n]: where each begins, and where the last one ends."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()
