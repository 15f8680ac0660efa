"""Seconds of each part of a step, from a data sheet's figures and the constants of calibration.py."""

from dataclasses import dataclass

from ..config import ArchitectureConfig, HardwareConfig, RoleName, SwirlConfig
from . import calibration as c
from .architecture import Dimensions, Layout, Stage, stages
from .memory import weight_bytes
from .work import Lengths, Micro, PhaseWork, phase_work

FORWARD, BACKWARD = 1, 2


@dataclass(frozen=True)
class Part:
    """Seconds, and tokens of all GPUs that they were for; None where tokens say nothing."""

    seconds: float
    tokens: float | None = None


@dataclass(frozen=True)
class StepTime:
    role: str
    parts: dict[str, Part]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts.values())


def step_time(cfg: SwirlConfig, a: ArchitectureConfig, layout: Layout, role: RoleName, lengths: Lengths) -> StepTime:
    work = phase_work(cfg, role, lengths, layout)
    hardware, width = cfg.cluster.hardware, weight_bytes(cfg)
    heaviest = max(stages(a, layout), key=lambda stage: stage.parameters(a, layout.tensor))
    own = heaviest.parameters(a, layout.tensor)
    swap = work.copies * own * width / (hardware.host_link_gb_s * 1e9 * c.HOST_LINK)
    parts = {"rollout": rollout(cfg, a, layout, work), "swap": Part(swap)}
    for name, batch in work.passes.items():
        parts[name] = Part(_pipelined(a, layout, hardware, [batch], FORWARD), batch.count * batch.tokens * layout.data)
    trained = sum(batch.count * batch.tokens for batch in work.train) * work.optimizer_steps * layout.data
    factor = FORWARD + BACKWARD + (cfg.model.recompute.value == "full")
    train = _pipelined(a, layout, hardware, work.train, factor)
    reduce = own * (4 + width) * (layout.shards - 1) / layout.shards / (hardware.network_gb_s * 1e9 * c.NETWORK)
    parts["train"] = Part(work.optimizer_steps * (train + reduce), trained)
    return StepTime(role.value, parts)


def _pipelined(a, layout: Layout, hardware: HardwareConfig, batches: list[Micro], factor: float) -> float:
    count = sum(batch.count for batch in batches)
    slowest = max(
        sum(batch.count * _stage_forward(a, layout, hardware, stage, batch) for batch in batches)
        for stage in stages(a, layout)
    )
    return slowest * factor * (1 + (layout.pipeline - 1) / layout.virtual / count)


def _stage_forward(a, layout: Layout, hardware: HardwareConfig, stage: Stage, batch: Micro) -> float:
    d = Dimensions(a)
    tokens = batch.tokens / layout.context
    flops = 2 * tokens * d.products * stage.layers + 4 * batch.pairs / layout.context * d.q * stage.layers
    flops += 2 * batch.head * d.h * d.vocab * stage.last
    compute = flops / layout.tensor / (hardware.bf16_tflops * 1e12 * c.PRODUCT)
    exchanged = 4 * tokens * d.h * 2 * (layout.tensor - 1) / layout.tensor * stage.layers
    return compute + exchanged / (hardware.link_gb_s * 1e9 * c.LINK)


def rollout(cfg: SwirlConfig, a, layout: Layout, work: PhaseWork) -> Part:
    """Prefill, then a token at a time: weights and keys are read once for all rows of a wave."""
    r, hardware, d = work.rollout, cfg.cluster.hardware, Dimensions(a)
    width = weight_bytes(cfg)
    whole = a.num_layers * d.products / layout.tensor * width
    bandwidth = hardware.memory_gb_s * 1e9 * c.MEMORY
    keys = r.rows * (r.prompt + r.completion / 2) * 2 * d.k / layout.tensor * a.num_layers * width
    step = (whole + keys) / bandwidth + a.num_layers * 25 * c.LAUNCH_SECONDS
    seconds = r.pieces * r.completion * step
    return Part(seconds, r.pieces * r.rows * r.completion * layout.data)
