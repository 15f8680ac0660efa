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
class Fusion:
    """Where Hugging Face tensors lie in one Megatron tensor: the same table for either direction.

    `shape` maps their shapes to its own; `views` gives, of a tensor of that shape, one view for each of them, with
    its values in its order under whatever shape. What no view covers is padding.
    """

    shape: Callable[[list[Shape]], Shape]
    views: Callable[[Tensor, list[Shape]], tuple[Tensor, ...]]


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
        return self.fusion.shape(list(self.sources.values()))

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The Megatron tensor of one layer, on the meta device: a shape to take views of."""
        return torch.empty(self.shape, dtype=dtype, device="meta")

    def views(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Where in the Megatron tensor each source lies."""
        return self.fusion.views(whole, list(self.sources.values()))

    def names(self, layer: int) -> list[str]:
        """The Hugging Face names of one layer's sources."""
        return [name.format(layer=layer) for name in self.sources]

    def layers(self, num_layers: int) -> range:
        """The layers that hold a slice of it; layer 0 alone where it is not layered."""
        return range(num_layers if self.layered else 1)


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


SAME = Fusion(lambda shapes: shapes[0], lambda tensor, shapes: (tensor,))

# Rows of the first tensor, then of the next: gate over up, as Megatron's gated linear unit splits them.
STACK = Fusion(
    lambda shapes: (sum(shape[0] for shape in shapes), *shapes[0][1:]),
    lambda tensor, shapes: tensor.split([shape[0] for shape in shapes]),
)


def by_query_group(groups: int, padded: int) -> Fusion:
    """q [H*D, ...], k and v [groups*D, ...] as Megatron's fused QKV: per group its queries, its key, its value.

    Zero groups are added up to `padded`.
    """

    def shape(shapes: list[Shape]) -> Shape:
        return (sum(shape[0] for shape in shapes) // groups * padded, *shapes[0][1:])

    def views(fused: Tensor, shapes: list[Shape]) -> tuple[Tensor, ...]:
        return fused.unflatten(0, (padded, -1))[:groups].split([shape[0] // groups for shape in shapes], dim=1)

    return Fusion(shape, views)


def pad_input_groups(groups: int, padded: int) -> Fusion:
    """Columns of zeros in the attention's output projection [hidden, H*D], for the groups that are only padding."""
    return Fusion(
        lambda shapes: (shapes[0][0], shapes[0][1] // groups * padded),
        lambda tensor, shapes: (tensor[:, : shapes[0][1]],),
    )


def pad_rows(rows: int) -> Fusion:
    """Zero rows below an embedding [V, hidden] up to `rows`."""
    return Fusion(lambda shapes: (rows, *shapes[0][1:]), lambda tensor, shapes: (tensor[: shapes[0][0]],))
