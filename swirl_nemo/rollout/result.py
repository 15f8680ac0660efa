"""What generation gives: completions with what training needs of them. B = P*G sequences, T columns, V vocabulary."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    def cpu(self) -> "Rollout":
        return Rollout(self.completions, self.logprobs.cpu(), None if self.support is None else self.support.cpu())

    @staticmethod
    def join(parts: "list[Rollout]", device) -> "Rollout":
        """Their rows one behind the other, columns as many as the widest has."""
        completions = [completion for part in parts for completion in part.completions]
        width = max(map(len, completions))
        logprobs = torch.cat([F.pad(part.logprobs, (0, width - part.logprobs.shape[1])) for part in parts])
        if parts[0].support is None:
            return Rollout(completions, logprobs.to(device), None)
        support = torch.cat([F.pad(part.support, (0, 0, 0, width - part.support.shape[1])) for part in parts])
        return Rollout(completions, logprobs.to(device), support.to(device))
