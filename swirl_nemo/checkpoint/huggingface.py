"""From a Hugging Face folder to a NeMo checkpoint folder.

What is written: model_config.yaml (the architecture; keys of a run are merged by the actor), tokenizer/ (the Hugging
Face tokenizer and config.json as they were) and model_weights/ (a Megatron distributed checkpoint in the source's
dtype). It loads in any TP x PP x DP layout.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig

from .. import stack
from .families import FAMILIES
from .mapping import Family, Padding

MODEL_CONFIG, TOKENIZER, WEIGHTS = "model_config.yaml", "tokenizer", "model_weights"  # NeMo's names; tokenizer is ours
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
VOCAB_MULTIPLE = 128


class Tensors:
    """The tensors of a folder's safetensors files, by name; nothing is read before it is asked for.

    Raises ValueError where there are none, or where a file is missing or broken.
    """

    def __init__(self, folder: Path):
        self._file_of: dict[str, Any] = {}
        for path in self._paths(folder):
            if not path.is_file():
                raise ValueError(f"{path} is missing: {INDEX} names it; download it again")
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is not a whole safetensors file ({error}): download it again") from error
            self._file_of |= dict.fromkeys(file.keys(), file)

    @staticmethod
    def _paths(folder: Path) -> list[Path]:
        if (folder / INDEX).is_file():
            names = set(_read_json(folder / INDEX)["weight_map"].values())
            return [folder / name for name in sorted(names)]
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise ValueError(
            f"{folder} has neither {SINGLE} nor {INDEX}: save the model with save_pretrained(safe_serialization=True)"
        )

    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)


def import_hf(hf_dir: Path, out: Path, query_groups: int | None = None) -> None:
    """Write the model of the Hugging Face folder `hf_dir` as the NeMo checkpoint folder `out`, which must not exist.

    The vocabulary is padded once, with zero rows, to a multiple of 128 whatever the tensor parallel size will be.
    `query_groups` pads the attention's query groups with zero heads up to that number, for a tensor parallel size that
    divides it and not the model's own: SmolLM2-135M has 3, and runs at TP2 with 4. None leaves them as they are.
    Raises ValueError, in one line, for a folder that cannot be imported; `out` appears whole or not at all.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder, or remove it")
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir} is not a folder: give a Hugging Face model folder")
    family, config = _read_config(hf_dir)
    _check_tokenizer(hf_dir, config)
    padding = Padding(
        vocab=-(-config.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        query_groups=config.num_key_value_heads if query_groups is None else query_groups,
    )
    own = config.num_key_value_heads
    if padding.query_groups < own:
        raise ValueError(f"--query-groups {query_groups}: {hf_dir} has {own}: give at least as many")
    weights = family.weights(config, padding)
    tensors = Tensors(hf_dir)
    expected = {
        name.format(layer=layer): shape
        for weight in weights
        for layer in range(config.num_hidden_layers if weight.layered else 1)
        for name, shape in weight.sources.items()
    }
    _check_tensors(hf_dir, tensors, expected, family.ignored(config))

    # Here, not above: Megatron takes seconds to import, and a user's mistake need not wait for that.
    stack.prepare()
    from .distributed import save_weights

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        OmegaConf.save(_model_config(family, config, padding), partial / MODEL_CONFIG)
        _copy_tokenizer(hf_dir, partial / TOKENIZER)
        save_weights(weights, family.stateful, config.num_hidden_layers, tensors.read, partial / WEIGHTS)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_model_config(folder: Path) -> DictConfig:
    """model_config.yaml of a NeMo checkpoint folder, with the tokenizer's path made absolute.

    Raises ValueError for a folder that `import_hf` did not write.
    """
    if not (folder / MODEL_CONFIG).is_file():
        raise ValueError(f"{folder} has no {MODEL_CONFIG}: give a checkpoint folder that `swirl import` wrote")
    config = OmegaConf.load(folder / MODEL_CONFIG)
    config.tokenizer.type = str((folder / config.tokenizer.type).resolve())
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): mend it, or download it again") from error


def _read_config(hf_dir: Path) -> tuple[Family, PretrainedConfig]:
    path = hf_dir / "config.json"
    if not path.is_file():
        raise ValueError(f"{hf_dir} has no config.json: give a Hugging Face model folder")
    architectures = _read_json(path).get("architectures")
    known = ", ".join(FAMILIES)
    if not architectures or architectures[0] not in FAMILIES:
        raise ValueError(f"{path}: architectures {architectures} is not supported: import one of {known}")
    family = FAMILIES[architectures[0]]
    config = family.config.from_pretrained(hf_dir)
    try:
        family.check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return family, config


def _check_tokenizer(hf_dir: Path, config: PretrainedConfig) -> None:
    if not any((hf_dir / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(f"{hf_dir} has no tokenizer: copy the model's tokenizer files into it")
    entries = len(AutoTokenizer.from_pretrained(hf_dir))
    if entries > config.vocab_size:
        raise ValueError(
            f"{hf_dir}: the tokenizer has {entries} entries, vocab_size in config.json is {config.vocab_size}: "
            "resize the model's embedding, or give the tokenizer that it was trained with"
        )


def _check_tensors(hf_dir: Path, tensors: Tensors, expected: dict[str, tuple[int, ...]], ignored: str) -> None:
    """Raises ValueError unless the folder holds the expected tensors, in the expected shapes, and no others."""
    missing = sorted(expected.keys() - tensors.names())
    if missing:
        raise ValueError(f"{hf_dir}: tensor {missing[0]} is missing ({len(missing)} in all): download the model again")
    unknown = sorted(name for name in tensors.names() - expected.keys() if not re.fullmatch(ignored, name))
    if unknown:
        raise ValueError(
            f"{hf_dir}: tensor {unknown[0]} is unknown ({len(unknown)} in all): "
            "import a model of its config.json's architecture, neither quantised nor with adapters"
        )
    for name, shape in expected.items():
        if tensors.shape(name) != shape:
            raise ValueError(
                f"{hf_dir}: tensor {name} has shape {list(tensors.shape(name))}, config.json says {list(shape)}: "
                "give the config.json that belongs to these weights"
            )


def _model_config(family: Family, config: PretrainedConfig, padding: Padding) -> DictConfig:
    return OmegaConf.create(
        {
            "mcore_gpt": True,
            **family.model_config(config, padding),
            "vocab_size": config.vocab_size,  # rows that mean a token; logits from here to the padded size do not
            "override_vocab_size": padding.vocab,
            "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
            "tokenizer": {"library": "huggingface", "type": TOKENIZER, "use_fast": True},
        }
    )


def _copy_tokenizer(hf_dir: Path, folder: Path) -> None:
    """All small text files, config.json among them: AutoTokenizer may need it, and an export starts from it."""
    folder.mkdir()
    for pattern in ("*.json", "*.txt", "*.jinja", "tokenizer.model"):
        for path in hf_dir.glob(pattern):
            if path.name != INDEX:
                shutil.copy(path, folder / path.name)
