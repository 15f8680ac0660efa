"""Weights, optimizer and counters to and from disk, in any TP x PP x DP layout (Megatron distributed checkpoints).

    checkpoints/00000120/  state.json  optimizer/  {weight set}/{model_config.yaml, tokenizer/, model_weights/}
    checkpoints/latest -> 00000120

Each weight set is a NeMo checkpoint folder of its own. A checkpoint is written aside and renamed when it is whole.
"""

import json
import shutil
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing

from .huggingface import MODEL_CONFIG, TOKENIZER, WEIGHTS

OPTIMIZER, STATE, LATEST = "optimizer", "state.json", "latest"


def load_weights(actor, folder: Path) -> None:
    """Fill the live parameters from a NeMo checkpoint folder."""
    state = dist_checkpointing.load(actor.sharded_state_dict(), str(folder / WEIGHTS))
    (stage,) = actor.get_model_module_list()
    # Only `_extra_state` of Transformer Engine may be absent; Megatron's load above already checked every weight.
    stage.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)


def save_weights(actor, source: Path, folder: Path) -> None:
    """Write the live parameters as a NeMo checkpoint folder; architecture and tokenizer are those of `source`."""
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        shutil.copy(source / MODEL_CONFIG, folder / MODEL_CONFIG)
        shutil.copytree(source / TOKENIZER, folder / TOKENIZER)
        (folder / WEIGHTS).mkdir()
    dist.barrier()
    dist_checkpointing.save(actor.sharded_state_dict(), str(folder / WEIGHTS))


def save(session, name: str, state: dict, sets: list[str], keep: int) -> None:
    """Write weight sets, optimizer and `state` as checkpoints/{name}, point `latest` at it, keep the newest `keep`.

    Collective over all processes.
    """
    root = session.run.folder / "checkpoints"
    partial = root / f".{name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    for set_name in sets:
        with session.sets.wear(set_name):
            save_weights(session.actor, Path(session.cfg.model.fwm), partial / set_name)
    if state["optimizer"]:
        if dist.get_rank() == 0:
            (partial / OPTIMIZER).mkdir()
        dist.barrier()
        dist_checkpointing.save({"optimizer": session.actor.sharded_optimizer(loading=False)}, str(partial / OPTIMIZER))
    dist.barrier()
    if dist.get_rank() == 0:
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        _replace(partial, root / name)
        _point(root / LATEST, name)
        _prune(root, keep)
    dist.barrier()


def load(session, folder: Path) -> dict:
    """Fill weight sets, the live policy and the optimizer from a checkpoint; returns its state."""
    state = json.loads((folder / STATE).read_text())
    for name in sorted(path.name for path in folder.iterdir() if (path / WEIGHTS).is_dir()):
        load_weights(session.actor, folder / name)
        session.sets.snapshot(name)
    session.sets.restore(state["policy"])
    if state["optimizer"]:
        session.actor.reset_optimizer()
        sharded = {"optimizer": session.actor.sharded_optimizer(loading=True)}
        loaded = dist_checkpointing.load(sharded, str(folder / OPTIMIZER))
        session.actor.load_optimizer(loaded["optimizer"])
    return state


def newest(run_folder: Path) -> Path | None:
    """The checkpoint that `latest` names, if there is one."""
    latest = run_folder / "checkpoints" / LATEST
    return latest.resolve() if latest.exists() else None


def _replace(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def _point(link: Path, name: str) -> None:
    fresh = link.with_name(".latest")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)


def _prune(root: Path, keep: int) -> None:
    """Numbered checkpoints only: named ones, such as the warmed-up models, stay."""
    numbered = sorted(path for path in root.iterdir() if path.name.isdigit())
    for path in numbered[:-keep]:
        shutil.rmtree(path)
