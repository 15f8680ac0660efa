"""Weights and run state to and from disk, in any TP x PP x DP layout (Megatron distributed checkpoints)."""

from pathlib import Path

from megatron.core import dist_checkpointing

WEIGHTS = "model_weights"


def load_weights(actor, folder: Path) -> None:
    """Fill the live parameters from a NeMo checkpoint folder; the optimizer is to be reset by the caller."""
    state = dist_checkpointing.load(actor.sharded_state_dict(), str(folder / WEIGHTS))
    (stage,) = actor.get_model_module_list()
    stage.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)
