"""Group relative policy optimisation: advantages, clipped surrogate, KL to the reference, and sums to log.

GRPO is Shao et al. 2024 (arXiv 2402.03300, eq. 3); the asymmetric clip and the mean over all tokens are DAPO's (Yu et
al. 2025, arXiv 2503.14476). Against the released SWIRL code: groups without spread leave the loss, where TRL divides
their rounding noise by `std_epsilon` and trains on it; and log-probs are those of the distribution sampled from.

Shapes: P prompts, G completions a prompt (the group), B = P * G sequences or a micro-batch of them, T tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Aggregation, Kl, PhaseConfig


class Advantages(NamedTuple):
    advantages: Tensor  # [P, G]
    live: Tensor  # [P] bool: the group's rewards are spread enough to rank its completions
    std: Tensor  # [P]


class PolicyLoss(NamedTuple):
    loss: Tensor  # scalar: this micro-batch's share of the mini-batch's loss
    sums: dict[str, Tensor]  # over unmasked tokens, detached: add up over micro-batches and ranks, then `token_means`
    drift_max: Tensor  # scalar, detached: max |behaviour - logprobs|, to be reduced by maximum


@dataclass(frozen=True)
class LossOptions:
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]; `kl_beta` weighs the KL term, 0 leaves it out."""

    clip_low: float
    clip_high: float
    kl_beta: float
    kl: Kl
    aggregation: Aggregation

    @classmethod
    def of(cls, phase: PhaseConfig) -> "LossOptions":
        return cls(phase.clip_low, phase.clip_high, phase.kl_beta, phase.kl, phase.aggregation)


def clamp_rewards(mean_logprob: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Rewards of `mean_logprob` [B] (nats per scored token) kept above `floor`, and where it held: [B], [B] bool."""
    return mean_logprob.clamp(min=floor), mean_logprob < floor


def group_advantages(rewards: Tensor, *, divide_by_std: bool, std_epsilon: float, dead_std: float) -> Advantages:
    """Advantages (r - mean) / (std + std_epsilon) within each group of `rewards` [P, G], std with G - 1 as in TRL.

    Without `divide_by_std` they are r - mean (Liu et al. 2025, arXiv 2503.20783). A group is dead where its std is
    under `dead_std`, or where all its rewards are the same.
    """
    assert rewards.dim() == 2 and rewards.shape[1] > 1, rewards.shape
    assert torch.isfinite(rewards).all()
    std = rewards.std(dim=1)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if divide_by_std:
        advantages = advantages / (std + std_epsilon)[:, None]
    # std of equal floats may be rounding instead of 0, their range may not
    live = (std >= dead_std) & (rewards.amax(dim=1) > rewards.amin(dim=1))
    return Advantages(advantages, live, std)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: Kl) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the policy's own samples, any shape (Schulman 2020).

    As a loss term k1 has a gradient of mean zero on policy; k2 has that of the KL itself.
    """
    log_ratio = logprobs - reference
    if kind is Kl.k1:
        return log_ratio
    if kind is Kl.k2:
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def loss_total(mask: Tensor, aggregation: Aggregation) -> Tensor:
    """What `mask` [B, T] adds to the count that `policy_loss` divides by: sequences with a token, or tokens."""
    if aggregation is Aggregation.token_mean:
        return mask.sum()
    return mask.any(dim=1).sum()


def policy_loss(
    logprobs: Tensor,
    behaviour: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    options: LossOptions,
    total: Tensor | float,
) -> PolicyLoss:
    """Clipped surrogate plus kl_beta times the KL to the reference.

    `logprobs`, `behaviour`, `reference` [B, T]: log-probs of the completion's tokens under the policy being trained,
    the policy that sampled them, and the reference (None where kl_beta is 0: its KL is then logged as nan).
    `advantages` [B].
    `mask` [B, T] bool: tokens of completions, none in rows of dead groups; values outside it are never read.
    `total`: `loss_total` added up over all micro-batches and ranks of the mini-batch, so that the losses of
    micro-batches add up to the mini-batch's; with no live group in it the total is 0, and so is the loss.
    """
    assert reference is not None or options.kl_beta == 0
    # filled before exp: a masked inf would become nan in the product with the mask, and in its gradient
    log_ratio = (logprobs - behaviour).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    surrogate = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages[:, None]
    token_loss = -torch.minimum(surrogate, clipped)
    if reference is not None:
        policy, reference = logprobs.masked_fill(~mask, 0.0), reference.masked_fill(~mask, 0.0)
    if options.kl_beta:
        token_loss = token_loss + options.kl_beta * kl_estimate(policy, reference, options.kl)

    row_loss = (token_loss * mask).sum(dim=1)
    if options.aggregation is Aggregation.sequence_mean:
        row_loss = row_loss / mask.sum(dim=1).clamp(min=1)
    loss = row_loss.sum() / torch.as_tensor(total).clamp(min=1)

    with torch.no_grad():
        drift = log_ratio.abs()
        kl = kl_estimate(policy, reference, Kl.k3).sum() if reference is not None else torch.full_like(loss, torch.nan)
        sums = {
            "tokens": mask.sum().to(loss.dtype),
            "ratio/mean": (ratio * mask).sum(),
            "ratio/clip_fraction": ((clipped < surrogate) & mask).sum().to(loss.dtype),
            "kl/reference": kl,
            "drift/mean": drift.sum(),
        }
        return PolicyLoss(loss, sums, drift.max())


def token_means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Means per token of `PolicyLoss.sums` added up over micro-batches and ranks; nan where no token was live."""
    return {name: (value / sums["tokens"]).item() for name, value in sums.items() if name != "tokens"}
