"""Bytes on each GPU and host, for the longest sequences that a configuration allows.

Formulas follow this project's code (actor/, rollout/, weights.py) and are in docs/planning.md; where Megatron's own
are the same, they are Korthikanti et al. 2022 and megatron/training/theoretical_memory_usage.py.
"""

from dataclasses import dataclass

from ..config import ArchitectureConfig, Dtype, Recompute, SwirlConfig, Weights
from .architecture import Dimensions, Layout, Stage, parameters, stages
from .calibration import RESERVED_GB
from .work import Lengths, Micro, PhaseWork, phase_work

MOMENTS, FP32, LOGITS = 8, 4, 4  # bytes of a parameter's Adam moments, of a float32, of a logit
STATIC = ("weights", "gradients", "optimizer state")
TRAIN = ("activations", "logits chunk", "gradient of one matrix")
ROLLOUT = ("KV cache", "sampling", "truncation's support")


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes by name on a GPU of pipeline stage `stage`, all of them in use at once within `static` and one of the other
    two."""

    stage: int
    parameters: int
    parts: dict[str, float]

    def total(self, names: tuple[str, ...]) -> float:
        return sum(self.parts[name] for name in names)

    @property
    def peak(self) -> float:
        return self.total(STATIC) + max(self.total(TRAIN), self.total(ROLLOUT)) + self.parts["reserved"]


@dataclass(frozen=True)
class HostMemory:
    """Bytes on a node: named weight sets of all its GPUs, and how many of them."""

    sets: int
    weight_sets: float


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of a checkpoint within a phase, of all ranks, and seconds to write them from all nodes at once."""

    weights: float
    optimizer: float
    seconds: float


@dataclass(frozen=True)
class Memory:
    devices: list[DeviceMemory]  # one a pipeline stage
    host: HostMemory
    checkpoint: Checkpoint


def memory(cfg: SwirlConfig, a: ArchitectureConfig, layout: Layout) -> Memory:
    phases = [phase_work(cfg, role, Lengths.longest(cfg), layout) for role in cfg.alternation.order]
    rollouts = [(work, getattr(cfg.phase, work.role).sampling) for work in phases]
    devices = [
        DeviceMemory(
            stage.number,
            stage.parameters(a, layout.tensor),
            _static(cfg, a, layout, stage)
            | _train(cfg, a, layout, stage, phases)
            | _rollout(cfg, a, layout, stage, rollouts)
            | {"reserved": RESERVED_GB * 1e9},
        )
        for stage in stages(a, layout)
    ]
    return Memory(devices, _host(cfg, a, layout), _checkpoint(cfg, a))


def weight_bytes(cfg: SwirlConfig) -> int:
    return 2 if cfg.precision.dtype is Dtype.bf16 else 4


def weight_sets(cfg: SwirlConfig) -> int:
    """Held on the host within a phase: each role's and the reference, or the shared one and the reference."""
    return 2 if cfg.model.weights is Weights.shared else 3


def optimizer_bytes(cfg: SwirlConfig) -> int:
    """A parameter's moments, and its float32 copy where the weights are not float32 themselves."""
    return MOMENTS + (FP32 if cfg.precision.dtype is Dtype.bf16 else 0)


def _static(cfg, a, layout: Layout, stage: Stage) -> dict[str, float]:
    own = stage.parameters(a, layout.tensor)
    return {
        "weights": own * weight_bytes(cfg),
        "gradients": own * FP32,  # Megatron's DDP reduces them in float32 (NeMo's grad_sync_dtype)
        "optimizer state": own * optimizer_bytes(cfg) / layout.shards,
    }


# training


def _train(cfg, a, layout: Layout, stage: Stage, phases: list[PhaseWork]) -> dict[str, float]:
    d, width = Dimensions(a), weight_bytes(cfg)
    worst = max((batch for work in phases for batch in work.train), key=lambda batch: batch.tokens)
    micro_batches = max(sum(batch.count for batch in work.train) for work in phases)
    activations = in_flight(layout, stage, micro_batches) * _stage_inputs(cfg, a, layout, stage, worst)
    head = d.vocab * d.h / layout.tensor * width
    chunk = min(cfg.model.logit_chunk, worst.head) * d.vocab / layout.tensor
    if cfg.model.recompute is Recompute.full:  # and one layer's, made again
        activations += layer_activations(cfg, a, layout, worst)
    if stage.last:
        activations += worst.head * d.h * width
    largest = max(d.h * d.fc1 / layout.tensor * width, head if stage.first or stage.last else 0)
    return {
        "activations": activations,
        "logits chunk": chunk * (2 * LOGITS + width) if stage.last else 0.0,
        "gradient of one matrix": largest,
    }


def _stage_inputs(cfg, a, layout: Layout, stage: Stage, batch: Micro) -> float:
    """What one micro-batch keeps on a stage from forward to backward, as a share of the stage's layers."""
    if cfg.model.recompute is Recompute.full:
        return stage.layers * _residual(cfg, a, layout, batch)
    return stage.layers * layer_activations(cfg, a, layout, batch)


def _residual(cfg, a, layout: Layout, batch: Micro) -> float:
    split = layout.tensor if layout.sequence else 1
    return batch.tokens / layout.context * a.hidden_size / split * weight_bytes(cfg)


def layer_activations(cfg, a: ArchitectureConfig, layout: Layout, batch: Micro) -> float:
    """What autograd keeps of one layer for one micro-batch."""
    d, width, t = Dimensions(a), weight_bytes(cfg), layout.tensor
    tokens = batch.tokens / layout.context
    split = t if layout.sequence else 1
    if width == 4:
        norm = 4 * d.h / split * tokens * width
    else:
        norm = 2 * d.h / split * tokens * (2 * FP32 + width)
    attention = (3 * d.q + 2 * d.k) / t * tokens * width + a.num_attention_heads / t * tokens * FP32
    repeated = 2 * d.k / t * batch.rows * (batch.prefix + batch.own) / layout.context * width
    mlp = (2 * d.fc1 if d.fc1 > d.f else 2 * d.f) / t * tokens * width
    if cfg.model.recompute is Recompute.selective:
        attention, repeated = (2 * d.q + 2 * d.k) / t * tokens * width, 0.0
    return norm + attention + repeated + mlp


def in_flight(layout: Layout, stage: Stage, micro_batches: int) -> float:
    """Micro-batches whose activations a stage holds at once: 1F1B, or its interleaved form (Narayanan et al. 2021)."""
    behind = layout.pipeline - stage.number
    if layout.virtual == 1:
        return min(micro_batches, behind)
    warm = 2 * (behind - 1) + (layout.virtual - 1) * layout.pipeline + 1
    return min(micro_batches, warm / layout.virtual)


# rollout


def _rollout(cfg, a, layout: Layout, stage: Stage, phases) -> dict[str, float]:
    d, width = Dimensions(a), weight_bytes(cfg)
    parts: dict[str, float] = dict.fromkeys(ROLLOUT, 0.0)
    for work, sampling in phases:
        rollout = work.rollout
        places = rollout.prompts * rollout.prompt + rollout.rows * rollout.completion
        cache = stage.layers * 2 * d.k / layout.tensor * places * width
        waves = min(layout.pipeline, rollout.prompts)
        truncates = sampling.top_k > 0 or sampling.top_p < 1
        # Logits, log-probs and, in double, their cumulative sums of a wave's rows; sorting has values, indices and masks
        logits = rollout.rows / waves * d.vocab * (4 + 4 + 8 + (26 if truncates else 0)) if stage.last else 0.0
        support = rollout.pieces * rollout.rows * rollout.completion * d.vocab / 8 if truncates else 0.0
        for name, value in zip(ROLLOUT, (cache, logits, support), strict=True):
            parts[name] = max(parts[name], value)
    return parts


# host and disk


def _host(cfg, a, layout: Layout) -> HostMemory:
    sets = weight_sets(cfg)
    heaviest = max(stage.parameters(a, layout.tensor) for stage in stages(a, layout))
    return HostMemory(sets, sets * heaviest * weight_bytes(cfg) * cfg.cluster.devices)


def _checkpoint(cfg, a) -> Checkpoint:
    count = parameters(a)
    weights, optimizer = weight_sets(cfg) * count * weight_bytes(cfg), count * (MOMENTS + FP32)
    return Checkpoint(
        weights, optimizer, (weights + optimizer) / (cfg.cluster.nodes * cfg.cluster.hardware.storage_gb_s * 1e9)
    )
