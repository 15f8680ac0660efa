"""How fast this machine could do the same step: its matrix products and memory copies, and the least work there is.

The least work runs each prompt through the model once for all of its group, and the vocabulary's head at completion
positions only; every matrix product runs at the rate of a large one, and decoding reads each weight once a token.
"""

import time
from dataclasses import dataclass

import torch

from ..products import product as by_onednn
from .config import BenchConfig

_BYTES = 4  # float32
_ADAM = 7  # values moved for each parameter: it, its gradient and two moments read, all but the gradient written


@dataclass(frozen=True)
class Machine:
    flops: float  # a second, of a float32 matrix product
    bandwidth: float  # bytes a second read and written by a memory copy


@dataclass(frozen=True)
class Sizes:
    """Of a model: parameters in its layers' matrices, in its head, in all; width of attention times its layers."""

    body: int
    head: int
    every: int
    attention: int


def measure_machine(threads: int) -> Machine:
    """The best of several, by MKL and by oneDNN: what else runs on a shared machine only slows it."""
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(4096, 1024)
    source, target = torch.empty(32 << 20), torch.empty(32 << 20)
    product = min(_fastest(lambda: torch.mm(a, b.t())), _fastest(lambda: by_onednn(a, b)))
    copy = _fastest(lambda: target.copy_(source))
    return Machine(2 * 1024 * 1024 * 4096 / product, 2 * _BYTES * source.numel() / copy)


def _fastest(work, repeats: int = 12) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def sizes(actor) -> Sizes:
    """Of the whole model, whatever part of it this process has; biases are left out."""
    config = actor.transformer_config
    queries = config.num_attention_heads * config.kv_channels
    keys = config.num_query_groups * config.kv_channels
    projections = config.hidden_size * (2 * queries + 2 * keys)
    mlp = config.hidden_size * config.ffn_hidden_size * (3 if config.gated_linear_unit else 2)
    body, head = config.num_layers * (projections + mlp), actor.padded_vocab_size * config.hidden_size
    norms = (2 * config.num_layers + 1) * config.hidden_size
    embeddings = head if actor.cfg.share_embeddings_and_output_weights else 2 * head
    return Sizes(body, head, body + embeddings + norms, config.num_layers * queries)


def least_seconds(cfg: BenchConfig, size: Sizes, machine: Machine) -> dict[str, float]:
    """Seconds of the least work for each part of a step, by the names of the bench."""
    rows = cfg.prompts * cfg.group
    completion, state = cfg.completion_len, cfg.prompt_len - cfg.action_len
    action = cfg.action_len + 1  # with the end token

    def forward(shared: int, own: int, scored: int) -> float:
        """Flops: `shared` positions of each prompt, then `own` of each row, of which `scored` need logits."""
        tokens = cfg.prompts * shared + rows * own
        seen = cfg.prompts * shared * shared / 2 + rows * own * (shared + own / 2)
        return 2 * size.body * tokens + 2 * size.head * rows * scored + 4 * size.attention * seen

    used = size.body + size.head
    decoded = max(2 * used * rows / machine.flops, _BYTES * used / machine.bandwidth)  # seconds a token of every row
    policy = forward(cfg.prompt_len, completion, completion)
    seconds = {
        "generate": forward(cfg.prompt_len, 0, 0) / machine.flops + decoded * completion,
        "reference": policy / machine.flops if cfg.kl_beta else 0.0,
        "reward": forward(state, completion + cfg.instruction_len + action, action) / machine.flops,
        "train": 3 * policy / machine.flops + _ADAM * _BYTES * size.every / machine.bandwidth,
    }
    return seconds | {"step": sum(seconds.values())}
