"""Bytes on each GPU and host, for the longest sequences that a configuration allows.

Formulas follow what autograd keeps in this project's code (actor/, rollout/, weights.py); docs/planning.md has them,
with their sources. Widths by Dimensions' letters; w bytes of an activation; t tensor-parallel ranks.
"""

from dataclasses import dataclass

from ..config import ArchitectureConfig, Dtype, Recompute, SwirlConfig, Weights
from .architecture import FLOAT, Layout, Model, Stage, heaviest, kinds, parameters
from .calibration import RESERVED_GB
from .work import Lengths, Micro, Rollout, phase_work

MOMENTS = 8  # bytes of a parameter's two Adam moments
STANDING = ("weights", "gradients", "optimizer state")
TRAINING = ("activations", "backward pass of a layer or the head")
ROLLOUT = ("keys and values", "prefill or sampling", "kept support")


# what stands between steps


def standing(model: Model, stage: Stage) -> dict[str, float]:
    """Gradients are float32 (NeMo's grad_sync_dtype), the optimizer's state is divided among data-parallel ranks."""
    count = stage.parameters(model.a, model.layout.tensor)
    return {
        "weights": count * model.w + _fp8_weights(model, stage),
        "gradients": count * FLOAT,
        "optimizer state": count * (MOMENTS + model.master) / model.layout.shards,
    }


def _fp8_weights(model: Model, stage: Stage) -> float:
    """Transformer Engine keeps each product's weight and its transpose in FP8, beside the weight or in its place."""
    if not model.fp8:
        return 0.0
    edge = model.fp8_edge_layers * (stage.first + stage.last)
    products = (stage.layers - edge) * model.d.products / model.layout.tensor
    return products * (2 - (model.w if model.fp8_params else 0))


# a training step


def training(model: Model, stage: Stage, batch: Micro, micro_batches: int) -> dict[str, float]:
    """Peak over what stands: when a stage's activations are all there, the head's backward pass comes, or a layer's."""
    whole = model.recompute is Recompute.full
    kept = _hidden(model, batch) if whole else kept_by_layer(model, batch)
    layer = layer_backward(model, batch) + (kept_by_layer(model, batch) if whole else 0.0)
    if stage.first and stage.last and model.a.share_embeddings_and_output_weights:
        layer += _head_gradient(model)  # waits for the embedding's
    head = 0.0
    if stage.last:
        states = _scored(model, batch) * model.d.h * model.w
        head = _norm(model, batch) + states + head_backward(model, batch)
    return {
        "activations": in_flight(model.layout, stage, micro_batches) * stage.layers * kept,
        "backward pass of a layer or the head": max(layer, head),
    }


def kept_by_layer(model: Model, batch: Micro) -> float:
    """By autograd, of one layer for one micro-batch, while it is not recomputed as a whole."""
    d, w, t = model.d, model.w, model.layout.tensor
    tokens, places = _tokens(model, batch), batch.rows * (batch.prefix + batch.own) / model.layout.context
    operand = 1 if model.fp8 else w  # linear layers' inputs
    norms = 2 * (_norm(model, batch) + tokens * d.h * operand / model.split)
    mlp = tokens * ((d.fc1 + d.f) * w + d.f * operand) / t if d.fc1 > d.f else tokens * d.f * (w + operand) / t
    attention = tokens * ((d.q + 2 * d.k) + d.q + d.k) * w / t + tokens * d.q * operand / t
    if model.recompute is not Recompute.selective:
        repeated = places * 2 * d.k * w / t  # a prefix's keys and values once a row
        mask = batch.rows * batch.own * (batch.prefix + batch.own) * w
        attention += tokens * (d.q * w + model.a.num_attention_heads * FLOAT) / t + repeated + mask
    return norms + attention + mlp


def _tokens(model: Model, batch: Micro) -> float:
    return batch.tokens / model.layout.context


def _scored(model: Model, batch: Micro) -> float:
    return batch.head / model.layout.context


def _hidden(model: Model, batch: Micro) -> float:
    return _tokens(model, batch) * model.d.h * model.w / model.split


def _norm(model: Model, batch: Micro) -> float:
    """What a norm keeps: its input; of bf16, its input in float32 and that normalised."""
    return _hidden(model, batch) * (1 if model.dtype is Dtype.fp32 else 2 * FLOAT // model.w)


def layer_backward(model: Model, batch: Micro) -> float:
    """Gradients of the MLP's inner width, of two hidden states and of its second weight; and what sequence parallelism
    gathers again."""
    d, t = model.d, model.layout.tensor
    gathered = 2 * (1 - 1 / model.split)
    return _tokens(model, batch) * (d.fc1 / t + (2 + gathered) * d.h) * model.w + d.h * d.f / t * model.w


def head_backward(model: Model, batch: Micro) -> float:
    """Of actor.logprobs: the weight's gradient, a chunk's logits and their gradient, and that of all hidden states."""
    return _head_gradient(model) + _logits(model, batch, 1, 2) + _scored(model, batch) * model.d.h * model.w


def _head_gradient(model: Model) -> float:
    return model.d.vocab / model.layout.tensor * model.d.h * model.w


def head_forward(model: Model, batch: Micro) -> float:
    """A chunk's logits and their exponents."""
    return _logits(model, batch, 2, 1)


def _logits(model: Model, batch: Micro, copies: int, products: int) -> float:
    """`copies` of a chunk's float32 logits, one more from the second chunk on, while the one before is not let go; and
    of bf16 models `products` in bf16."""
    copies += _scored(model, batch) > model.logit_chunk
    chunk = min(model.logit_chunk, _scored(model, batch)) * model.d.vocab / model.layout.tensor
    return chunk * (copies * FLOAT + products * (model.w % FLOAT))


def in_flight(layout: Layout, stage: Stage, micro_batches: int) -> float:
    """Micro-batches whose activations a stage holds at once: 1F1B, or its interleaved form (Narayanan et al. 2021)."""
    behind = layout.pipeline - stage.number
    if layout.virtual == 1:
        return min(micro_batches, behind)
    chunks = 2 * (behind - 1) + (layout.virtual - 1) * layout.pipeline + 1
    return min(micro_batches, chunks / layout.virtual)


def scoring(model: Model, stage: Stage, batch: Micro) -> float:
    """Peak of a pass without gradients over what stands: the head's, or an MLP's."""
    head = _hidden(model, batch) + _scored(model, batch) * model.d.h * model.w + head_forward(model, batch)
    sends = _hidden(model, batch) if stage.first and not stage.last else 0.0
    layer = _layer_forward(model, _tokens(model, batch), model.split) + sends
    return max(layer, head if stage.last else 0.0)


def _layer_forward(model: Model, tokens: float, split: int) -> float:
    """An MLP's inner width, its activation and their product; five hidden states; cosines and sines."""
    d, t = model.d, model.layout.tensor
    return tokens * ((d.fc1 + 2 * d.f) / t + 5 * d.h / split + 2 * model.a.kv_channels) * model.w


# rollout


def rollout(model: Model, stage: Stage, r: Rollout) -> dict[str, float]:
    """Peak of generation over what stands, by part."""
    d, t = model.d, model.layout.tensor
    waves = min(model.layout.pipeline, r.prompts)
    places = r.prompts * r.prompt + r.rows * r.longest
    # float32 logits, their log-softmax and in double its cumulative sums; truncation sorts values and int64 indices
    row = d.vocab * (2 * FLOAT + 2 * FLOAT + (2 * FLOAT + 8 if r.truncates else 0))
    support = r.pieces * r.rows * r.longest * d.vocab / 8 if r.truncates else 0.0
    sampled = r.rows / waves * row if stage.last else 0.0
    passing = max(sampled, _layer_forward(model, r.prompts / waves * r.prompt, split=1))
    return dict(zip(ROLLOUT, (stage.layers * 2 * d.k / t * places * model.w, passing, support), strict=True))


# a configuration


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes by name on a GPU of pipeline stage `stage`. What stands is there with either of the other two."""

    stage: int
    parameters: int
    parts: dict[str, float]
    scoring: float

    def total(self, names: tuple[str, ...]) -> float:
        return sum(self.parts[name] for name in names)

    @property
    def peak(self) -> float:
        passing = max(self.total(TRAINING), self.total(ROLLOUT), self.scoring + self.parts["kept support"])
        return self.total(STANDING) + passing + self.parts["reserved"]


@dataclass(frozen=True)
class HostMemory:
    """Bytes on a node: named weight sets of all its GPUs."""

    sets: int
    weight_sets: float


@dataclass(frozen=True)
class Checkpoint:
    """Bytes of a checkpoint within a phase, and seconds to write them from all nodes at once."""

    weights: float
    optimizer: float
    seconds: float


@dataclass(frozen=True)
class Memory:
    devices: list[DeviceMemory]  # of the first, second and last pipeline stage
    host: HostMemory
    checkpoint: Checkpoint


def memory(cfg: SwirlConfig, a: ArchitectureConfig) -> Memory:
    model = Model.of(cfg, a)
    return Memory(
        [_device(cfg, model, stage) for stage in kinds(a, model.layout)], _host(cfg, model), _checkpoint(cfg, model)
    )


def _device(cfg: SwirlConfig, model: Model, stage: Stage) -> DeviceMemory:
    """The largest of all phases, part by part."""
    phases = [phase_work(cfg, role, Lengths.longest(cfg), model.layout) for role in cfg.alternation.order]
    parts: dict[str, float] = {}
    for work in phases:
        micro_batches = sum(batch.count for batch in work.train)
        seen = [training(model, stage, batch, micro_batches) for batch in work.train]
        seen.append(rollout(model, stage, work.rollout))
        for part in seen:
            parts |= {name: max(value, parts.get(name, 0.0)) for name, value in part.items()}
    return DeviceMemory(
        stage.number,
        stage.parameters(model.a, model.layout.tensor),
        standing(model, stage) | parts | {"reserved": RESERVED_GB * 1e9},
        max(scoring(model, stage, batch) for work in phases for batch in work.passes.values()),
    )


def weight_sets(cfg: SwirlConfig) -> int:
    """Held on the host within a phase: each role's and the reference, or the shared one and the reference."""
    return 2 if cfg.model.weights is Weights.shared else 3


def _host(cfg: SwirlConfig, model: Model) -> HostMemory:
    sets = weight_sets(cfg)
    return HostMemory(sets, sets * heaviest(model.a, model.layout) * model.w * cfg.cluster.devices)


def _checkpoint(cfg: SwirlConfig, model: Model) -> Checkpoint:
    """Weight sets as they are; the optimizer's state with a float32 copy of the weights, whatever their dtype."""
    count = parameters(model.a)
    weights, optimizer = weight_sets(cfg) * count * model.w, count * (MOMENTS + FLOAT)
    speed = cfg.cluster.nodes * cfg.cluster.hardware.storage_gb_s * 1e9
    return Checkpoint(weights, optimizer, (weights + optimizer) / speed)
