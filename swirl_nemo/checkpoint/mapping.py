"""How a family of Hugging Face models maps to Megatron Core: tables, no control flow. One `Family` per architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

Shape = tuple[int, ...]
LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Weight:
    """One Megatron tensor and the Hugging Face tensors that it is made of.

    `target` is its key in Megatron's distributed checkpoint, where the layers of a model are slices of one tensor: a
    target under `decoder.layers.` stands for all layers, and its sources name theirs by "{layer}". `sources` maps a
    Hugging Face name to the shape that it must have; `join` takes them in this order.
    """

    target: str
    sources: dict[str, Shape]
    join: Callable[..., Tensor]

    @property
    def layered(self) -> bool:
        return self.target.startswith(LAYERS)


@dataclass(frozen=True)
class Padding:
    """Sizes that layouts need and the model lacks. Padded rows and heads are zero and stay so: they change no output,
    and the gradient of a zero head, between a zero value and a zero projection, is zero.
    """

    vocab: int
    query_groups: int


@dataclass(frozen=True)
class Family:
    """An architecture of transformers as Megatron's GPTModel.

    `check(config)` raises ValueError for what Megatron's GPTModel would compute otherwise than transformers;
    `model_config(config, padding)` gives NeMo's architecture keys but the vocabulary's and the tokenizer's;
    `weights(config, padding)` lists every tensor; `ignored` is a regular expression for Hugging Face tensors that
    hold nothing to import, given the config; `stateful` names the modules that keep an `_extra_state`.
    """

    config: type[PretrainedConfig]
    check: Callable[[PretrainedConfig], None]
    model_config: Callable[[PretrainedConfig, Padding], dict[str, Any]]
    weights: Callable[[PretrainedConfig, Padding], list[Weight]]
    ignored: Callable[[PretrainedConfig], str]
    stateful: tuple[str, ...]


def same(tensor: Tensor) -> Tensor:
    return tensor


def stack(*tensors: Tensor) -> Tensor:
    """Rows of the first tensor, then of the next: gate over up, as Megatron's gated linear unit splits them."""
    return torch.cat(tensors)


def by_query_group(groups: int, padded: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Join q [H*D, ...], k and v [groups*D, ...] as Megatron's fused QKV: per group its queries, its key, its value.

    Zero groups are added up to `padded`.
    """

    def join(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fused = torch.cat([tensor.unflatten(0, (groups, -1)) for tensor in (q, k, v)], dim=1)
        return torch.cat([fused, fused.new_zeros(padded - groups, *fused.shape[1:])]).flatten(0, 1)

    return join


def pad_input_groups(groups: int, padded: int) -> Callable[[Tensor], Tensor]:
    """Columns of zeros in the attention's output projection [hidden, H*D], for the groups that are only padding."""

    def join(projection: Tensor) -> Tensor:
        width = projection.shape[1] // groups
        return torch.nn.functional.pad(projection, (0, (padded - groups) * width))

    return join


def pad_rows(rows: int) -> Callable[[Tensor], Tensor]:
    """Zero rows below an embedding [V, hidden] up to `rows`."""

    def join(embedding: Tensor) -> Tensor:
        return torch.nn.functional.pad(embedding, (0, 0, 0, rows - embedding.shape[0]))

    return join
