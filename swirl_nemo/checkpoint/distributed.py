"""Tensors as a Megatron distributed checkpoint, without a model and without other processes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import Tensor

from .mapping import LAYERS, Weight

PREFIX = "model."  # MegatronGPTModel keeps its GPTModel under this name


def save_weights(
    weights: Iterable[Weight], stateful: Iterable[str], num_layers: int, read: Callable[[str], Tensor], folder: Path
) -> None:
    """Write every `Weight`, read by its Hugging Face names with `read`, into the new folder `folder`.

    Each tensor (each layer of a layered one) is written whole: a model of any tensor and pipeline parallel size reads
    its slices. `stateful` modules get an empty `_extra_state`: Megatron refuses a checkpoint without, and only FP8
    fills it. No process group may exist.
    """
    sharded = {}
    for weight in weights:
        for layer in range(num_layers if weight.layered else 1):
            tensor = weight.join(*[read(name.format(layer=layer)) for name in weight.sources])
            offsets = [(0, layer, num_layers)] if weight.layered else []
            sharded[f"{weight.target}/{layer}"] = ShardedTensor.from_rank_offsets(
                PREFIX + weight.target, tensor, *offsets, prepend_axis_num=len(offsets)
            )
    for module in stateful:
        copies = num_layers if module.startswith(LAYERS) else 1
        for layer in range(copies):
            key = f"{PREFIX}{module}._extra_state"
            sharded[f"{key}/{layer}"] = ShardedObject(key, None, (copies,), (layer,))
    folder.mkdir()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        dist_checkpointing.save(sharded, str(folder))
    finally:
        torch.distributed.destroy_process_group()
