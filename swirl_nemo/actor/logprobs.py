"""Log-probabilities of chosen tokens from a vocabulary-parallel output layer, a chunk of positions at a time.

At most `chunk` rows of full-vocabulary float32 logits exist at once, in the forward pass and again in the backward
pass. The head runs only at the positions that predict a scored token.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..products import product
from ..rollout.sampling import Distribution

_LOWEST = -1e4  # a finite logit whose exponential is 0


@dataclass(frozen=True)
class Scored:
    """Which tokens of a packing predict which under which distribution, N in all.

    positions [N]: the predicting token's place in the packing; targets [N]: the predicted token; steps [N]: its index
    in the completion; support [N, V/8]: packed bits of what truncation kept there, None where it was off.
    """

    distribution: Distribution
    positions: Tensor
    targets: Tensor
    steps: Tensor
    support: Tensor | None

    def select(self, places: Tensor) -> "Scored":
        """Some of them."""
        support = None if self.support is None else self.support[places]
        return Scored(self.distribution, self.positions[places], self.targets[places], self.steps[places], support)


class _ChunkedLogProbs(torch.autograd.Function):
    """See `log_probs`. The gradient of the hidden states is this rank's part: the caller reduces it over the group."""

    @staticmethod
    def forward(ctx, hidden, weight, scored, chunk, first_token, group):
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden, weight, scored, part, first_token)
            peak = logits.max(-1).values
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
            local, owned = _local_targets(scored.targets[part], first_token, weight)
            logits.sub_(peak[:, None])
            chosen = logits.gather(-1, local[:, None])[:, 0].masked_fill(~owned, 0)
            exponent = logits.exp()
            # A masked token has exponent 0, and must have 0 in the product too
            expected = (exponent[:, None] @ logits.clamp_(min=_LOWEST)[..., None])[:, 0, 0]
            sums = torch.stack([exponent.sum(-1), expected, chosen])
            dist.all_reduce(sums, group=group)
            log_sum = sums[0].log()
            normalizer[part] = log_sum + peak
            logprobs[part] = sums[2] - log_sum
            entropy[part] = log_sum - sums[1] / sums[0]
        ctx.save_for_backward(hidden, weight, normalizer)
        ctx.scored, ctx.chunk, ctx.first_token = scored, chunk, first_token
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, _):
        hidden, weight, normalizer = ctx.saved_tensors
        scored, first_token = ctx.scored, ctx.first_token
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = _logits(hidden, weight, scored, part, first_token)
            local, owned = _local_targets(scored.targets[part], first_token, weight)
            upstream = grad_logprobs[part, None] / scored.distribution.temperature
            # d log p(t) / d logit_v = 1[v = t] - p(v)
            grad_logits = logits.sub_(normalizer[part, None]).exp_().mul_(-upstream)
            grad_logits.scatter_add_(-1, local[:, None], upstream * owned[:, None])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[part] = product(grad_logits, weight.t())
            grad_weight.addmm_(grad_logits.t(), hidden[part])
        return grad_hidden, grad_weight, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, scored: Scored, part: slice, first_token: int) -> Tensor:
    """[n, V/tp] float32 of the chunk `part`; tokens outside the role's mask have probability zero."""
    support = None if scored.support is None else scored.support[part]
    return scored.distribution.log_weights(product(hidden[part], weight), scored.steps[part], first_token, support)


def _local_targets(targets: Tensor, first_token: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [n] into this rank's rows of the vocabulary, and whether this rank holds the target [n]."""
    local = targets - first_token
    owned = (local >= 0) & (local < len(weight))
    return local.clamp(0, len(weight) - 1), owned


def log_probs(
    hidden: Tensor, weight: Tensor, scored: Scored, chunk: int, first_token: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy, under the role's distribution over hidden @ weight^T.

    hidden [N, H], whole on every tensor-parallel rank; weight [V/tp, H], this rank's rows, the first of which is token
    `first_token`. Returns two float32 [N]; only the first has a gradient. With respect to `hidden` each rank computes
    its part: pass hidden through Megatron's copy_to_tensor_model_parallel_region (or the gather of sequence
    parallelism), whose backward adds the parts.
    """
    return _ChunkedLogProbs.apply(hidden, weight, scored, chunk, first_token, group)
