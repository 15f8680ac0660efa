"""Micro-batches: sequences, what is scored in them, and their part of the loss. b sequences, C completion columns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batch import Sequences
from ..rollout.sampling import Distribution
from .logprobs import Scored

Loss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class MicroBatch:
    """`loss` maps log-probs and entropies [b, C], zero where there is no token, to this micro-batch's part of the loss
    of the whole mini-batch and to sums of metrics; None where only log-probs are wanted.
    """

    sequences: Sequences
    distribution: Distribution
    support: Tensor | None = None  # packed bits [b, C, V/8]
    loss: Loss | None = None

    def scored(self, predictors: Tensor) -> Scored:
        """Only true completion tokens: N of them. `predictors` as packing.pack gives them."""
        mask = self.sequences.completion_mask
        return Scored(
            distribution=self.distribution,
            positions=predictors[mask],
            targets=self.sequences.targets[mask],
            steps=mask.nonzero()[:, 1],
            support=None if self.support is None else self.support[mask],
        )

    def spread(self, values: Tensor) -> Tensor:
        """[..., N] values of scored tokens as [..., b, C], zero elsewhere."""
        mask = self.sequences.completion_mask
        flat = values.new_zeros(*values.shape[:-1], mask.numel())
        return flat.index_copy(-1, mask.flatten().nonzero()[:, 0], values).unflatten(-1, mask.shape)


def plain(sequences: Sequences, distribution: Distribution, size: int, support: Tensor | None = None):
    """Micro-batches of `size` sequences to score, the last one smaller where they do not divide."""
    for start in range(0, len(sequences), size):
        rows = slice(start, start + size)
        part = sequences.select(rows)
        yield MicroBatch(part, distribution, None if support is None else support[rows, : part.width])


def pad_columns(values: list[Tensor]) -> Tensor:
    """Concatenate [b, C] blocks of different C into [B, max C], padded with zeros."""
    width = max(value.shape[-1] for value in values)
    return torch.cat([torch.nn.functional.pad(value, (0, width - value.shape[-1])) for value in values], -2)
