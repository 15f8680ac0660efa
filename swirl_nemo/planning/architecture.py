"""A model's dimensions, its parameters on one rank, and which layers and vocabulary matrices a pipeline stage holds."""

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import OmegaConf

from ..config import ArchitectureConfig, Dtype, Fp8, Recompute, SwirlConfig

FLOAT = 4  # bytes of a float32

# What an imported checkpoint's model_config.yaml leaves out where its family has none (checkpoint/families)
_UNSAID = {"qkv_bias": False, "qk_layernorm": False}


def architecture(cfg: SwirlConfig) -> ArchitectureConfig:
    """model.architecture, or what model.fwm's model_config.yaml says.

    Raises ValueError where there is neither.
    """
    if cfg.model.architecture is not None:
        return cfg.model.architecture
    file = Path(cfg.model.fwm) / "model_config.yaml"
    if not file.is_file():
        raise ValueError(
            f"model.fwm={cfg.model.fwm}: no model_config.yaml in it: import the model, "
            f"or give dimensions alone with model=llama3_70b or another that names model/architecture"
        )
    known = OmegaConf.to_container(OmegaConf.load(file))
    names = {field.name for field in fields(ArchitectureConfig)}
    return ArchitectureConfig(**_UNSAID | {name: value for name, value in known.items() if name in names})


@dataclass(frozen=True)
class Layout:
    """How a model is divided among GPUs. `sequence`: norms and residuals are too, along the sequence."""

    tensor: int
    pipeline: int
    virtual: int
    context: int
    data: int
    sequence: bool

    @classmethod
    def of(cls, cfg: SwirlConfig) -> "Layout":
        parallel = cfg.parallel
        copy = parallel.tensor * parallel.pipeline * parallel.context
        return cls(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual=1,  # training and rollouts here have one chunk of layers a stage
            context=parallel.context,
            data=cfg.cluster.nodes * cfg.cluster.devices // copy,
            sequence=parallel.sequence,
        )

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def shards(self) -> int:
        """Into how many the distributed optimizer divides a rank's parameters: data and context parallel ranks."""
        return self.data * self.context


@dataclass(frozen=True)
class Dimensions:
    """Sizes by the letters that formulas use: h hidden, f feed-forward, q and k widths of queries and of keys."""

    a: ArchitectureConfig

    @property
    def h(self) -> int:
        return self.a.hidden_size

    @property
    def f(self) -> int:
        return self.a.ffn_hidden_size

    @property
    def q(self) -> int:
        return self.a.num_attention_heads * self.a.kv_channels

    @property
    def k(self) -> int:
        return self.a.num_query_groups * self.a.kv_channels

    @property
    def vocab(self) -> int:
        return self.a.override_vocab_size

    @property
    def fc1(self) -> int:
        """Outputs of the MLP's first layer: gate and up where it is gated."""
        return self.f * (2 if "glu" in self.a.activation else 1)

    @property
    def products(self) -> int:
        """Weights of a layer's four matrix products, of all tensor-parallel ranks together."""
        return self.h * (self.q + 2 * self.k) + self.q * self.h + self.h * self.fc1 + self.f * self.h

    def layer_parameters(self, tensor: int) -> int:
        """Of one layer on one rank."""
        bias = self.a.bias
        split = self.products + (self.q + 2 * self.k) * (bias or self.a.qkv_bias) + self.fc1 * bias
        whole = 2 * self.norm + 2 * self.h * bias + 2 * self.a.kv_channels * self.a.qk_layernorm
        return split // tensor + whole

    @property
    def norm(self) -> int:
        """A norm's parameters: a layer norm has a bias too."""
        return self.h * (1 if self.a.normalization == "rmsnorm" else 2)


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: its layers, and whether it has the embedding and the head."""

    number: int
    layers: int
    first: bool
    last: bool

    def parameters(self, a: ArchitectureConfig, tensor: int) -> int:
        """On one rank. A tied head on another stage than the embedding is a copy of it."""
        d = Dimensions(a)
        matrices = self.first + (self.last and not (self.first and a.share_embeddings_and_output_weights))
        return self.layers * d.layer_parameters(tensor) + matrices * d.vocab * d.h // tensor + self.last * d.norm


def stages(a: ArchitectureConfig, layout: Layout) -> list[Stage]:
    last = layout.pipeline - 1
    return [Stage(n, a.num_layers // layout.pipeline, n == 0, n == last) for n in range(layout.pipeline)]


def kinds(a: ArchitectureConfig, layout: Layout) -> list[Stage]:
    """First, second and last stage: others do as much as the second, and hold less for the backward pass."""
    every = stages(a, layout)
    return [every[number] for number in sorted({0, min(1, len(every) - 1), len(every) - 1})]


def heaviest(a: ArchitectureConfig, layout: Layout) -> int:
    """Parameters on one rank of the stage that has most."""
    return max(stage.parameters(a, layout.tensor) for stage in kinds(a, layout))


def parameters(a: ArchitectureConfig) -> int:
    """Of the whole model."""
    return Stage(0, a.num_layers, True, True).parameters(a, 1)


@dataclass(frozen=True)
class Model:
    """What of a configuration decides about a GPU's memory."""

    a: ArchitectureConfig
    layout: Layout
    dtype: Dtype
    recompute: Recompute
    logit_chunk: int
    fp8: bool = False
    fp8_params: bool = False
    fp8_edge_layers: int = 0

    @classmethod
    def of(cls, cfg: SwirlConfig, a: ArchitectureConfig) -> "Model":
        precision = cfg.precision
        fp8 = precision.fp8 is not Fp8.none and not precision.emulate
        return cls(
            a,
            Layout.of(cfg),
            precision.dtype,
            cfg.model.recompute,
            cfg.model.logit_chunk,
            fp8,
            fp8 and precision.fp8_params,
            precision.fp8_edge_layers,
        )

    @property
    def d(self) -> Dimensions:
        return Dimensions(self.a)

    @property
    def w(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.dtype is Dtype.bf16 else FLOAT

    @property
    def master(self) -> int:
        """Of a weight's float32 copy in the optimizer, where the weight is none itself."""
        return FLOAT if self.dtype is Dtype.bf16 else 0

    @property
    def split(self) -> int:
        """Ranks among which norms and residuals divide their tokens."""
        return self.layout.tensor if self.layout.sequence else 1
