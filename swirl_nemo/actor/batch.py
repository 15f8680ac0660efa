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

    def scored(self) -> Scored:
        """Only true completion positions: N is the number of completion tokens."""
        mask = self.sequences.completion_mask
        rows, steps = mask.nonzero(as_tuple=True)
        return Scored(
            distribution=self.distribution,
            rows=rows,
            columns=self.sequences.completion_positions[rows, steps],
            targets=self.sequences.targets[rows, steps],
            steps=steps,
            support=None if self.support is None else self.support[rows, steps],
        )

    def spread(self, scored: Scored, values: Tensor) -> Tensor:
        """[..., N] values of scored positions as [..., b, C], zero elsewhere."""
        shape = self.sequences.completion_mask.shape
        flat = values.new_zeros(*values.shape[:-1], shape.numel())
        return flat.index_copy(-1, scored.rows * shape[1] + scored.steps, values).unflatten(-1, shape)


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
