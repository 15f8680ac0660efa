"""Generation on Megatron's live training model under tensor and pipeline parallelism. Replaces NeMo's `generate`.

B = P*G sequences, T completion columns, V padded vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import p2p_communication as p2p
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from .cache import KvCache
from .decoder import Decoder
from .sampling import Distribution, pack, sample


@dataclass(frozen=True)
class Rollout:
    """completions: B token lists, each ending with the end token unless it was cut at the maximum length.

    logprobs [B, T]: behaviour log-probs, zero where a row has ended. support: packed bits [B, T, V/8] of what
    truncation kept, None where truncation is off. Rows are grouped: row p*G + g is sample g of prompt p.
    """

    completions: list[list[int]]
    logprobs: Tensor
    support: Tensor | None


@torch.no_grad()
def generate(
    model,
    prompts: list[list[int]],
    distribution: Distribution,
    *,
    group: int,
    max_length: int,
    pad: int,
    uniforms: Tensor | None,
) -> Rollout:
    """G completions of each prompt; uniforms [B, max_length] in [0, 1), or None for the likeliest tokens.

    Prompts are padded on the left, so that all completions start in one column of the cache. Each prompt is prefilled
    once; its keys and values are then shared out to its group. All ranks of a model-parallel group return the same.
    """
    device = torch.cuda.current_device()
    tokens, padding = _left_pad(prompts, pad, device)
    width = tokens.shape[1]
    cache = KvCache(width + max_length)
    logits = _stage(model, tokens, _prefill_mask(padding), cache)
    cache.repeat(group)
    visible = _visible(padding.repeat_interleave(group, 0), max_length)
    decoder = Decoder(model, width + max_length)
    logits = None if logits is None else logits.repeat_interleave(group, 0)
    ended = torch.zeros(len(prompts) * group, dtype=torch.bool, device=device)
    columns: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for step in range(max_length):
        drawn = None if uniforms is None else uniforms[:, step]
        chosen, logprob, kept = _choose(logits, distribution, step, drawn, len(ended), device)
        columns.append((chosen.masked_fill(ended, pad), logprob.masked_fill(ended, 0), kept))
        ended = ended | (chosen == distribution.end)
        if step + 1 == max_length or bool(ended.all()):
            break
        seen = None if visible is None else visible[:, : width + step + 1]
        logits = _next_token(decoder, columns[-1][0], seen, cache)
    return _collect(columns, distribution.end)


def _left_pad(prompts, pad, device) -> tuple[Tensor, Tensor]:
    """Tokens [P, L] and whether a column is padding [P, L]."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return tokens, torch.arange(width, device=device) < width - lengths[:, None]


def _prefill_mask(padding: Tensor) -> Tensor | None:
    """[P, 1, L, L], true where hidden; None where no row is padded. A padded column sees itself: no row is empty."""
    if not bool(padding.any()):
        return None
    width = padding.shape[1]
    ones = torch.ones(width, width, dtype=torch.bool, device=padding.device)
    return ones.triu(1) | (padding[:, None] & ~torch.eye(width, dtype=torch.bool, device=padding.device))[:, None]


def _stage(model, tokens: Tensor, mask: Tensor | None, cache: KvCache) -> Tensor | None:
    """Run this pipeline stage on [B, s] tokens; logits of the last column [B, V/tp] on the last stage, else None."""
    config = model.config
    rows, columns = tokens.shape
    set_input = get_attr_wrapped_model(model, "set_input_tensor")
    set_input(p2p.recv_forward((columns, rows, config.hidden_size), config))
    position_ids = torch.arange(columns, device=tokens.device).expand(rows, -1) + cache.sequence_len_offset
    output = model(tokens, position_ids, mask, cache=cache)
    p2p.send_forward(output, config)
    set_input(None)
    cache.advance(columns)
    return output if parallel_state.is_pipeline_last_stage() else None


def _next_token(decoder: Decoder, tokens: Tensor, visible: Tensor | None, cache: KvCache) -> Tensor | None:
    """The same for one token [B] of each row, of which only `visible` positions are seen."""
    config = decoder.config
    received = p2p.recv_forward((1, len(tokens), config.hidden_size), config)
    output = decoder(tokens, received, cache, visible)
    p2p.send_forward(output, config)
    cache.advance(1)
    return output if parallel_state.is_pipeline_last_stage() else None


def _visible(padding: Tensor, more: int) -> Tensor | None:
    """Of padded columns [B, L] and `more` that follow, those that a token may see [B, L + more]; None where all are."""
    return torch.cat([~padding, padding.new_ones(len(padding), more)], 1) if bool(padding.any()) else None


def _choose(logits, distribution: Distribution, step: int, uniforms, rows: int, device):
    """Sample on the last stage, then tell every rank of the model-parallel group."""
    chosen = torch.empty(rows, dtype=torch.long, device=device)
    logprob = torch.empty(rows, dtype=torch.float32, device=device)
    kept = None
    if logits is not None:
        steps = torch.full((rows,), step, device=device)
        weights = distribution.log_weights(_whole_vocabulary(logits), steps)
        keep = distribution.truncation(weights)
        if keep is not None:
            weights = weights.masked_fill(~keep, -torch.inf)
            kept = pack(keep)
        chosen, logprob = sample(weights, uniforms)
    if distribution.truncates and kept is None:
        kept = torch.empty(rows, len(distribution.allowed) // 8, dtype=torch.uint8, device=device)
    for tensor in (chosen, logprob) if kept is None else (chosen, logprob, kept):
        from_last_stage(tensor)
    return chosen, logprob, kept


def from_last_stage(tensor: Tensor) -> Tensor:
    """Broadcast, in place, from the last pipeline stage to the others of this rank's pipeline."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(tensor, source, group=parallel_state.get_pipeline_model_parallel_group())
    return tensor


def _whole_vocabulary(logits: Tensor) -> Tensor:
    """[B, V/tp] on each tensor-parallel rank to [B, V] on all."""
    world = parallel_state.get_tensor_model_parallel_world_size()
    if world == 1:
        return logits
    parts = [torch.empty_like(logits) for _ in range(world)]
    dist.all_gather(parts, logits.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)


def _collect(columns, end: int) -> Rollout:
    tokens = torch.stack([column[0] for column in columns], 1)
    ends = tokens == end
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, tokens.shape[1])
    completions = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    support = None if columns[0][2] is None else torch.stack([column[2] for column in columns], 1)
    return Rollout(completions, torch.stack([column[1] for column in columns], 1), support)
