"""From a Hugging Face folder to a NeMo checkpoint folder.

What is written: model_config.yaml (the architecture; keys of a run are merged by the actor), tokenizer/ (the Hugging
Face tokenizer and config.json as they were) and model_weights/ (a Megatron distributed checkpoint in the source's
dtype). It loads in any TP x PP x DP layout. Tensors go over one by one: neither model nor process group is made.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from .distributed import DistributedWriter
from .families import FAMILIES
from .folders import new_folder, progress
from .image_rows import ImageOptions, NewRows, image_tokens
from .mapping import Family, Padding, Weight
from .safetensors_files import DTYPES, Tensors, read_json
from .spans import gather

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_CONFIG, TOKENIZER, WEIGHTS = "model_config.yaml", "tokenizer", "model_weights"  # NeMo's names; tokenizer is ours
CONFIG = "config.json"
VOCAB_MULTIPLE = 128
TOKENS = {
    "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
    "tokenizer": {"library": "huggingface", "type": TOKENIZER, "use_fast": True},
}
# Keys of config.json that must be whole numbers over 0 where they are given, and numbers over 0
_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
)
_NUMBERS = ("rope_theta", "rms_norm_eps", "initializer_range")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")  # may be null


def import_hf(hf_dir: Path, out: Path, query_groups: int | None = None, images: ImageOptions | None = None) -> None:
    """Write the model of the Hugging Face folder `hf_dir` as the NeMo checkpoint folder `out`, which must not exist.

    The vocabulary is padded once, with zero rows, to a multiple of 128 whatever the tensor parallel size will be.
    `query_groups` pads the attention's query groups with zero heads up to that number, for a tensor parallel size that
    divides it and not the model's own: SmolLM2-135M has 3, and runs at TP2 with 4. None leaves them as they are.
    `images` adds rows for image codes above those of text (image_rows.py).
    Raises ValueError, in one line, for a folder that cannot be imported; `out` appears whole or not at all.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder, or remove it")
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir} is not a folder: give a Hugging Face model folder")
    family, config = read_config(hf_dir)
    tokens = image_tokens(hf_dir, images, config.vocab_size, _checked_tokenizer(hf_dir, config))
    old = config.vocab_size
    vocab_size = old if tokens is None else max(old, tokens.all_codes.stop)
    padding = Padding(
        vocab=-(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        query_groups=config.num_key_value_heads if query_groups is None else query_groups,
    )
    own = config.num_key_value_heads
    if padding.query_groups < own:
        raise ValueError(f"--query-groups {query_groups}: {hf_dir} has {own}: give at least as many")
    weights, layers = family.weights(config, padding), config.num_hidden_layers
    with Tensors(hf_dir) as tensors, NewRows.opened(tensors, old, vocab_size - old) as new_rows:
        _check_tensors(hf_dir, tensors, weights, layers, family.ignored(config))
        size = sum(tensors.entries[name].size for name in _names(weights, layers))
        with new_folder(out, size) as partial, progress(f"import {hf_dir.name}", size) as advance:
            OmegaConf.save(_model_config(hf_dir, family, config, padding, vocab_size), partial / MODEL_CONFIG)
            _copy_tokenizer(hf_dir, partial / TOKENIZER)
            if tokens is not None:
                tokens.write(partial / TOKENIZER)
                _set_vocab_size(partial / TOKENIZER / CONFIG, vocab_size)
            with DistributedWriter(partial / WEIGHTS, layers) as writer:
                for weight in weights:
                    whole = weight.whole(_dtype(weight, tensors))
                    for layer in weight.layers(layers):
                        parts = zip(weight.names(layer), weight.views(whole), strict=True)
                        sources = [tensors.span(name, view) for name, view in parts]
                        sources += new_rows.spans(weight, whole)
                        advance(gather(sources, writer.span(weight.target, layer, whole)))
                for module in family.stateful:
                    writer.write_empty_state(module)
                writer.finish()


def read_model_config(folder: Path) -> DictConfig:
    """model_config.yaml of a NeMo checkpoint folder, with the tokenizer's path made absolute.

    Raises ValueError for a folder that `import_hf` did not write.
    """
    if not (folder / MODEL_CONFIG).is_file():
        raise ValueError(f"{folder} has no {MODEL_CONFIG}: give a checkpoint folder that `swirl import` wrote")
    config = OmegaConf.load(folder / MODEL_CONFIG)
    config.tokenizer.type = str((folder / config.tokenizer.type).resolve())
    return config


def read_config(folder: Path) -> tuple[Family, PretrainedConfig]:
    """The family and the checked config.json of a folder.

    Raises ValueError, one line, for an architecture, an option or a value that is not supported, and for a model that
    brings its own code.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}: give a Hugging Face model folder")
    keys = read_json(path)
    if "auto_map" in keys:
        raise ValueError(f"{path}: auto_map asks for code that comes with the model, which is never run: remove it")
    architectures = keys.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path}: architectures {architectures} is not supported: import one of {known}")
    family = FAMILIES[name]
    try:
        _check_values(keys)
        config = _parse(family, keys)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("quantization_config is not supported: import the model before it was quantised")
        if config.num_attention_heads % config.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        family.check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return family, config


def _check_values(keys: dict[str, Any]) -> None:
    for key in _COUNTS + _NUMBERS + _SWITCHES:
        value = keys.get(key)
        if key not in keys or (value is None and key in _OPTIONAL):
            continue
        if key in _SWITCHES:
            fine, wanted = isinstance(value, bool), "true or false"
        elif key in _COUNTS:
            fine, wanted = type(value) is int and value > 0, "a whole number over 0"
        else:
            fine, wanted = type(value) in (int, float) and 0 < value < math.inf, "a number over 0"
        if not fine:
            raise ValueError(f"{key} {value!r} must be {wanted}")


def _parse(family: Family, keys: dict[str, Any]) -> PretrainedConfig:
    """Defaults are transformers', which may choke in any way on values that `_check_values` does not look at."""
    try:
        with _quietly():
            return family.config.from_dict(keys)
    except Exception as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error}): mend it") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' warnings, of every rope_scaling that it finds odd and of a tokenizer's class."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _checked_tokenizer(hf_dir: Path, config: PretrainedConfig) -> "PreTrainedTokenizerBase":
    if not any((hf_dir / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(f"{hf_dir} has no tokenizer: copy the model's tokenizer files into it")
    path = hf_dir / "tokenizer_config.json"
    if path.is_file() and "auto_map" in read_json(path):
        raise ValueError(f"{path}: auto_map asks for code that comes with the model, which is never run: remove it")
    # AutoTokenizer imports half of transformers and more, seconds of it: only where nothing else reads the files
    if (hf_dir / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    try:
        with _quietly():
            tokenizer = Tokenizer.from_pretrained(hf_dir, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever a broken file leads to
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{hf_dir}: the tokenizer cannot be read ({reason}): download it again") from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{hf_dir}: the tokenizer has {len(tokenizer)} entries, vocab_size in config.json is {config.vocab_size}: "
            "resize the model's embedding, or give the tokenizer that it was trained with"
        )
    return tokenizer


def _check_tensors(hf_dir: Path, tensors: Tensors, weights: list[Weight], num_layers: int, ignored: str) -> None:
    """Raises ValueError unless the folder holds the expected tensors, in the expected shapes, and no others."""
    expected = {
        name: shape
        for weight in weights
        for layer in weight.layers(num_layers)
        for name, shape in zip(weight.names(layer), weight.sources.values(), strict=True)
    }
    entries = tensors.entries
    missing = sorted(expected.keys() - entries.keys())
    if missing:
        raise ValueError(f"{hf_dir}: tensor {missing[0]} is missing ({len(missing)} in all): download the model again")
    unknown = sorted(name for name in entries.keys() - expected.keys() if not re.fullmatch(ignored, name))
    if unknown:
        raise ValueError(
            f"{hf_dir}: tensor {unknown[0]} is unknown ({len(unknown)} in all): "
            "import a model of its config.json's architecture, neither quantised nor with adapters"
        )
    for name, shape in expected.items():
        if entries[name].shape != shape:
            raise ValueError(
                f"{hf_dir}: tensor {name} has shape {list(entries[name].shape)}, config.json says {list(shape)}: "
                "give the config.json that belongs to these weights"
            )
        if entries[name].dtype not in DTYPES:
            raise ValueError(
                f"{hf_dir}: tensor {name} is {entries[name].dtype}: import a model in one of {', '.join(DTYPES)}"
            )
    for weight in weights:
        kinds = {entries[name].dtype: name for layer in weight.layers(num_layers) for name in weight.names(layer)}
        if len(kinds) > 1:  # they become one tensor
            found = ", ".join(f"{name} {kind}" for kind, name in sorted(kinds.items()))
            raise ValueError(
                f"{hf_dir}: tensors of one kind have several dtypes ({found}): save the model in one dtype"
            )


def _names(weights: list[Weight], num_layers: int) -> Iterator[str]:
    for weight in weights:
        for layer in weight.layers(num_layers):
            yield from weight.names(layer)


def _dtype(weight: Weight, tensors: Tensors) -> torch.dtype:
    return DTYPES[tensors.entries[weight.names(0)[0]].dtype]


def _model_config(
    hf_dir: Path, family: Family, config: PretrainedConfig, padding: Padding, vocab_size: int
) -> DictConfig:
    return OmegaConf.create(
        {
            **family.model_config(config, padding),
            "vocab_size": vocab_size,  # rows that mean a token; logits from here to the padded size do not
            "override_vocab_size": padding.vocab,
            **TOKENS,
            "base_model": config._name_or_path or hf_dir.resolve().name,  # for the model card of an export
        }
    )


def _set_vocab_size(path: Path, vocab_size: int) -> None:
    """An export starts from this config.json, and gives the new rows too."""
    path.write_text(json.dumps(read_json(path) | {"vocab_size": vocab_size}, indent=2) + "\n")


def _copy_tokenizer(hf_dir: Path, folder: Path) -> None:
    """All small text files, config.json among them: AutoTokenizer may need it, and an export starts from it."""
    folder.mkdir()
    for pattern in ("*.json", "*.txt", "*.jinja", "tokenizer.model"):
        for path in hf_dir.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copy(path, folder / path.name)
