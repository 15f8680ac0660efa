"""A configuration's plan, whether it fits, what would make it fit, and the fastest layouts that do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import Any

from ..checks import check, check_architecture
from ..config import ArchitectureConfig, Recompute, SwirlConfig, Weights
from .architecture import Layout, Model, architecture, parameters
from .memory import ROLLOUT, STANDING, TRAINING, DeviceMemory, Memory, memory
from .seconds import StepTime, step_times
from .work import Lengths

GB = 1e9
Change = dict[str, Any]  # values by dotted key


@dataclass(frozen=True)
class Misfit:
    """The first thing that does not fit: `needed` bytes with all that stands before it, of `there`."""

    what: str
    where: str
    needed: float
    there: float


@dataclass(frozen=True)
class Plan:
    parameters: int
    layout: Layout
    lengths: Lengths
    memory: Memory
    steps: list[StepTime]  # one a phase
    misfit: Misfit | None
    hours: float  # of all phases of all iterations


def make_plan(cfg: SwirlConfig, a: ArchitectureConfig, lengths: Lengths) -> Plan:
    """Raises ValueError where training would refuse the combination."""
    _check(cfg, a)
    model = Model.of(cfg, a)
    needed, steps = memory(cfg, a), step_times(cfg, model, lengths)
    seconds = sum(step.seconds * getattr(cfg.phase, step.role).steps for step in steps)
    hours = cfg.alternation.iterations * seconds / 3600
    return Plan(parameters(a), model.layout, lengths, needed, steps, misfit(cfg, needed), hours)


def misfit(cfg: SwirlConfig, needed: Memory) -> Misfit | None:
    """What stands on a GPU is looked at first, then training, rollout and scoring, then the host."""
    hardware = cfg.cluster.hardware
    there = hardware.memory_gb * GB
    device = max(needed.devices, key=lambda device: device.peak)
    for what, total in _growing(device):
        if total > there:
            return Misfit(what, f"on each GPU of pipeline stage {device.stage}", total, there)
    if needed.host.weight_sets > hardware.host_memory_gb * GB:
        return Misfit("named weight sets", "on each host", needed.host.weight_sets, hardware.host_memory_gb * GB)
    return None


def _growing(device: DeviceMemory) -> Iterator[tuple[str, float]]:
    total = device.parts["reserved"]
    for name in STANDING:
        total += device.parts[name]
        yield name, total
    for names in (TRAINING, ROLLOUT):
        passing = total
        for name in names:
            passing += device.parts[name]
            yield name, passing
    yield "scoring", total + device.scoring + device.parts["kept support"]


# other configurations


def changed(cfg: SwirlConfig, change: Change) -> SwirlConfig:
    """`cfg` with other values."""
    for key, value in change.items():
        cfg = _set(cfg, key.split("."), value)
    return cfg


def _set(node: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(node, **{name: _set(getattr(node, name), rest, value) if rest else value})


def overrides(change: Change) -> str:
    """As they are typed."""
    return " ".join(f"{key}={_typed(value)}" for key, value in change.items())


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.name if isinstance(value, Enum) else str(value)


def allowed(cfg: SwirlConfig, a: ArchitectureConfig) -> bool:
    """Whether training would take it."""
    try:
        _check(cfg, a)
    except ValueError:
        return False
    return True


def _check(cfg: SwirlConfig, a: ArchitectureConfig) -> None:
    """As training does before any process starts."""
    check(cfg, cfg.cluster.nodes * cfg.cluster.devices)
    check_architecture(cfg, a, "model.architecture" if cfg.model.architecture else f"{cfg.model.fwm}/model_config.yaml")


def mends(cfg: SwirlConfig, a: ArchitectureConfig) -> list[Change]:
    """Single changes with which everything fits, those that cost least time first; of a kind the smallest."""
    fitting = ([change for change in kind if _fits(changed(cfg, change), a)] for kind in _single_changes(cfg))
    return [kind[0] for kind in fitting if kind]


def _fits(cfg: SwirlConfig, a: ArchitectureConfig) -> bool:
    return allowed(cfg, a) and misfit(cfg, memory(cfg, a)) is None


def _single_changes(cfg: SwirlConfig) -> Iterator[list[Change]]:
    """By kind, smaller changes first."""
    parallel, factors = cfg.parallel, (2, 4, 8)
    yield [{"parallel.sequence": True}]
    for key in ("rollout_batch", "micro_batch", "score_batch"):
        size = getattr(parallel, key)
        yield [{f"parallel.{key}": size >> n} for n in range(1, size.bit_length())]
    yield [{"model.recompute": recompute} for recompute in (Recompute.selective, Recompute.full)]
    tensors = [parallel.tensor * n for n in factors if parallel.tensor * n <= cfg.cluster.devices]
    yield [{"parallel.tensor": tensor, "parallel.sequence": True} for tensor in tensors]
    yield [{"parallel.pipeline": parallel.pipeline * n} for n in factors]
    yield [{"cluster.nodes": cfg.cluster.nodes * n} for n in factors]
    yield [{"model.weights": Weights.shared}]


@dataclass(frozen=True)
class Found:
    change: Change
    plan: Plan


def search(cfg: SwirlConfig, lengths: Lengths, most: int) -> list[Found]:
    """The fastest `most` that fit, one of each tensor and pipeline parallel size, by the hours of all phases; precision
    and GPUs are as configured."""
    a = architecture(cfg)
    found = [
        Found(change, make_plan(changed(cfg, change), a, lengths))
        for layout in _layouts(cfg, a)
        for change in _fitting(cfg, a, layout)
    ]
    best: dict[tuple[int, int], Found] = {}
    for one in sorted(found, key=lambda one: one.plan.hours):
        best.setdefault((one.plan.layout.tensor, one.plan.layout.pipeline), one)
    return list(best.values())[:most]


def _fitting(cfg: SwirlConfig, a: ArchitectureConfig, layout: Change) -> Iterator[Change]:
    """With each kind of recomputation and the largest rollout batch that fits: the fewer pieces, the faster."""
    for recompute in Recompute:
        for rollout in _ROLLOUT:
            change = layout | {"model.recompute": recompute, "parallel.rollout_batch": rollout}
            other = changed(cfg, change)
            if not allowed(other, a):
                continue
            one = misfit(other, memory(other, a))
            if one is None:
                yield change
            if one is None or one.what in TRAINING:
                break
            if one.what in STANDING:
                return


def _layouts(cfg: SwirlConfig, a: ArchitectureConfig) -> Iterator[Change]:
    """Tensor parallel within a node; all that divide heads, layers and GPUs."""
    gpus = cfg.cluster.nodes * cfg.cluster.devices
    for tensor, pipeline in product(_divisors(cfg.cluster.devices), _divisors(a.num_layers)):
        if pipeline > _MOST_STAGES or a.num_query_groups % tensor or gpus % (tensor * pipeline * cfg.parallel.context):
            continue
        for micro in _MICRO:
            yield {
                "parallel.tensor": tensor,
                "parallel.sequence": tensor > 1,
                "parallel.pipeline": pipeline,
                "parallel.micro_batch": micro,
            }


_MOST_STAGES = 16
_MICRO, _ROLLOUT = (1, 2, 4, 8, 16), (512, 256, 128, 64)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
