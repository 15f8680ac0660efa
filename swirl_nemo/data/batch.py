"""Prompts with their completions as one right-padded batch. B sequences, T tokens, C completion columns."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Each row is a prompt, its completion, then padding.

    Completion tensors are [B, C]: column j of a row is its j-th completion token, wherever its prompt ends.
    """

    tokens: Tensor  # long [B, T]
    prompt_lengths: Tensor  # long [B]
    lengths: Tensor  # long [B], prompt and completion
    width: int  # C, the longest completion of the batch collated

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def completion_mask(self) -> Tensor:
        """Bool [B, C]: true where the row has a completion token."""
        return self._columns < (self.lengths - self.prompt_lengths)[:, None]

    @property
    def completion_positions(self) -> Tensor:
        """Long [B, C]: index in T of the token that predicts each completion token; any valid index where masked."""
        return (self.prompt_lengths[:, None] - 1 + self._columns).clamp(max=self.tokens.shape[1] - 2)

    @property
    def targets(self) -> Tensor:
        """Long [B, C]: the completion tokens; any valid token id where masked."""
        return self.tokens.gather(1, self.completion_positions + 1)

    def select(self, rows: "Tensor | slice") -> "Sequences":
        """Those rows, with T and C trimmed to the longest of them: less padding where lengths are alike.

        Another tensor over this batch's completion columns is cut to match by `tensor[rows, :selected.width]`.
        """
        prompt_lengths, lengths = self.prompt_lengths[rows], self.lengths[rows]
        width = int((lengths - prompt_lengths).max())
        return Sequences(self.tokens[rows, : int(lengths.max())], prompt_lengths, lengths, width)

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(self.tokens.to(device), self.prompt_lengths.to(device), self.lengths.to(device), self.width)

    @property
    def _columns(self) -> Tensor:
        return torch.arange(self.width, device=self.tokens.device)


def collate(prompts: list[list[int]], completions: list[list[int]], pad: int) -> Sequences:
    """The batch of prompts[i] followed by completions[i], B = len(prompts), on the CPU. No prompt may be empty."""
    assert prompts and all(prompts), "the first completion token needs a token before it"
    rows = [torch.tensor(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return Sequences(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        lengths=torch.tensor([len(row) for row in rows]),
        width=max(len(completion) for completion in completions),
    )


def check_length(prompt: list[int], completion_max: int, max_length: int, transition_id: str) -> None:
    """Raises ValueError where a prompt leaves fewer than `completion_max` of `max_length` tokens for its completion."""
    if len(prompt) + completion_max > max_length:
        raise ValueError(
            f"transition {transition_id}: a prompt of {len(prompt)} tokens and a completion of up to {completion_max} "
            f"exceed model.max_length={max_length}: raise it, or shorten the role's template or its max_length"
        )
