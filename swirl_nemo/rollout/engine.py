"""Generation on Megatron's live training model under tensor and pipeline parallelism. Replaces NeMo's `generate`.

Prompts are divided into as many waves as there are pipeline stages: while one wave is in a stage, the others are in the
others. B = P*G sequences, T completion columns, V padded vocabulary.
"""

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from torch import Tensor

from .decoder import Decoder
from .result import Rollout
from .sampling import Distribution
from .wave import Wave


@torch.no_grad()
def generate(
    model,
    prompts: list[list[int]],
    distribution: Distribution,
    *,
    group: int,
    max_length: int,
    uniforms: Tensor | None,
    batch: int,
) -> Rollout:
    """G completions of each prompt; uniforms [B, max_length] in [0, 1), or None for the likeliest tokens.

    Each prompt is prefilled once, and its keys and values are its group's. At most `batch` rows are decoded at a time;
    those that have ended leave. All ranks of a model-parallel group return the same.
    """
    decoder = Decoder(model, max(map(len, prompts)) + max_length)
    parts: list[Rollout] = []
    start = 0
    for first, last, width in _pieces(len(prompts), group, batch):
        rows = slice(start, start + (last - first) * width)
        numbers = None if uniforms is None else uniforms[rows]
        parts += _generate(model, decoder, prompts[first:last], distribution, width, max_length, numbers)
        start = rows.stop
    return Rollout.join(parts, torch.cuda.current_device())


def _pieces(prompts: int, group: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """First and last prompt and rows a prompt of what is decoded together: whole groups where they fit."""
    if group <= batch:
        for first in range(0, prompts, batch // group):
            yield first, min(first + batch // group, prompts), group
        return
    for prompt in range(prompts):
        for start in range(0, group, batch):
            yield prompt, prompt + 1, min(batch, group - start)


def _generate(model, decoder, prompts, distribution, group, max_length, uniforms) -> list[Rollout]:
    """Of a piece, in as many waves as there are stages."""
    stages = min(parallel_state.get_pipeline_model_parallel_world_size(), len(prompts))
    waves = []
    for part in torch.arange(len(prompts)).tensor_split(stages):
        first, last = int(part[0]), int(part[-1]) + 1
        numbers = None if uniforms is None else uniforms[first * group : last * group]
        waves.append(Wave(model, decoder, prompts[first:last], distribution, group, max_length, numbers))
    for _ in range(max_length):
        for wave in waves:
            wave.advance()
    return [wave.result() for wave in waves]
