"""Prefixes and rows packed one behind the other, without padding, and which of their tokens see which.

P prefixes of up to L tokens, B rows of up to S of their own that are run, N tokens in all. Linear layers, norms and
activations see N tokens; attention alone sees them as a grid of P*L and B*S places.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Sequences


@dataclass(frozen=True)
class Packing:
    """tokens, positions [N]; slots [P*L + B*S]: the token that stands at a place of the grid, any token where it is
    padding; places [N]: its inverse. Both are None where there is no padding: then the grid is the tokens.

    prefix_of [B]; visible bool [B, 1, S, L + S]: which of its prefix's and its own tokens a row's token sees.
    shards: context-parallel ranks that the tokens are divided among, N/shards each, one behind the other.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor | None
    places: Tensor | None
    prefix_shape: tuple[int, int]
    own_shape: tuple[int, int]
    prefix_of: Tensor
    visible: Tensor
    shards: int

    @property
    def longest(self) -> int:
        """An upper bound of every position."""
        return self.prefix_shape[1] + self.own_shape[1]

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
    seen = torch.ones(len(own_columns), len(own_columns), dtype=torch.bool, device=device).tril()
    shape = (len(own), len(own_columns))
    visible = torch.cat([(columns < begins)[:, None].expand(*shape, -1), seen.expand(len(own), -1, -1)], 2)
    packing = Packing(
        tokens=torch.cat([prefixes.flatten(), own.flatten()])[places],
        positions=positions[places],
        slots=None if full else slots,
        places=None if full else places,
        prefix_shape=tuple(prefixes.shape),
        own_shape=tuple(own.shape),
        prefix_of=prefix_of,
        visible=visible[:, None],
        shards=shards,
    )
    return packing, slots
