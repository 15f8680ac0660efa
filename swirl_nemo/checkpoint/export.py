"""From a NeMo checkpoint folder, `import_hf`'s or a run's, to a Hugging Face folder. Tensors go over one by one.

config.json, generation_config.json and the tokenizer come back as they went in; padded vocabulary rows and query groups
stay behind. Only config.json's torch_dtype changes, where the weights' dtype is another.
"""

import json
import math
import re
import shutil
from pathlib import Path

import torch
from transformers import PretrainedConfig

from .distributed import DistributedTensors
from .folders import new_folder, progress
from .huggingface import CONFIG, TOKENIZER, WEIGHTS, read_config, read_model_config
from .mapping import Padding, Weight
from .model_card import model_card
from .safetensors_files import DTYPES, ShardWriter, read_json
from .spans import gather

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def export_hf(
    nemo_dir: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_size: int = 5 * 10**9,
    verify: bool = False,
    prompts: Path | None = None,
) -> float | None:
    """Write the NeMo checkpoint `nemo_dir` as the Hugging Face folder `out`, which must not exist.

    `dtype` None keeps that of the checkpoint, bit for bit. Files hold up to `shard_size` bytes. With `verify` the
    folder is first loaded with transformers: its log-probs on the lines of `prompts`, or on random tokens, must be
    those of Megatron's model. Returns the largest difference, None without. Raises ValueError, in one line, for a
    folder that cannot be exported and where log-probs differ; `out` appears whole or not at all.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder, or remove it")
    if not nemo_dir.is_dir():
        raise ValueError(f"{nemo_dir} is not a folder: give a checkpoint folder of `swirl import` or of a run")
    if prompts is not None and not prompts.is_file():
        raise ValueError(f"--prompts {prompts}: no such file: give a text file, a prompt a line")
    model = read_model_config(nemo_dir)
    family, config = read_config(nemo_dir / TOKENIZER)
    weights = family.weights(config, Padding(vocab=model.override_vocab_size, query_groups=model.num_query_groups))
    layers = config.num_hidden_layers
    with DistributedTensors(nemo_dir / WEIGHTS) as tensors:
        _check(nemo_dir, tensors, weights, layers)
        plan = _plan(weights, layers, tensors, dtype)
        size = sum(math.prod(shape) * kind.itemsize for kind, shape in plan.values())
        with new_folder(out, size) as partial:
            _copy_text(nemo_dir / TOKENIZER, partial, config, plan)
            (partial / "README.md").write_text(model_card(nemo_dir, model, config))
            with progress(f"export {nemo_dir.name}", size) as advance, ShardWriter(partial, plan, shard_size) as writer:
                for weight, layer in _order(weights, layers):
                    whole = weight.whole(tensors.dtype(weight.target))
                    sources = tensors.spans(weight.target, layer, whole)
                    for name, view in zip(weight.names(layer), weight.views(whole), strict=True):
                        advance(gather(sources, writer.span(name, view)))
                writer.finish()
            if not verify:
                return None
            from .verify import compare

            return compare(nemo_dir, partial, prompts, lossless=_lossless(plan, tensors))


def shard_bytes(text: str) -> int:
    """5GB, 500MB, 50KB or a number of bytes. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)?", text.strip().upper())
    size = round(float(match[1]) * _UNITS.get(match[2], 1)) if match else 0
    if size <= 0:
        raise ValueError(f"--shard-size {text}: not a size: give e.g. 5GB or 500MB")
    return size


def named_dtype(name: str | None) -> torch.dtype | None:
    """Raises ValueError for a name that is no dtype of an export."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    if name is not None and name not in names:
        raise ValueError(f"--dtype {name}: not supported: give one of {', '.join(names)}")
    return names[name] if name is not None else None


def _check(nemo_dir: Path, tensors: DistributedTensors, weights: list[Weight], num_layers: int) -> None:
    """Raises ValueError unless the checkpoint holds the family's tensors, in their shapes, and no others."""
    expected = {weight.target: (num_layers, *weight.shape) if weight.layered else weight.shape for weight in weights}
    missing = sorted(expected.keys() - tensors.targets())
    unknown = sorted(tensors.targets() - expected.keys())
    for names, what in ((missing, "is missing"), (unknown, "is unknown")):
        if names:
            raise ValueError(f"{nemo_dir}: tensor {names[0]} {what} ({len(names)} in all): take another checkpoint")
    for target, shape in expected.items():
        if tensors.shape(target) != shape:
            raise ValueError(
                f"{nemo_dir}: tensor {target} has shape {list(tensors.shape(target))}, "
                f"its {CONFIG} says {list(shape)}: take another checkpoint"
            )
        if tensors.dtype(target) not in DTYPES.values():
            raise ValueError(f"{nemo_dir}: tensor {target} is {tensors.dtype(target)}: take another checkpoint")


def _plan(weights: list[Weight], num_layers: int, tensors: DistributedTensors, dtype: torch.dtype | None) -> dict:
    """Every Hugging Face name with dtype and shape: what is not in a layer, then layer by layer."""
    return {
        name: (dtype or tensors.dtype(weight.target), shape)
        for weight, layer in _order(weights, num_layers)
        for name, shape in zip(weight.names(layer), weight.sources.values(), strict=True)
    }


def _order(weights: list[Weight], num_layers: int) -> list[tuple[Weight, int]]:
    pairs = [(weight, layer) for weight in weights for layer in weight.layers(num_layers)]
    return sorted(pairs, key=lambda pair: (pair[0].layered, pair[1]))


def _lossless(plan: dict, tensors: DistributedTensors) -> bool:
    stored = {tensors.dtype(target) for target in tensors.targets()}
    return {torch.float32} == {kind for kind, _ in plan.values()} or stored == {kind for kind, _ in plan.values()}


def _copy_text(source: Path, out: Path, config: PretrainedConfig, plan: dict) -> None:
    for path in source.iterdir():
        shutil.copy(path, out / path.name)
    # of the largest tensor: norms may have another
    dtype, _ = max(plan.values(), key=lambda item: math.prod(item[1]))
    if config.torch_dtype is not dtype:
        keys = read_json(source / CONFIG) | {"torch_dtype": str(dtype).removeprefix("torch.")}
        (out / CONFIG).write_text(json.dumps(keys, indent=2) + "\n")
