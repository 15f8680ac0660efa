"""Rank 0 of a world of any size in one process: groups that exchange nothing, tensors without memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from . import on_cpu, prepare


@contextmanager
def rank_zero(nodes: int, devices: int) -> Iterator[None]:
    """Within, this process is rank 0 of nodes x devices, and the device is torch's meta device: what is built has the
    shapes that it would have there, and no values.

    Raises ValueError on a machine with a GPU, where Megatron would take that for its device.
    """
    if not on_cpu():
        raise ValueError("--dry-run: a GPU is visible: put CUDA_VISIBLE_DEVICES= before the command")
    prepare()
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def group(ranks=None, **_):
        """Some of Megatron's are of gloo whatever the backend, and would look for their other members."""
        return dist.new_group(ranks)

    # As torchrun sets them; without, Lightning starts the node's other processes itself
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": nodes * devices, "LOCAL_WORLD_SIZE": devices}
    os.environ.update({name: str(value) for name, value in place.items()})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=nodes * devices)
    with (
        torch.device("meta"),
        mock.patch.object(parallel_state, "create_group", group),
        mock.patch.object(torch.cuda, "current_device", lambda: torch.device("meta")),
    ):
        yield
