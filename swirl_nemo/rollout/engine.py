"""Generation on Megatron's live training model under tensor and pipeline parallelism. Replaces NeMo's `generate`.

Prompts are divided into as many waves as there are pipeline stages: while one wave is in a stage, the others are in the
others. B = P*G sequences, T completion columns, V padded vocabulary.
"""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from .decoder import Decoder
from .sampling import Distribution
from .wave import Wave


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
    uniforms: Tensor | None,
) -> Rollout:
    """G completions of each prompt; uniforms [B, max_length] in [0, 1), or None for the likeliest tokens.

    Each prompt is prefilled once, and its keys and values are its group's. Rows that have ended leave the batch. All
    ranks of a model-parallel group return the same.
    """
    decoder = Decoder(model, max(map(len, prompts)) + max_length)
    stages = min(parallel_state.get_pipeline_model_parallel_world_size(), len(prompts))
    waves = []
    for part in torch.arange(len(prompts)).tensor_split(stages):
        first, last = int(part[0]), int(part[-1]) + 1
        numbers = None if uniforms is None else uniforms[first * group : last * group]
        waves.append(Wave(model, decoder, prompts[first:last], distribution, group, max_length, numbers))
    for _ in range(max_length):
        for wave in waves:
            wave.advance()
    return _collect(waves, distribution.end)


def _collect(waves: list[Wave], end: int) -> Rollout:
    """Columns after the longest completion are cut off."""
    tokens = torch.cat([wave.tokens for wave in waves])
    ends = tokens == end
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, tokens.shape[1])
    completions = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    width = int(lengths.max())
    support = None
    if waves[0].support is not None:
        support = torch.cat([wave.support[:, :width] for wave in waves])
    return Rollout(completions, torch.cat([wave.logprobs[:, :width] for wave in waves]), support)
