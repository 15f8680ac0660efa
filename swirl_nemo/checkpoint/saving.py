"""Writing a run's checkpoints: aside, read back, sealed with a manifest, renamed; `latest` moves last.

In the foreground, by threads, or while training goes on: then Megatron's writers are forks of each process, which see
its memory as it was at the moment of `save`. The files are the same to the last bit.
"""

import json
import multiprocessing
import queue
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.api import CheckpointException

from ..guard import agree
from . import manifest, metadata, trusted
from .huggingface import MODEL_CONFIG, TOKENIZER, WEIGHTS
from .run_state import LATEST, METRICS, OPTIMIZER, PARTIAL, STATE, gather, numbered, point, replace

# How a full or broken disk shows: errors of the system, of Megatron's writer processes, of torch's archive writer.
_DISK = ("Worker failure", "PytorchStreamWriter", "unexpected pos", "No space left on device", "File too large")
_POLL = 0.01  # seconds between looks at a save that is waited for


class Saver:
    """Writes a session's checkpoints, one after the other. All methods are collective over all processes.

    Each raises ValueError, one line, where the disk does not take a checkpoint: what was there stays.
    """

    def __init__(self, session):
        self._session = session
        self._calls = AsyncCallsQueue()
        self._work: Iterator[None] | None = None

    def save(self, name: str, state: dict, sets: list[str], background: bool) -> None:
        """Write weight sets, optimizer and `state` of this moment as checkpoints/{name}; a numbered one becomes
        `latest`, and of the numbered ones the newest run.keep and the run.keep_best of the highest state["score"] stay.

        With `background` it returns as soon as weights may change: `advance` or `wait` finish the checkpoint.
        """
        self.wait()
        self._work = self._steps(name, state, sets, background)
        self.advance()
        if not background:
            self.wait()

    def advance(self) -> None:
        """Take a checkpoint that is being written further, without waiting for anything."""
        if self._work and next(self._work, self) is self:
            self._work = None

    def wait(self) -> None:
        """Until no checkpoint is being written."""
        while self._work:
            time.sleep(_POLL)
            self.advance()

    def _steps(self, name: str, state: dict, sets: list[str], background: bool) -> Iterator[None]:
        session, cfg = self._session, self._session.cfg.run
        root = session.run.folder / "checkpoints"
        # A name of its own: writers of a job that was killed may still be at work
        partial = root / f".{name}-{_agreed(secrets.token_hex(4))}{PARTIAL}"
        try:
            self._write(partial, state, sets, background)
            while self._calls.get_num_unfinalized_calls():
                yield
                self._calls.maybe_finalize_async_calls()
            yield from self._seal(partial)
        except (OSError, RuntimeError, CheckpointException) as error:
            if not isinstance(error, OSError) and not any(sign in str(error) for sign in _DISK):
                raise  # `partial` stays, since other processes may be writing to it: the next start removes it
            reason = " ".join(str(error).split())[-200:]
            raise ValueError(
                f"{root / name}: not written ({reason}): make room, then run the same command again"
            ) from None
        if dist.get_rank() == 0:
            replace(partial, root / name)
            if name.isdigit():
                point(root / LATEST, name)
            manifest.sync(root)
            _prune(root, cfg.keep, cfg.keep_best)
        dist.barrier()

    def _write(self, partial: Path, state: dict, sets: list[str], background: bool) -> None:
        session = self._session
        if dist.get_rank() == 0:
            partial.mkdir(parents=True)
            (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
            (partial / METRICS).write_bytes(session.run.recorded(state["metrics_position"]))
        dist.barrier()
        for name in sets:
            with session.sets.wear(name):
                _prepare(Path(session.cfg.model.fwm), partial / name)
                self._save(session.actor.sharded_state_dict(), partial / name / WEIGHTS, background)
        if state["optimizer"]:
            self._save({"optimizer": session.actor.sharded_optimizer(loading=False)}, partial / OPTIMIZER, background)

    def _save(self, tensors: dict, folder: Path, background: bool) -> None:
        if background:
            self._calls.schedule_async_request(_request(tensors, folder, self._manager.Queue()))
        else:
            save_tensors(tensors, folder)

    @cached_property
    def _manager(self):
        # A CUDA context must not be forked; a spawned process imports the main module again, 8 s
        return multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork").Manager()

    def _seal(self, folder: Path) -> Iterator[None]:
        """Read back what was written, each process its share, and put the manifest in."""
        names = _agreed(manifest.files(folder))[dist.get_rank() :: dist.get_world_size()]
        with ThreadPoolExecutor(1) as reader:
            share = reader.submit(manifest.describe, folder, names)
            while agree(not share.done(), self._session.device):
                yield
        shares = gather(share.result())
        if dist.get_rank() == 0:
            for path in folder.rglob(metadata.METADATA):
                trusted.check(path.parent)
            manifest.write(folder, {name: entry for share in shares for name, entry in share.items()})


def save_weights(actor, source: Path, folder: Path) -> None:
    """Write the live parameters as a NeMo checkpoint folder; architecture and tokenizer are those of `source`."""
    _prepare(source, folder)
    save_tensors(actor.sharded_state_dict(), folder / WEIGHTS)


def save_tensors(tensors: dict, folder: Path) -> None:
    """Write a sharded state dict as the new `folder`; collective. Raises as Megatron's own `save` does.

    Its writers are threads: Megatron's are forks of a fork, which take longer than to write what a small model has.
    """
    request = _request(tensors, folder, queue.SimpleQueue())
    if request.async_fn:
        request = request._replace(async_fn=_write_in_threads)
    request.execute_sync()


def _request(tensors: dict, folder: Path, results) -> AsyncRequest:
    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    # Megatron has one queue for the results of all saves, and would mix those that are under way together
    filesystem_async._results_queue = results
    return dist_checkpointing.save(tensors, str(folder), async_sharded_save=True)


def _write_in_threads(buckets: list, results) -> None:
    """FileSystemWriterAsync.write_preloaded_data_multiproc: a file a bucket, and one dict or error into `results`."""
    write, written, left = FileSystemWriterAsync.write_preloaded_data, queue.SimpleQueue(), queue.Queue()
    for number in range(len(buckets)):
        left.put(number)  # each writer takes one when it has written
    with ThreadPoolExecutor(len(buckets)) as pool:
        writers = [pool.submit(write, number, bucket, written, left, True) for number, bucket in enumerate(buckets)]
    for writer in writers:
        writer.result()
    found = dict(written.get() for _ in buckets)
    errors = [outcome for outcome in found.values() if isinstance(outcome, Exception)]
    results.put(errors[0] if errors else found)


def _prepare(source: Path, folder: Path) -> None:
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        shutil.copy(source / MODEL_CONFIG, folder / MODEL_CONFIG)
        shutil.copytree(source / TOKENIZER, folder / TOKENIZER)


def _agreed(value):
    """Rank 0's, on every rank."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def _prune(root: Path, keep: int, keep_best: int) -> None:
    """Numbered checkpoints only: named ones, such as the warmed-up models, stay."""
    newest_first = numbered(root)[::-1]
    scores = {path: json.loads((path / STATE).read_text())["score"] for path in newest_first}
    scored = sorted((path for path in newest_first if scores[path] is not None), key=lambda path: -scores[path])
    for path in set(newest_first) - set(newest_first[:keep]) - set(scored[:keep_best]):
        shutil.rmtree(path)
