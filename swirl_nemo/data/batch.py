"""Prompts with their completions, rows of a group sharing what their prompts begin with.

P prefixes, B sequences, C completion columns.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from os.path import commonprefix

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Sequences:
    """Row b is the prefix `prefix_of[b]` and then tokens of its own, of which the last are its completion.

    A prefix is run through the model once for all of its rows (actor.packing); padding, on the right, never is.
    Completion tensors are [B, C]: column j of a row is its j-th completion token, wherever its prompt ends.
    """

    prefixes: Tensor  # long [P, L]
    prefix_lengths: Tensor  # long [P]
    prefix_of: Tensor  # long [B]
    own: Tensor  # long [B, S]
    own_lengths: Tensor  # long [B]
    completion_lengths: Tensor  # long [B]
    width: int  # C, the longest completion

    def __len__(self) -> int:
        return len(self.own)

    @property
    def lengths(self) -> Tensor:
        """Long [B], prompt and completion."""
        return self.prefix_lengths[self.prefix_of] + self.own_lengths

    @property
    def completion_mask(self) -> Tensor:
        """Bool [B, C]: true where the row has a completion token."""
        return self._columns < self.completion_lengths[:, None]

    @property
    def completion_columns(self) -> Tensor:
        """Long [B, C]: where each completion token stands in `own`; any valid column where masked."""
        start = self.own_lengths - self.completion_lengths
        return (start[:, None] + self._columns).clamp(max=max(self.own.shape[1] - 1, 0))

    @property
    def targets(self) -> Tensor:
        """Long [B, C]: the completion tokens; any valid token id where masked."""
        return self.own.gather(1, self.completion_columns)

    def select(self, rows: "Tensor | slice") -> "Sequences":
        """Those rows with the prefixes they have, trimmed to the longest of them.

        Another tensor over this batch's completion columns is cut to match by `tensor[rows, :selected.width]`.
        """
        kept, prefix_of = self.prefix_of[rows].unique(return_inverse=True)
        prefix_lengths, own_lengths = self.prefix_lengths[kept], self.own_lengths[rows]
        completion_lengths = self.completion_lengths[rows]
        return Sequences(
            self.prefixes[kept, : int(prefix_lengths.max())],
            prefix_lengths,
            prefix_of,
            self.own[rows, : int(own_lengths.max())],
            own_lengths,
            completion_lengths,
            width=int(completion_lengths.max()),
        )

    def to(self, device: torch.device | str) -> "Sequences":
        return replace(
            self, **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        )

    @property
    def _columns(self) -> Tensor:
        return torch.arange(self.width, device=self.own.device)


def collate(prompts: list[list[int]], completions: list[list[int]], group: int | list[int] = 1) -> Sequences:
    """The batch of prompts[i] followed by completions[i], B = len(prompts), on the CPU. No prompt may be empty.

    Of every `group` rows that follow one another, or of as many as each number of a list says, the prefix is what all
    their prompts begin with.
    """
    assert prompts and all(prompts), "the first completion token needs a token before it"
    sizes = [group] * (len(prompts) // group) if isinstance(group, int) else group
    groups = [prompts[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    prefixes = [commonprefix(part) for part in groups]
    prefix_of = [number for number, part in enumerate(groups) for _ in part]
    rows = zip(prompts, completions, prefix_of, strict=True)
    own = [prompt[len(prefixes[number]) :] + completion for prompt, completion, number in rows]
    return Sequences(
        padded(prefixes),
        torch.tensor([len(prefix) for prefix in prefixes]),
        torch.tensor(prefix_of),
        padded(own),
        torch.tensor([len(row) for row in own]),
        torch.tensor([len(completion) for completion in completions]),
        width=max(len(completion) for completion in completions),
    )


def padded(rows: list[list[int]]) -> Tensor:
    """Long [rows, longest], zeros on the right."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)


def check_length(prompt: list[int], completion_max: int, max_length: int, transition_id: str) -> None:
    """Raises ValueError where a prompt leaves fewer than `completion_max` of `max_length` tokens for its completion."""
    if len(prompt) + completion_max > max_length:
        raise ValueError(
            f"transition {transition_id}: a prompt of {len(prompt)} tokens and a completion of up to {completion_max} "
            f"exceed model.max_length={max_length}: raise it, or shorten the role's template or its max_length"
        )
