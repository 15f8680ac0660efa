"""A run's checkpoints: how they lie on the disk, which is the newest sound one, and loading it in any layout.

    checkpoints/00000120/  manifest.json  state.json  metrics.jsonl  optimizer/
                           {weight set}/{model_config.yaml, tokenizer/, model_weights/}
    checkpoints/warmup/    the same, of a finished model
    checkpoints/latest -> 00000120

Each weight set is a NeMo checkpoint folder of its own; saving.py writes them. A run goes on from numbered ones alone:
they stand between two steps, named ones are written in the middle of leaving a stage.
"""

import json
import shutil
from pathlib import Path

import torch.distributed as dist

from . import manifest, trusted
from .huggingface import WEIGHTS

OPTIMIZER, STATE, METRICS, LATEST = "optimizer", "state.json", "metrics.jsonl", "latest"
PARTIAL, REPLACED, UNSOUND = ".partial", ".replaced", ".unsound"  # .NAME-X.partial, .NAME.replaced, NAME.unsound


def load_weights(actor, folder: Path) -> None:
    """Fill the live parameters from a NeMo checkpoint folder. Raises ValueError where it is damaged or names code."""
    state = trusted.load(actor.sharded_state_dict(), folder / WEIGHTS)
    (stage,) = actor.get_model_module_list()
    # Only `_extra_state` of Transformer Engine may be absent; Megatron's load above already checked every weight.
    stage.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)


def load(session, folder: Path) -> dict:
    """Fill weight sets, the live policy and the optimizer from a checkpoint; returns its state.

    Raises ValueError, one line, where `fault` finds one.
    """
    wrong = fault(folder)
    if wrong:
        raise ValueError(f"{folder}: damaged: {wrong}: put it back from a copy, or start again under another run.name")
    state = json.loads((folder / STATE).read_text())
    for name in sorted(path.name for path in folder.iterdir() if (path / WEIGHTS).is_dir()):
        load_weights(session.actor, folder / name)
        session.sets.snapshot(name)
    session.sets.restore(state["policy"])
    if state["optimizer"]:
        session.actor.reset_optimizer()
        loaded = trusted.load({"optimizer": session.actor.sharded_optimizer(loading=True)}, folder / OPTIMIZER)
        session.actor.load_optimizer(loaded["optimizer"])
    return state


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Each process reads its share of the files. Collective."""
    found = gather(manifest.fault(folder, dist.get_rank(), dist.get_world_size()))
    return next((wrong for wrong in found if wrong), None)


def newest(run) -> Path | None:
    """The newest sound numbered checkpoint of a run; None where it has no numbered one at all.

    What an ended process left half-done is tidied first. A damaged checkpoint is named on the log and, where an older
    one is sound, set aside as NAME.unsound. Raises ValueError where none is sound. Collective.
    """
    root = run.folder / "checkpoints"
    if run.is_main:
        tidy(root)
    dist.barrier()
    box = [numbered(root) if run.is_main else None]
    dist.broadcast_object_list(box)
    unsound = []
    for path in reversed(box[0]):
        wrong = fault(path)
        if wrong is None:
            if run.is_main:
                for other in unsound:
                    replace(other, other.with_name(other.name + UNSOUND))
                point(root / LATEST, path.name)
            dist.barrier()
            return path
        run.say(f"checkpoint {path}: damaged: {wrong}: left out")
        unsound.append(path)
    if unsound:
        raise ValueError(
            f"{root}: no sound checkpoint among {len(unsound)}: put one back from a copy, or start again under another "
            "run.name"
        )
    return None


def numbered(root: Path) -> list[Path]:
    """Checkpoints between two steps, oldest first."""
    return sorted(path for path in root.iterdir() if path.name.isdigit()) if root.is_dir() else []


def tidy(root: Path) -> None:
    """Remove what a process that was ended left half-done; put back what it was about to replace."""
    for path in root.glob(f".*{REPLACED}"):
        target = path.with_name(path.name[1 : -len(REPLACED)])
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)
    for path in root.glob(f".*{PARTIAL}"):
        shutil.rmtree(path)


def gather(item) -> list:
    """Every rank's, on every rank."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, item)
    return gathered


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`; until that is done, what stood there can be put back by `tidy`."""
    before = target.with_name(f".{target.name}{REPLACED}")
    if target.exists():
        target.rename(before)
    source.rename(target)
    shutil.rmtree(before, ignore_errors=True)


def point(link: Path, name: str) -> None:
    """Let the link `link` lead to `name` from one moment to the next."""
    fresh = link.with_name(".latest")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)
