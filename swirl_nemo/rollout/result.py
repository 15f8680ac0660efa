"""What generation gives: completions with what training needs of them. B = P*G sequences, T columns, V vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """completions: B token lists, each ending with the end token unless it was cut at the maximum length.

    logprobs [B, T]: behaviour log-probs, zero where a row has ended. support: packed bits [B, T, V/8] of what
    truncation kept, None where truncation is off. Rows are grouped: row p*G + g is sample g of prompt p.
    """

    completions: list[list[int]]
    logprobs: Tensor
    support: Tensor | None

    def by_group(self, group: int) -> "list[Rollout]":
        """One for each prompt, on the CPU, to be sent to another rank; without truncation."""
        assert self.support is None
        cuts = [slice(start, start + group) for start in range(0, len(self.completions), group)]
        return [Rollout(self.completions[cut], self.logprobs[cut].cpu(), None) for cut in cuts]

    @staticmethod
    def join(parts: "list[Rollout]", device) -> "Rollout":
        """Their rows one behind the other, columns as many as the widest has."""
        completions = [completion for part in parts for completion in part.completions]
        width = max(map(len, completions))
        logprobs = torch.cat([_widened(part.logprobs, width) for part in parts]).to(device)
        if parts[0].support is None:
            return Rollout(completions, logprobs, None)
        return Rollout(completions, logprobs, torch.cat([_widened(part.support, width) for part in parts]).to(device))


def _widened(values: Tensor, width: int) -> Tensor:
    """[rows, T, ...] as [rows, width, ...], zeros behind."""
    wide = values.new_zeros(len(values), width, *values.shape[2:])
    kept = min(width, values.shape[1])
    wide[:, :kept] = values[:, :kept]
    return wide
