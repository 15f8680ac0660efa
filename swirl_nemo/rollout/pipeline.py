"""What the last pipeline stage knows, brought to the others."""

from functools import cache

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


@cache
def announcement_group() -> dist.ProcessGroup | None:
    """This rank's pipeline once more, for tokens that are told while hidden states are on their way: NCCL does a
    group's work in the order in which it was asked for, and the stages ask in different orders.

    Collective over all processes at the first call (actor.build makes it); None without pipeline parallelism.
    """
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return None
    mine = dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    own, _ = dist.new_subgroups_by_enumeration(sorted({tuple(ranks) for ranks in everyone}))
    return own


def from_last_stage(tensor: Tensor) -> Tensor:
    """Broadcast, in place, from the last pipeline stage to the others of this rank's pipeline."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(tensor, source, group=parallel_state.get_pipeline_model_parallel_group())
    return tensor
