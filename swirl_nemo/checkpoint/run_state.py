"""Weights, optimizer and counters to and from disk, in any TP x PP x DP layout (Megatron distributed checkpoints).

    checkpoints/00000120/  manifest.json  state.json  metrics.jsonl  optimizer/
                           {weight set}/{model_config.yaml, tokenizer/, model_weights/}
    checkpoints/warmup/    the same, of a finished model
    checkpoints/latest -> 00000120

Each weight set is a NeMo checkpoint folder of its own. A checkpoint is written aside, read back, synced and renamed
when it is whole; `latest` moves last. A run goes on from numbered ones alone: they stand between two steps, named ones
are written in the middle of leaving a stage.
"""

import json
import shutil
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from . import manifest, metadata, trusted
from .huggingface import MODEL_CONFIG, TOKENIZER, WEIGHTS

OPTIMIZER, STATE, METRICS, LATEST = "optimizer", "state.json", "metrics.jsonl", "latest"
PARTIAL, REPLACED, UNSOUND = ".partial", ".replaced", ".unsound"  # .NAME.partial, .NAME.replaced, NAME.unsound
# How a full or broken disk shows: errors of the system, of Megatron's writer processes, of torch's archive writer.
_DISK = ("Worker failure", "PytorchStreamWriter", "unexpected pos", "No space left on device", "File too large")


def load_weights(actor, folder: Path) -> None:
    """Fill the live parameters from a NeMo checkpoint folder. Raises ValueError where it is damaged or names code."""
    state = trusted.load(actor.sharded_state_dict(), folder / WEIGHTS)
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


def save(session, name: str, state: dict, sets: list[str], keep: int, keep_best: int) -> None:
    """Write weight sets, optimizer and `state` as checkpoints/{name}; a numbered one becomes `latest`, and of the
    numbered ones the newest `keep` and the `keep_best` with the highest state["score"] stay.

    Collective over all processes. Raises ValueError, one line, where the disk does not take it: what was there stays.
    """
    root = session.run.folder / "checkpoints"
    partial = root / f".{name}{PARTIAL}"
    try:
        _write(session, partial, state, sets)
        _seal(partial)
    except (OSError, RuntimeError, CheckpointException) as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _DISK):
            raise  # `partial` stays, since other processes may be writing to it: the next start removes it
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(f"{root / name}: not written ({reason}): make room, then run the same command again") from None
    if dist.get_rank() == 0:
        _replace(partial, root / name)
        if name.isdigit():
            _point(root / LATEST, name)
        manifest.sync(root)
        _prune(root, keep, keep_best)
    dist.barrier()


def _write(session, partial: Path, state: dict, sets: list[str]) -> None:
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
    if dist.get_rank() == 0:
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        (partial / METRICS).write_bytes(session.run.recorded(state["metrics_position"]))
    dist.barrier()


def _seal(folder: Path) -> None:
    """Read back what was written, each process its share, and put the manifest in. Collective."""
    box = [manifest.files(folder)] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(box)
    shares = _gather(manifest.describe(folder, box[0][dist.get_rank() :: dist.get_world_size()]))
    if dist.get_rank() == 0:
        for path in folder.rglob(metadata.METADATA):
            trusted.check(path.parent)
        manifest.write(folder, {name: entry for share in shares for name, entry in share.items()})


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
    found = _gather(manifest.fault(folder, dist.get_rank(), dist.get_world_size()))
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
                    _replace(other, other.with_name(other.name + UNSOUND))
                _point(root / LATEST, path.name)
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


def _gather(item) -> list:
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, item)
    return gathered


def _replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`; until that is done, what stood there can be put back by `tidy`."""
    before = target.with_name(f".{target.name}{REPLACED}")
    if target.exists():
        target.rename(before)
    source.rename(target)
    shutil.rmtree(before, ignore_errors=True)


def _point(link: Path, name: str) -> None:
    fresh = link.with_name(".latest")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)


def _prune(root: Path, keep: int, keep_best: int) -> None:
    """Numbered checkpoints only: named ones, such as the warmed-up models, stay."""
    newest_first = numbered(root)[::-1]
    scores = {path: json.loads((path / STATE).read_text())["score"] for path in newest_first}
    scored = sorted((path for path in newest_first if scores[path] is not None), key=lambda path: -scores[path])
    for path in set(newest_first) - set(newest_first[:keep]) - set(scored[:keep_best]):
        shutil.rmtree(path)
