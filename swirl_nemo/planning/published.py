"""Published runs, each beside what the plan says: those that calibration.py is fitted to, those that were in view while
its assumptions were chosen, and those that were looked at once when all was fixed.

Sources. Megatron-LM: README of commit d98e8a6, "Training Speed and Scalability", images/model_table.png (sequences of
4,096, vocabulary of 131,072; micro-batch of 1 and no virtual stages assumed). NeMo 24.07: docs/source/performance/
performance_summary.md of NVIDIA/NeMo. Megatron-Bridge: docs/performance-summary-archive.md. NeMo-RL 0.3: its blog of
2025-07-21 and examples/configs of that week; 0.4, 0.5: docs/about/performance-summary.md of commits cff17f8, 108bffd.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

from ..config import ArchitectureConfig, Dtype, HardwareConfig, Recompute
from . import calibration as c
from .architecture import Dimensions, Layout, Model, parameters
from .seconds import GIGA, Machine, decode, optimizer_step, pipelined
from .work import Micro


class Use(Enum):
    fitted = "fitted"
    seen = "seen"  # while assumptions were chosen
    held_out = "held out"


def _model(layers, hidden, ffn, heads, groups, vocab, head=None, gated=True, qk_norm=False) -> ArchitectureConfig:
    head = head or hidden // heads
    activation = "fast-swiglu" if gated else "gelu"
    sizes = (layers, hidden, ffn, heads, groups, head, 8192, vocab, vocab)
    return ArchitectureConfig(*sizes, not gated, not gated, False, qk_norm, "rmsnorm", 1e-5, activation, 1e4)


def _gpt(layers: int, hidden: int, heads: int, vocab: int = 51200) -> ArchitectureConfig:
    return _model(layers, hidden, 4 * hidden, heads, heads, vocab, gated=False)


LLAMA2_7B, LLAMA2_13B = _model(32, 4096, 11008, 32, 32, 32000), _model(40, 5120, 13824, 40, 40, 32000)
LLAMA2_70B = _model(80, 8192, 28672, 64, 8, 32000)
LLAMA3_8B, LLAMA3_70B = _model(32, 4096, 14336, 32, 8, 128256), _model(80, 8192, 28672, 64, 8, 128256)
LLAMA3_405B = _model(126, 16384, 53248, 128, 8, 128256)
NEMOTRON_8B = _model(32, 4096, 16384, 32, 32, 256000, gated=False)  # NeMo's nemotron.py
NEMOTRON_22B = _model(40, 6144, 24576, 48, 48, 256000, gated=False)
NEMOTRON_340B = _model(96, 18432, 73728, 96, 8, 256000, gated=False)
QWEN3_32B = _model(64, 5120, 25600, 64, 8, 151936, head=128, qk_norm=True)
DGX_EXPOSED = (c.TENSOR_EXPOSED, c.DATA_EXPOSED, c.DATA_EXPOSED)


# pre-training and fine-tuning


@dataclass(frozen=True)
class Training:
    """`figure`: tokens/s of a GPU, or where `flops` says so TFLOP/s of a GPU by Megatron-LM's count."""

    name: str
    a: ArchitectureConfig
    gpus: int
    batch: int  # sequences
    micro_batch: int
    length: int
    tensor: int
    pipeline: int
    context: int
    virtual: int
    figure: float
    fp8: bool = True
    flops: bool = False
    use: Use = Use.seen

    def predicted(self, hardware: HardwareConfig) -> float:
        copy = self.tensor * self.pipeline * self.context
        layout = Layout(self.tensor, self.pipeline, self.virtual, self.context, self.gpus // copy, sequence=True)
        model = Model(self.a, layout, Dtype.bf16, Recompute.none, self.length, fp8=self.fp8)
        machine = Machine(hardware, 8, DGX_EXPOSED)
        count = self.batch // layout.data // self.micro_batch
        batch = Micro(count, self.micro_batch, 0, 0, self.length, self.length)
        seconds = pipelined(model, machine, [batch], backward=True, fp8=self.fp8) + optimizer_step(model, machine)
        tokens = self.batch * self.length / seconds / self.gpus
        return tokens * self._flops_of_a_token / 1e12 if self.flops else tokens

    @property
    def _flops_of_a_token(self) -> float:
        """Narayanan et al. 2021, equation 3, without recomputation: attention over whole sequences."""
        d = Dimensions(self.a)
        layers = 72 * self.a.num_layers * d.h**2
        return layers * (1 + self.length / (6 * d.h) + d.vocab / (12 * self.a.num_layers * d.h))


def _megatron(name, layers, hidden, heads, tensor, pipeline, batch, figure, use=Use.seen) -> Training:
    gpus = 48 * tensor * pipeline
    layout = (tensor, pipeline, 1, 1)
    a = _gpt(layers, hidden, heads, 131072)
    return Training(f"Megatron-LM {name}", a, gpus, batch, 1, 4096, *layout, figure, False, True, use)


_NEMO, _BRIDGE = "NeMo 24.07 FP8", "Megatron-Bridge FP8"
TRAININGS = [
    _megatron("1.7B", 24, 2048, 16, 1, 1, 192, 408.8),
    _megatron("7.1B", 30, 4096, 32, 2, 1, 192, 465.9),
    _megatron("16B", 32, 6144, 48, 4, 1, 192, 489.1),
    _megatron("32B", 48, 7168, 56, 8, 1, 192, 459.6),
    _megatron("70B", 84, 8192, 64, 8, 2, 384, 419.7, Use.fitted),
    _megatron("119B", 92, 10240, 80, 8, 4, 768, 420.5),
    _megatron("177B", 96, 12288, 96, 8, 6, 1152, 432.8),
    _megatron("314B", 96, 16384, 128, 8, 8, 1536, 474.4),
    _megatron("462B", 112, 18432, 144, 8, 16, 3072, 459.9),
    Training(f"{_NEMO} GPT3-5B", _gpt(24, 4096, 32), 64, 2048, 4, 2048, 1, 1, 1, 1, 22521),
    Training(f"{_NEMO} GPT3-20B", _gpt(44, 6144, 48), 64, 256, 2, 2048, 2, 1, 1, 1, 5851),
    Training(f"{_NEMO} GPT3-175B", _gpt(96, 12288, 96), 128, 256, 1, 2048, 4, 8, 1, 6, 726),
    Training(f"{_NEMO} GPT3-175B", _gpt(96, 12288, 96), 512, 2048, 2, 2048, 4, 8, 1, 6, 782),
    Training(f"{_NEMO} Llama2-7B", LLAMA2_7B, 8, 128, 1, 4096, 1, 1, 1, 1, 16847),
    Training(f"{_NEMO} Llama2-13B", LLAMA2_13B, 16, 128, 1, 4096, 1, 4, 1, 10, 8646),
    Training(f"{_NEMO} Llama2-70B", LLAMA2_70B, 64, 128, 1, 4096, 4, 4, 1, 20, 1707, use=Use.fitted),
    Training(f"{_NEMO} Llama3-8B", LLAMA3_8B, 8, 128, 1, 8192, 1, 1, 2, 1, 12036),
    Training(f"{_NEMO} Llama3-70B", LLAMA3_70B, 64, 128, 1, 8192, 4, 4, 2, 5, 1533),
    Training(f"{_NEMO} Llama2-7B SFT", LLAMA2_7B, 8, 32, 1, 4096, 1, 1, 1, 1, 17120),
    # Virtual stages are not stated for fine-tuning: as for pre-training
    Training(f"{_NEMO} Llama2-13B SFT", LLAMA2_13B, 8, 32, 1, 4096, 1, 4, 1, 10, 9741),
    Training(f"{_NEMO} Llama2-70B SFT", LLAMA2_70B, 16, 32, 1, 4096, 4, 4, 1, 20, 1833),
    Training(f"{_NEMO} Nemotron-8B", NEMOTRON_8B, 64, 256, 4, 4096, 2, 1, 1, 1, 12701, use=Use.held_out),
    Training(f"{_NEMO} Nemotron-22B", NEMOTRON_22B, 64, 256, 2, 4096, 2, 4, 1, 10, 4256, use=Use.held_out),
    Training(f"{_NEMO} Nemotron-340B", NEMOTRON_340B, 128, 32, 1, 4096, 8, 8, 1, 12, 322, use=Use.held_out),
    Training(f"{_BRIDGE} 25.11 Llama3-8B", LLAMA3_8B, 8, 128, 1, 8192, 1, 1, 1, 1, 14451),
    Training(f"{_BRIDGE} 25.11 Llama3-70B", LLAMA3_70B, 64, 128, 1, 8192, 4, 8, 1, 5, 1602),
    Training(f"{_BRIDGE} 26.02 Llama3-70B", LLAMA3_70B, 64, 256, 1, 8192, 4, 8, 1, 5, 1621),
    Training(f"{_BRIDGE} 25.11 Llama3.1-405B", LLAMA3_405B, 1024, 512, 1, 8192, 8, 8, 2, 8, 292),
    Training(f"{_BRIDGE} 26.02 Llama3.1-405B", LLAMA3_405B, 1024, 1536, 1, 8192, 8, 8, 2, 8, 311),
]


# GRPO steps of NeMo-RL: 2,048 rollouts, four optimizer steps of 512, packed to the longest sequence


@dataclass(frozen=True)
class Grpo:
    """Mean tokens a prompt and a completion; `figures`: seconds by part, or "step" alone."""

    name: str
    a: ArchitectureConfig
    gpus: int
    tensor: int
    pipeline: int
    generation: int  # tensor-parallel ranks of a vLLM engine
    prompt: float
    completion: float
    figures: dict[str, float]
    sequence: bool = False
    recompute: Recompute = Recompute.none
    use: Use = Use.seen
    context: int = 1
    length: int = 4096  # of a sequence, at most
    longest: int | None = None  # completion; None: as long as a sequence may be

    ROLLOUTS, OPTIMIZER_STEPS, PACKED = 2048, 4, 0.9

    def predicted(self, hardware: HardwareConfig) -> dict[str, float]:
        copy = self.tensor * self.pipeline * self.context
        layout = Layout(self.tensor, self.pipeline, 1, self.context, self.gpus // copy, self.sequence)
        model = Model(self.a, layout, Dtype.bf16, self.recompute, self.length)
        machine = Machine(hardware, 8, (1.0, c.DATA_EXPOSED, c.DATA_EXPOSED), slack=c.RL_SLACK)
        update = pipelined(model, machine, [self._packed(layout.data)], backward=True, fp8=False)
        forward = pipelined(model, machine, [self._packed(layout.data)], backward=False, fp8=False)
        engine = replace(model, layout=Layout(self.generation, 1, 1, 1, self.gpus // self.generation, False))
        rows, longest = self.ROLLOUTS / engine.layout.data, self.longest or self.length - self.prompt
        parts = {
            "training": self.OPTIMIZER_STEPS * (update + optimizer_step(model, machine)),
            "refit": parameters(self.a) * model.w / self.generation / (c.REFIT_GB_S * GIGA),
            "generation": decode(engine, machine, rows, self.prompt, self.completion, longest),
            "log-probs": 2 * self.OPTIMIZER_STEPS * forward,  # the policy's and the reference's
        }
        return parts | {"step": sum(parts.values())}

    def _packed(self, data: int) -> Micro:
        length = self.prompt + self.completion
        tokens = self.ROLLOUTS * length / self.OPTIMIZER_STEPS / data
        count = math.ceil(tokens / self.length / self.PACKED)
        rows = tokens / count / length
        return Micro(count, rows, 0, 0, length, length)


# Prompts: what 0.4's tokens/s/GPU leave of a sequence beside its average completion, 130 and 107 tokens
_V3 = "NeMo-RL 0.3"
STEPS = [
    Grpo(
        f"{_V3} Llama 3.1 70B, 64 GPUs",
        *(LLAMA3_70B, 64, 4, 4, 4, 130, 398),
        {"training": 28, "refit": 14, "generation": 84, "log-probs": 18, "step": 147},
        use=Use.fitted,
    ),
    Grpo(
        f"{_V3} Llama 3.1 8B, 8 GPUs",
        *(LLAMA3_8B, 8, 1, 1, 1, 130, 795),
        {"training": 28, "refit": 5, "generation": 58, "log-probs": 18, "step": 112},
    ),
    Grpo(
        f"{_V3} Qwen3 32B, 64 GPUs",
        *(QWEN3_32B, 64, 4, 2, 4, 107, 3283),
        {"training": 68, "refit": 7, "generation": 96, "log-probs": 40, "step": 213},
    ),
    Grpo(
        f"{_V3} Llama 3.3 70B, 128 GPUs, 16k",  # tensor, pipeline and engine as for 64 GPUs: not stated
        *(LLAMA3_70B, 128, 4, 4, 4, 130, 749),
        {"training": 64, "refit": 17, "generation": 287, "log-probs": 75, "step": 445},
        use=Use.held_out,
        context=4,
        length=16384,
    ),
    *(
        Grpo(name, LLAMA3_8B, 16, 1, 2, 1, prompt, completion, {"step": step}, False, Recompute.full, Use.held_out)
        for name, prompt, completion, step in (
            ("NeMo-RL 0.4 Llama 3.1 8B, 16 GPUs", 130, 1060, 97.7),
            ("NeMo-RL 0.5 Llama 3.1 8B, 16 GPUs", 127, 1019, 92.8),
        )
    ),
    *(
        Grpo(name, QWEN3_32B, 32, 4, 4, 4, prompt, completion, {"step": step}, True, use=Use.held_out)
        for name, prompt, completion, step in (
            ("NeMo-RL 0.4 Qwen3 32B, 32 GPUs", 107, 3206, 393),
            ("NeMo-RL 0.5 Qwen3 32B, 32 GPUs", 104, 3251, 376),
        )
    ),
]


@dataclass(frozen=True)
class Row:
    """One published figure."""

    name: str
    published: float
    predicted: float
    use: Use

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def rows(hardware: HardwareConfig) -> list[Row]:
    found = [Row(run.name, run.figure, run.predicted(hardware), run.use) for run in TRAININGS]
    for step in STEPS:
        predicted = step.predicted(hardware)
        found += [
            Row(f"{step.name}, {part}", seconds, predicted[part], step.use) for part, seconds in step.figures.items()
        ]
    return found
