"""Context parallelism: the tokens of a micro-batch divided among ranks, which trade them for attention heads.

DeepSpeed-Ulysses (Jacobs et al. 2023): outside attention a rank has n = N/c tokens with all its heads, inside it all N
tokens with 1/c of the heads. So attention sees whole sequences, and prefixes that rows share, as it does without.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import all_to_all
from torch import Tensor

from ..rollout.result import Rollout
from .logprobs import Scored
from .packing import Packing


def share(packing: Packing) -> slice:
    """This rank's tokens of the packing."""
    size = len(packing.tokens) // packing.shards
    start = size * parallel_state.get_context_parallel_rank() if packing.shards > 1 else 0
    return slice(start, start + size)


def heads_for_tokens(values: Tensor, ranks: int) -> Tensor:
    """[n, heads, d] on each rank to [N, heads/c, d]."""
    return _trade(values.unflatten(1, (ranks, -1)).transpose(0, 1)).flatten(0, 1)


def tokens_for_heads(values: Tensor, ranks: int) -> Tensor:
    """The inverse of `heads_for_tokens`."""
    return _trade(values.unflatten(0, (ranks, -1))).transpose(0, 1).flatten(1, 2)


def _trade(values: Tensor) -> Tensor:
    return all_to_all(parallel_state.get_context_parallel_group(), values)


def divided_scores(score: Callable[[Scored], Tensor], scored: Scored, packing: Packing) -> Tensor:
    """`score(scored)` [2, K], of which each rank computes what its own tokens predict."""
    mine = share(packing)
    places = ((scored.positions >= mine.start) & (scored.positions < mine.stop)).nonzero()[:, 0]
    part = score(replace(scored.select(places), positions=scored.positions[places] - mine.start))
    return _Sum.apply(part.new_zeros(2, len(scored.positions)).index_copy(1, places, part))


def divided_rollout(
    generate: Callable[[list[list[int]], Tensor | None], Rollout],
    prompts: list[list[int]],
    uniforms: Tensor | None,
    group: int,
) -> Rollout:
    """`generate(prompts, uniforms)`, uniforms [P*G, T], of which each rank does some whole groups; all return all."""
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks == 1:
        return generate(prompts, uniforms)
    mine = torch.arange(len(prompts)).tensor_split(ranks)[parallel_state.get_context_parallel_rank()].tolist()
    own = []
    if mine:
        first, last = mine[0], mine[-1] + 1
        numbers = None if uniforms is None else uniforms[first * group : last * group]
        own.append(generate(prompts[first:last], numbers).cpu())
    parts: list = [None] * ranks
    dist.all_gather_object(parts, own, group=parallel_state.get_context_parallel_group())
    return Rollout.join([rollout for part in parts for rollout in part], torch.cuda.current_device())


class _Sum(torch.autograd.Function):
    """Over ranks, of what each knows a part of. Each computes the whole loss from it and its own part of the gradient;
    Megatron adds those up when it reduces gradients over data- and context-parallel ranks."""

    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total, group=parallel_state.get_context_parallel_group())
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad
