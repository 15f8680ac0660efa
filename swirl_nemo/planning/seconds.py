"""Seconds of each part of a step, from a data sheet's figures, operations counted, and the constants of calibration.py.

The same functions predict published runs (published.py) and this project's step.
"""

from dataclasses import dataclass

from ..config import HardwareConfig, Recompute, ScoringPrecision, SwirlConfig
from . import calibration as c
from .architecture import FLOAT, Model, Stage, heaviest, kinds
from .work import Lengths, Micro, PhaseWork, Rollout, phase_work

GIGA, TERA = 1e9, 1e12
ADAM_BYTES = 28  # of memory traffic for a parameter: weight, gradient and moments read, all but the gradient written


@dataclass(frozen=True)
class Machine:
    """Hardware, and how well the software over it uses it. `exposed`: shares of tensor-parallel exchange, of the
    gradients' and of the weights' that nothing hides; `passes` as calibration.FUSED; `slack`: waiting, as a factor;
    `ulysses`: context-parallel ranks trade tokens for heads (Jacobs et al. 2023), else keys go round in a ring."""

    hardware: HardwareConfig
    devices: int  # of a node
    exposed: tuple[float, float, float]
    passes: tuple[float, float, float] = c.FUSED
    slack: float = 1.0
    ulysses: bool = False

    @classmethod
    def of(cls, cfg: SwirlConfig) -> "Machine":
        """This project's: gradients' exchange alone may be overlapped."""
        exposed = (1.0, c.DATA_EXPOSED if cfg.parallel.overlap_grad_reduce else 1.0, 1.0)
        return cls(cfg.cluster.hardware, cfg.cluster.devices, exposed, c.EAGER, c.RL_SLACK, ulysses=True)

    def products(self, flops: float, fp8: bool = False) -> float:
        if fp8:
            return flops / (self.hardware.fp8_tflops * TERA * c.PRODUCT_FP8)
        return flops / (self.hardware.bf16_tflops * TERA * c.PRODUCT)

    def stream(self, size: float) -> float:
        return size / (self.hardware.memory_gb_s * GIGA * c.STREAM)

    def exchange(self, size: float, ranks: int) -> float:
        """`size` bytes that each of `ranks` neighbouring GPUs sends: within a node, or over the network."""
        inside = self.hardware.link_gb_s * c.LINK
        return size / ((inside if ranks <= self.devices else self.hardware.network_gb_s * c.NETWORK) * GIGA)


@dataclass(frozen=True)
class Pass:
    """A micro-batch through one pipeline stage: seconds of what the backward pass does twice, and of what not."""

    products: float
    attention: float
    streams: float
    exchange: float

    @property
    def forward(self) -> float:
        return self.products + self.attention + self.streams + self.exchange

    def backward(self, recompute: Recompute) -> float:
        """Attention's gradient is 2.5 of its forward pass (Dao 2023)."""
        again = {Recompute.none: 0.0, Recompute.selective: self.attention, Recompute.full: self.forward}[recompute]
        return 2 * self.products + 2.5 * self.attention + 2 * self.streams + self.exchange + again


def layers(model: Model, machine: Machine, stage: Stage, batch: Micro, fp8: bool) -> Pass:
    d, layout = model.d, model.layout
    t, tokens, pairs = layout.tensor, batch.tokens / layout.context, batch.pairs / layout.context
    edge = min(model.fp8_edge_layers * (stage.first + stage.last), stage.layers) if fp8 else stage.layers
    flops = 2 * tokens * d.products / t
    hidden, attention, inner = machine.passes
    size = hidden * d.h / model.split + attention * (d.q + 2 * d.k) / t + inner * (d.fc1 + d.f) / t
    casts = c.CAST_BYTES * (2 * d.h / model.split + (d.q + d.f) / t) * (stage.layers - edge)
    shared = machine.exchange(4 * tokens * d.h * model.w * (t - 1) / t, t)
    traded = 2 * (d.q + d.k) / layout.context if machine.ulysses else 4 * d.k
    shared += machine.exchange(tokens * traded / t * model.w * (layout.context - 1), t * layout.context)
    return Pass(
        machine.products(flops * edge) + machine.products(flops * (stage.layers - edge), fp8=True),
        4 * pairs * d.q / t * stage.layers / (machine.hardware.bf16_tflops * TERA * c.ATTENTION),
        machine.stream(tokens * (size * model.w * stage.layers + casts)),
        shared * stage.layers * machine.exposed[0],
    )


def head(model: Model, machine: Machine, batch: Micro) -> Pass:
    rows = batch.head / model.layout.context * model.d.vocab / model.layout.tensor
    return Pass(machine.products(2 * rows * model.d.h), 0.0, machine.stream(rows * FLOAT * c.LOGIT_PASSES / 3), 0.0)


def pipelined(model: Model, machine: Machine, batches: list[Micro], backward: bool, fp8: bool) -> float:
    """All micro-batches through all stages: the slowest stage's seconds, and those in which it waits for the first and
    the last (Narayanan et al. 2021)."""

    def seconds(stage: Stage, batch: Micro) -> float:
        passes = [layers(model, machine, stage, batch, fp8)] + [head(model, machine, batch)] * stage.last
        back = [one.backward(model.recompute if n == 0 else Recompute.none) for n, one in enumerate(passes)]
        return sum(one.forward for one in passes) + backward * sum(back)

    count = sum(batch.count for batch in batches)
    slowest = max(
        sum(batch.count * seconds(stage, batch) for batch in batches) for stage in kinds(model.a, model.layout)
    )
    bubble = (model.layout.pipeline - 1) / model.layout.virtual / count
    return slowest * (1 + bubble) * machine.slack


def optimizer_step(model: Model, machine: Machine) -> float:
    """Gradients are reduced and weights gathered over data-parallel ranks; each updates its shard."""
    layout, shards = model.layout, model.layout.shards
    count = heaviest(model.a, layout)
    _, gradients, weights = machine.exposed
    size = count * (FLOAT * gradients + model.w * weights) * (shards - 1) / shards
    return machine.exchange(size, layout.tensor * shards) + machine.stream(count / shards * ADAM_BYTES)


def decode(model: Model, machine: Machine, rows: float, prompt: float, completion: float, longest: float) -> float:
    """Reading weights for each of `longest` tokens, and keys and values of `rows` rows of `completion` on average."""
    d, a, t = model.d, model.a, model.layout.tensor
    weights = (a.num_layers * d.products + d.vocab * d.h) / t * model.w
    context = prompt + min(completion, longest / 2)
    keys = rows * completion * context * 2 * d.k / t * a.num_layers * model.w
    return (longest * weights + keys) / (machine.hardware.memory_gb_s * GIGA * c.DECODE)


# this project's step


@dataclass(frozen=True)
class Part:
    """Seconds, and the tokens of all GPUs that they were for; None where tokens say nothing."""

    seconds: float
    tokens: float | None = None


@dataclass(frozen=True)
class StepTime:
    role: str
    parts: dict[str, Part]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts.values())


def step_time(model: Model, machine: Machine, work: PhaseWork, scoring_fp8: bool) -> StepTime:
    """Of one phase, its parts in the order of phase.grpo_step."""
    replicas = model.layout.data
    parts = {"rollout": Part(rollout_seconds(model, machine, work.rollout), work.rollout.tokens * model.layout.shards)}
    parts["swap"] = Part(work.copies * copy_seconds(model, machine))
    for name, batch in work.passes.items():
        seconds = pipelined(model, machine, [batch], backward=False, fp8=scoring_fp8)
        parts[name] = Part(seconds, batch.count * batch.tokens * replicas)
    update = pipelined(model, machine, work.train, backward=True, fp8=model.fp8)
    tokens = sum(batch.count * batch.tokens for batch in work.train) * work.optimizer_steps * replicas
    parts["train"] = Part(work.optimizer_steps * (update + optimizer_step(model, machine)), tokens)
    return StepTime(work.role, parts)


def copy_seconds(model: Model, machine: Machine) -> float:
    """A weight set between host and device."""
    return heaviest(model.a, model.layout) * model.w / (machine.hardware.host_link_gb_s * GIGA * c.HOST_LINK)


def rollout_seconds(model: Model, machine: Machine, r: Rollout) -> float:
    """rollout/: prompts once for their group, then token after token until the longest row has ended; the waves keep
    all stages busy. A token waits for the memory or for Python to call operators, whichever takes longer."""
    a, layout = model.a, model.layout
    prompts = Micro(layout.pipeline, 0, r.prompts / layout.pipeline, r.prompt, 0, 0)
    prefill = pipelined(model, machine, [prompts], backward=False, fp8=False) / machine.slack
    memory = decode(model, machine, r.rows, r.prompt, r.completion, r.longest)
    calls = r.longest * a.num_layers * c.DECODE_CALLS * c.LAUNCH_SECONDS
    reduced = r.longest * a.num_layers * 2 * c.REDUCE_SECONDS if layout.tensor > 1 else 0.0
    size = c.SAMPLING_BYTES + c.SORTING_BYTES * r.truncates
    sampling = machine.stream(r.rows * r.completion * model.d.vocab * size)
    return r.pieces * (prefill + max(memory, calls) + reduced + sampling)


def step_times(cfg: SwirlConfig, model: Model, lengths: Lengths) -> list[StepTime]:
    machine = Machine.of(cfg)
    fp8 = model.fp8 and cfg.precision.scoring is ScoringPrecision.training
    works = [phase_work(cfg, role, lengths, model.layout) for role in cfg.alternation.order]
    return [step_time(model, machine, work, fp8) for work in works]
