"""What the types of config.py cannot say, checked before any process group starts.

Each fault is a ValueError of one line: KEY=VALUE: what is wrong: how to mend it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from .config import (
    Attention,
    Dtype,
    Fp8,
    Layers,
    PhaseConfig,
    Recompute,
    RoleDataConfig,
    RoleName,
    SftConfig,
    SwirlConfig,
    Tokens,
    Weights,
)
from .evaluation.suites.config import SuiteConfig
from .kernels import lack


def check(cfg: SwirlConfig, world_size: int) -> None:
    """Values and their combinations, for `world_size` processes; reads no file.

    Raises ValueError, one line.
    """
    _check_parallel(cfg, world_size)
    replicas = world_size // cfg.parallel.processes
    for role in ("fwm", "idm"):
        _check_data(f"data.{role}", getattr(cfg.data, role), cfg.model.max_length)
        _check_phase(f"phase.{role}", getattr(cfg.phase, role), replicas)
    _require("data.history", cfg.data.history, *_NOT_NEGATIVE)
    if cfg.data.idm.tokens is Tokens.image:
        raise ValueError("data.idm.tokens=image: an action is text: give text")
    if cfg.data.fwm.tokens is Tokens.image and cfg.eval.plans:
        raise ValueError(f"eval.plans={cfg.eval.plans}: a planner compares facts, which images do not name: give 0")
    _check_sft("pretrain", cfg.pretrain, replicas)
    for name in ("without_action", "renamed"):
        _require(f"pretrain.{name}", getattr(cfg.pretrain, name), lambda v: 0 <= v <= 1, "between 0 and 1")
    _check_sft("warmup", cfg.warmup, replicas)
    for key in ("pretrain", "warmup") if cfg.model.weights is Weights.shared else ("pretrain",):
        _require(f"{key}.batch", getattr(cfg, key).batch, lambda v: v >= 2, "at least 2: a row is read in both roles")
    _check_alternation(cfg)
    _check_precision(cfg)
    _check_kernels(cfg)
    if cfg.suite is not None:
        _check_suite(cfg.suite)
    _require(
        "run.name", cfg.run.name, lambda v: v and v not in (".", "..", "latest") and "/" not in v, "a folder's name"
    )
    _require_all("run", cfg.run, _NOT_NEGATIVE, "save_every", "keep_best")
    _require_all("run", cfg.run, _POSITIVE, "keep", "max_nonfinite")
    for name in ("drift_warn", "drift_stop"):
        _require(f"run.{name}", getattr(cfg.run, name), lambda v: v is None or v > 0, "over 0, or null")
    _require_all("model", cfg.model, _POSITIVE, "max_length", "logit_chunk")
    _require_all("eval", cfg.eval, _NOT_NEGATIVE, "transitions", "samples", "horizon", "plans")
    _require_all("eval", cfg.eval, _POSITIVE, "batch")
    _require_all("optimizer", cfg.optimizer, _POSITIVE, "eps", "clip_grad")
    _require_all("optimizer", cfg.optimizer, _FRACTION, "beta1", "beta2")
    _require_all("optimizer", cfg.optimizer, _NOT_NEGATIVE, "weight_decay")
    _require_all("annotate", cfg.annotate, _NOT_NEGATIVE, "pool")
    _require_all("annotate", cfg.annotate, _POSITIVE, "candidates")
    _require("cluster.backend", cfg.cluster.backend, lambda v: v in ("gloo", "nccl"), "gloo on CPUs, nccl on GPUs")
    _require_all("cluster", cfg.cluster, _POSITIVE, "timeout_minutes", "nodes", "devices")


def check_files(cfg: SwirlConfig) -> None:
    """Every file and folder that the configuration names is there, and the models can be split as it asks.

    Raises ValueError, one line, with the key and the path.
    """
    for key in ("labelled", "unlabelled", "validation", "test"):
        path = getattr(cfg.data, key)
        if not Path(path).is_file():
            raise ValueError(f"data.{key}={path}: no such file: collect it (swirl collect) or give data.{key}=FILE")
    folder = cfg.data.image_tokenizer
    if folder is not None and not Path(folder).is_dir():  # the report, after hours, would be the first to miss it
        raise ValueError(
            f"data.image_tokenizer={folder}: no such folder: train one (swirl train-tokenizer), or give null and no "
            "images are drawn"
        )
    for path in cfg.data.further_tests:
        if not Path(path).is_file():
            raise ValueError(f"data.further_tests: {path}: no such file: collect it (swirl collect) or leave it out")
    for key, wanted in (("test_episodes", cfg.eval.horizon), ("collection", cfg.eval.plans)):
        path = getattr(cfg.data, key)
        if wanted and (path is None or not Path(path).is_file()):
            raise ValueError(f"data.{key}={path}: no such file: collect it (swirl collect), or leave out what needs it")
    if not Path(cfg.data.tokenizer).is_dir():
        raise ValueError(f"data.tokenizer={cfg.data.tokenizer}: no such folder: give a Hugging Face tokenizer folder")
    for key in ("fwm",) if cfg.model.weights.value == "shared" else ("fwm", "idm"):
        _check_model(f"model.{key}", Path(getattr(cfg.model, key)), cfg)


# What a layout divides among its ranks; outside attention context parallelism divides tokens, inside it heads
_DIVIDED = {
    ("tensor",): ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "override_vocab_size"),
    ("tensor", "context"): ("num_attention_heads", "num_query_groups"),
    ("pipeline",): ("num_layers",),
}


def _check_model(key: str, folder: Path, cfg: SwirlConfig) -> None:
    file = folder / "model_config.yaml"
    if not file.is_file():
        raise ValueError(
            f"{key}={folder}: no model_config.yaml in it: make the folder with swirl import HF_DIR {folder}"
        )
    try:
        model = OmegaConf.load(file)
    except YAMLError as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{key}={folder}: model_config.yaml is no plain YAML ({what}): import it again") from None
    check_architecture(cfg, model, str(file))


def check_architecture(cfg: SwirlConfig, model: Any, where: str) -> None:
    """A model's dimensions, under the names of a model_config.yaml, can be split and are as long as `cfg` asks.

    Raises ValueError, one line, naming `where` they stand.
    """
    for axes, names in _DIVIDED.items():
        sizes = {f"parallel.{axis}": getattr(cfg.parallel, axis) for axis in axes}
        for name in names:
            count = getattr(model, name)
            if count % math.prod(sizes.values()):
                given = " x ".join(f"{key}={size}" for key, size in sizes.items())
                padding = ", or import it with --query-groups N to pad them" if name == "num_query_groups" else ""
                raise ValueError(
                    f"{given}: does not divide the {count} {name} of {where}: give a divisor of it{padding}"
                )
    if cfg.precision.fp8 is Fp8.hybrid:
        _check_fp8_sizes(cfg, model, where)
    if cfg.model.max_length > model.max_position_embeddings:
        raise ValueError(
            f"model.max_length={cfg.model.max_length}: {where} allows {model.max_position_embeddings} positions: "
            f"give at most {model.max_position_embeddings}"
        )


def _check_fp8_sizes(cfg: SwirlConfig, model: Any, where: str) -> None:
    """Transformer Engine multiplies FP8 matrices whose sides divide by 16."""
    tensor, edges = cfg.parallel.tensor, cfg.precision.fp8_edge_layers
    heads, groups = model.num_attention_heads, model.num_query_groups
    sides = {
        "hidden_size": model.hidden_size,
        "ffn_hidden_size / parallel.tensor": model.ffn_hidden_size // tensor,
        "num_attention_heads x kv_channels / parallel.tensor": heads * model.kv_channels // tensor,
        "(num_attention_heads + 2 num_query_groups) x kv_channels / parallel.tensor": (
            (heads + 2 * groups) * model.kv_channels // tensor
        ),
    }
    for name, side in sides.items():
        if side % 16:
            raise ValueError(
                f"precision.fp8=hybrid: {name} is {side} in {where}, and FP8 needs a multiple of 16: give "
                "precision=bf16, or another parallel.tensor"
            )
    if 2 * edges >= model.num_layers:
        raise ValueError(
            f"precision.fp8_edge_layers={edges}: {where} has {model.num_layers} layers, none of which would be in FP8: "
            "give fewer, or precision=bf16"
        )


def _check_parallel(cfg: SwirlConfig, world_size: int) -> None:
    parallel = cfg.parallel
    _require_all(
        "parallel", parallel, _POSITIVE, "tensor", "pipeline", "context", "micro_batch", "score_batch", "rollout_batch"
    )
    copy = parallel.processes
    if world_size % copy:
        raise ValueError(
            f"parallel.tensor={parallel.tensor} x parallel.pipeline={parallel.pipeline} x parallel.context="
            f"{parallel.context}: does not divide the world of {world_size} process(es): start a multiple of {copy}, "
            f"e.g. torchrun --nproc-per-node {copy} -m swirl_nemo ..."
        )
    if parallel.sequence and parallel.tensor == 1:
        raise ValueError(
            "parallel.sequence=true: splits a sequence over tensor-parallel ranks, and parallel.tensor is 1: "
            "give parallel.sequence=false"
        )
    if parallel.context > 1 and cfg.precision.fp8 is not Fp8.none:
        raise ValueError(
            f"parallel.context={parallel.context}: not tried with FP8, whose scales would need its ranks: give "
            "parallel.context=1, or precision=bf16"
        )


def _check_data(key: str, data: RoleDataConfig, longest: int) -> None:
    _require_all(key, data, _NOT_NEGATIVE, "min_length")
    _require_all(key, data, _POSITIVE, "max_length")
    if not data.templates:
        raise ValueError(f"{key}.templates=[]: no prompt can be made: give at least one template")
    if data.min_length > data.max_length:
        raise ValueError(
            f"{key}.min_length={data.min_length}: over {key}.max_length={data.max_length}: give at most that"
        )
    if data.tokens is Tokens.image and data.min_length != data.max_length:
        raise ValueError(
            f"{key}.min_length={data.min_length}: with {key}.tokens=image a completion is one image, of "
            f"{key}.max_length={data.max_length} codes: give that for both"
        )
    if data.max_length >= longest:
        raise ValueError(
            f"{key}.max_length={data.max_length}: leaves no room for a prompt in model.max_length={longest}: "
            f"give less, or a longer model.max_length"
        )


def _check_sft(key: str, sft: SftConfig, replicas: int) -> None:
    _require_all(key, sft, _NOT_NEGATIVE, "steps", "lr_warmup")
    _require_all(key, sft, _POSITIVE, "batch", "lr")
    _require_multiple(f"{key}.batch", sft.batch, replicas, f"{replicas} data-parallel rank(s)")


def _check_phase(key: str, phase: PhaseConfig, replicas: int) -> None:
    _require_all(key, phase, _NOT_NEGATIVE, "steps", "lr_warmup", "mstep_batch", "replay_batch")
    _require_all(key, phase, _POSITIVE, "prompts", "optimizer_steps", "lr", "clip_grad", "std_epsilon", "clip_high")
    _require_all(key, phase, _NOT_NEGATIVE, "kl_beta", "dead_std", "policy_gradient", "mstep", "replay")
    _require(f"{key}.clip_low", phase.clip_low, lambda v: 0 < v <= 1, "in (0, 1]")
    _require(f"{key}.reward_floor", phase.reward_floor, lambda v: v < 0, "below 0, a mean log-probability")
    _require(
        f"{key}.group", phase.group, lambda v: v >= 2, "at least 2: an advantage is a reward against its group's mean"
    )
    _require_all(f"{key}.sampling", phase.sampling, _POSITIVE, "temperature")
    _require_all(f"{key}.sampling", phase.sampling, _NOT_NEGATIVE, "top_k")
    _require(f"{key}.sampling.top_p", phase.sampling.top_p, lambda v: 0 < v <= 1, "in (0, 1]; 1 is off")
    if not (phase.policy_gradient or phase.mstep or phase.replay):
        raise ValueError(f"{key}.policy_gradient=0: mstep and replay are 0 too, nothing trains: give one a weight")
    parts = f"{replicas} data-parallel rank(s) x {phase.optimizer_steps} optimizer step(s)"
    _require_multiple(f"{key}.prompts", phase.prompts, replicas * phase.optimizer_steps, parts)
    for loss in ("mstep", "replay"):
        if getattr(phase, loss):
            batch = f"{loss}_batch"
            _require_all(key, phase, _POSITIVE, batch)
            steps = phase.optimizer_steps
            _require_multiple(f"{key}.{batch}", getattr(phase, batch), steps, f"{key}.optimizer_steps")


def _check_alternation(cfg: SwirlConfig) -> None:
    _require_all("alternation", cfg.alternation, _NOT_NEGATIVE, "iterations")
    _require("alternation.new_form", cfg.alternation.new_form, lambda v: v <= 0, "0 or below, a log-probability")
    if not cfg.alternation.order:
        raise ValueError(f"alternation.order=[]: no role trains: give e.g. [{','.join(RoleName.__members__)}]")
    baselines = [baseline.value for baseline in cfg.alternation.baselines]
    given = f"alternation.baselines=[{','.join(baselines)}]"
    if len(set(baselines)) < len(baselines):
        raise ValueError(f"{given}: one stands there twice: name each once")
    if "merged" in baselines:
        if "continued_sft" not in baselines[: baselines.index("merged")]:
            raise ValueError(f"{given}: merged is made of continued_sft: put that before it")
        if cfg.model.weights is Weights.shared:
            raise ValueError(f"{given}: shared weights are one model already: leave merged out")
    if "all_labels" in baselines and cfg.data.unlabelled_actions is None:
        raise ValueError(f"{given}: all_labels needs the true actions: give data.unlabelled_actions=FILE")


def _check_precision(cfg: SwirlConfig) -> None:
    precision = cfg.precision
    _require_all("precision", precision, _POSITIVE, "fp8_amax_history_len")
    _require_all("precision", precision, _NOT_NEGATIVE, "fp8_edge_layers")
    if precision.fp8 is Fp8.none:
        for name in ("emulate", "fp8_params"):
            if getattr(precision, name):
                raise ValueError(f"precision.{name}=true: precision.fp8=none has no FP8: give precision.fp8=hybrid")
        return
    if precision.emulate and precision.fp8_params:
        raise ValueError("precision.fp8_params=true: emulation keeps weights in precision.dtype: give false")
    if precision.emulate and cfg.model.recompute is not Recompute.none:
        raise ValueError(
            f"model.recompute={cfg.model.recompute.name}: emulated FP8 would take every pass for two: give none"
        )
    if precision.dtype is Dtype.fp32 and not precision.emulate:
        raise ValueError("precision.dtype=fp32: FP8 layers take bf16 and give bf16: give precision.dtype=bf16")
    if not precision.emulate and cfg.kernels.layers is not Layers.transformer_engine:
        raise ValueError(
            f"kernels.layers={cfg.kernels.layers.name}: FP8 is Transformer Engine's: give "
            "kernels.layers=transformer_engine, or precision=fp8_emulated"
        )


def _check_kernels(cfg: SwirlConfig) -> None:
    kernels, dtype = cfg.kernels, cfg.precision.dtype
    fused, attention = kernels.gradient_accumulation_fusion, kernels.attention is Attention.transformer_engine
    if cfg.precision.emulate and (fused or kernels.layers is not Layers.local):
        raise ValueError("precision.emulate=true: emulated FP8 is made of local layers alone: give kernels=local")
    if fused and dtype is Dtype.fp32:
        raise ValueError(
            "kernels.gradient_accumulation_fusion=true: NeMo has it with bf16 weights alone: give precision=bf16"
        )
    if attention and dtype is Dtype.fp32:
        raise ValueError(
            "kernels.attention=transformer_engine: takes no float32: give kernels.attention=torch, or precision=bf16"
        )
    if attention and cfg.parallel.context > 1:
        raise ValueError(
            "kernels.attention=transformer_engine: its heads are not divided among parallel.context ranks yet: give "
            "kernels.attention=torch"
        )


def _check_suite(suite: SuiteConfig) -> None:
    _require_all("suite", suite, _NOT_NEGATIVE, "limit")
    _require("suite.parts", suite.parts, lambda v: v is None or v, "names of parts, or null for all")
    _require("suite.headline", suite.headline, bool, "names of scores")
    try:
        suite.instruction.format(action="", plan="", step=1, steps=1)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"suite.instruction={suite.instruction}: {error!r}: the fields are {{action}} {{plan}} {{step}} {{steps}}"
        ) from None
    judge = suite.judge
    _require_all("suite.judge", judge, _POSITIVE, "requests_per_minute", "parallel", "timeout_seconds", "tries")
    _require_all("suite.judge", judge, _POSITIVE, "answers", "max_tokens")
    _require_all("suite.judge", judge, _NOT_NEGATIVE, "picture_tokens")
    for name in ("input_price", "output_price", "max_cost"):
        _require(f"suite.judge.{name}", getattr(judge, name), lambda v: v is None or v >= 0, "0 or more, or null")


def check_training(cfg: SwirlConfig) -> None:
    """Raises ValueError, one line, for what can be planned, and trained on no machine yet."""
    if cfg.precision.fp8_params:
        raise ValueError(
            "precision.fp8_params=true: Megatron Core 0.11's optimizer casts such weights by a function that "
            "Transformer Engine 2 no longer has: give false"
        )


def check_machine(cfg: SwirlConfig) -> None:
    """Raises ValueError, one line, where this machine lacks what the configuration asks for."""
    if line := lack(cfg):
        raise ValueError(line)


_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda v: v > 0, "over 0")
_NOT_NEGATIVE: _Rule = (lambda v: v >= 0, "0 or more")
_FRACTION: _Rule = (lambda v: 0 <= v < 1, "in [0, 1)")


def _require_all(prefix: str, node: Any, rule: _Rule, *names: str) -> None:
    for name in names:
        _require(f"{prefix}.{name}", getattr(node, name), *rule)


def _require(key: str, value: Any, holds: Callable[[Any], bool], wanted: str) -> None:
    if not holds(value):
        raise ValueError(f"{key}={value}: out of range: it must be {wanted}")


def _require_multiple(key: str, value: int, unit: int, parts: str) -> None:
    if value % unit:
        raise ValueError(f"{key}={value}: does not divide by {unit} ({parts}): give a multiple of {unit}")
