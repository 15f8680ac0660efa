"""fp8_autocast, and scales that move on when it ends: amaxes and scales stand in tables for all layers."""

from contextlib import contextmanager

import torch
import torch.distributed as dist

LARGEST = {"scaling_fwd": 448.0, "scaling_bwd": 57344.0}
TENSORS = {"scaling_fwd": 3, "scaling_bwd": 2}  # input, weight, output; gradient of output, of input


class Meta:
    def __init__(self, key: str, length: int):
        self.scale = torch.ones(TENSORS[key])
        self.amax_history = torch.zeros(length, TENSORS[key])


class State:
    enabled = False
    recipe = None
    group = None
    first = False  # whether no layer has yet asked to be the one that ends the backward pass
    tables: dict[str, list[Meta]] = {"scaling_fwd": [], "scaling_bwd": []}


@contextmanager
def fp8_autocast(enabled=True, calibrating=False, fp8_recipe=None, fp8_group=None):
    before = State.enabled, State.recipe, State.group
    State.enabled, State.recipe, State.group, State.first = enabled, fp8_recipe, fp8_group, True
    try:
        yield
    finally:
        State.enabled, State.recipe, State.group = before
        if enabled and torch.is_grad_enabled():
            update("scaling_fwd", fp8_recipe, fp8_group)


def update(key: str, recipe, group) -> None:
    """Amaxes of all layers reduced over the group; a scale from its history; the history moved on by one. What no rank
    saw stays as it is."""
    for meta in State.tables[key]:
        current = meta.amax_history[0].clone()
        dist.all_reduce(current, op=dist.ReduceOp.MAX, group=group)
        meta.amax_history[0] = current
        amax = meta.amax_history.amax(0) if recipe.amax_compute_algo == "max" else current
        moved = (current != 0) & amax.isfinite()
        meta.scale[moved] = LARGEST[key] / amax[moved]
        for place in current.nonzero()[:, 0].tolist():
            meta.amax_history[:, place] = meta.amax_history[:, place].roll(-1)
            meta.amax_history[0, place] = 0
