"""How a family of Hugging Face models maps to Megatron Core: tables, no control flow. One `Family` per architecture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

Shape = tuple[int, ...]
LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Fusion:
    """How Hugging Face tensors become one Megatron tensor, and back.

    `split(join(*tensors), shapes)` are those tensors, bit for bit, given their shapes; padding is dropped. `split`
    gives views where it can.
    """

    join: Callable[..., Tensor]
    split: Callable[[Tensor, list[Shape]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Weight:
    """One Megatron tensor and the Hugging Face tensors that it is made of.

    `target` is its key in Megatron's distributed checkpoint, where the layers of a model are slices of one tensor: a
    target under `decoder.layers.` stands for all layers, and its sources name theirs by "{layer}". `sources` maps a
    Hugging Face name to the shape that it must have; `fusion` takes them in this order.
    """

    target: str
    sources: dict[str, Shape]
    fusion: Fusion

    @property
    def layered(self) -> bool:
        return self.target.startswith(LAYERS)

    @property
    def shape(self) -> Shape:
        """Of the Megatron tensor, of one layer where it is layered."""
        return tuple(self.join(*(torch.empty(shape, device="meta") for shape in self.sources.values())).shape)

    def join(self, *tensors: Tensor) -> Tensor:
        return self.fusion.join(*tensors)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensors of `sources`, in order, from the Megatron tensor of one layer."""
        return self.fusion.split(tensor, list(self.sources.values()))

    def names(self, layer: int) -> list[str]:
        """The Hugging Face names of one layer's sources."""
        return [name.format(layer=layer) for name in self.sources]

    def layers(self, num_layers: int) -> Iterator[int]:
        """The layers that hold a slice of it; the one layer 0 where it is not layered."""
        return iter(range(num_layers if self.layered else 1))


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


SAME = Fusion(lambda tensor: tensor, lambda tensor, shapes: (tensor,))

# Rows of the first tensor, then of the next: gate over up, as Megatron's gated linear unit splits them.
STACK = Fusion(lambda *tensors: torch.cat(tensors), lambda tensor, shapes: tensor.split([shape[0] for shape in shapes]))


def by_query_group(groups: int, padded: int) -> Fusion:
    """q [H*D, ...], k and v [groups*D, ...] as Megatron's fused QKV: per group its queries, its key, its value.

    Zero groups are added up to `padded`.
    """

    def join(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fused = torch.cat([tensor.unflatten(0, (groups, -1)) for tensor in (q, k, v)], dim=1)
        if padded > groups:
            fused = torch.cat([fused, fused.new_zeros(padded - groups, *fused.shape[1:])])
        return fused.flatten(0, 1)

    def split(fused: Tensor, shapes: list[Shape]) -> tuple[Tensor, ...]:
        grouped = fused.unflatten(0, (padded, -1))[:groups]
        return tuple(part.flatten(0, 1) for part in grouped.split([shape[0] // groups for shape in shapes], dim=1))

    return Fusion(join, split)


def pad_input_groups(groups: int, padded: int) -> Fusion:
    """Columns of zeros in the attention's output projection [hidden, H*D], for the groups that are only padding."""

    def join(projection: Tensor) -> Tensor:
        width = projection.shape[1] // groups
        return torch.nn.functional.pad(projection, (0, (padded - groups) * width)) if padded > groups else projection

    def split(projection: Tensor, shapes: list[Shape]) -> tuple[Tensor, ...]:
        return (projection[:, : shapes[0][1]],)

    return Fusion(join, split)


def pad_rows(rows: int) -> Fusion:
    """Zero rows below an embedding [V, hidden] up to `rows`."""

    def join(embedding: Tensor) -> Tensor:
        added = rows - embedding.shape[0]
        return torch.nn.functional.pad(embedding, (0, 0, 0, added)) if added else embedding

    def split(embedding: Tensor, shapes: list[Shape]) -> tuple[Tensor, ...]:
        return (embedding[: shapes[0][0]],)

    return Fusion(join, split)
