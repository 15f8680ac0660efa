"""Simulators in processes of their own: one that crashes or hangs is killed with all that it started, and replaced."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from random import Random
from threading import Thread

import psutil

from ..worlds import Step, WorldConfig, find

START_SECONDS = 120.0  # for a browser or a JVM to come up on a busy machine
TRIES = 2  # an episode that fails twice is left out
HOPELESS = 5  # episodes left out, or failed starts, in a row


@dataclass(frozen=True)
class Job:
    """An episode to play. Its name and task, and the seed, decide all that happens in it."""

    episode: str
    task: str


@dataclass
class Outcome:
    """What came of a job: its steps, or None where every try failed; `failures` says how the tries failed."""

    steps: list[Step] | None = None
    failures: list[str] = field(default_factory=list)


class Pool:
    """Plays jobs in `processes` simulators; their outcomes are asked for by job, in any order.

    Raises ValueError, one line, where one episode after the other fails.
    """

    def __init__(self, config: WorldConfig, seed: int, processes: int):
        self._config, self._seed = config, seed
        self._waiting: deque[Job] = deque()
        self._outcomes: dict[Job, Outcome] = {}
        self._given_up = 0  # since the last success
        self._workers = [_Worker(config, seed) for _ in range(processes)]

    def request(self, job: Job) -> None:
        """Has the job played when a simulator is free."""
        if job not in self._outcomes:
            self._outcomes[job] = Outcome()
            self._waiting.append(job)
            self._dispatch()

    def take(self, job: Job) -> Outcome:
        """The outcome of a requested job; waits for it."""
        while not self._done(job):
            soonest = min(worker.deadline for worker in self._workers)
            wait([worker.pipe for worker in self._workers], timeout=max(0.0, soonest - time.monotonic()))
            for place, worker in enumerate(self._workers):
                self._attend(place, worker)
            self._dispatch()
        return self._outcomes.pop(job)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def _done(self, job: Job) -> bool:
        outcome = self._outcomes[job]
        return outcome.steps is not None or len(outcome.failures) == TRIES

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.idle:
                worker.play(self._waiting.popleft())

    def _attend(self, place: int, worker: "_Worker") -> None:
        """Takes what the worker has to say; replaces it where it is dead or late."""
        failure = None
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, str):
                    failure = message
                elif job := worker.answered():
                    self._outcomes[job].steps = message
                    self._given_up = 0
        except (EOFError, ConnectionError):
            failure = failure or "crashed"
        if failure is None and time.monotonic() < worker.deadline:
            return
        worker.kill()
        self._failed(worker.job, failure or "hung")
        self._workers[place] = _Worker(self._config, self._seed)

    def _failed(self, job: Job | None, failure: str) -> None:
        if job is not None:
            outcome = self._outcomes[job]
            outcome.failures.append(failure)
            if len(outcome.failures) < TRIES:
                self._waiting.appendleft(job)
                return
        self._given_up += 1
        if self._given_up == HOPELESS:
            raise ValueError(
                f"world={self._config.name}: {HOPELESS} failures in a row, the last: {failure}: mend the simulator, or "
                f"raise world.episode_seconds={self._config.episode_seconds:g} where it hangs"
            )


class _Worker:
    """One process with one world. It is idle once the world has started, and after each answer."""

    def __init__(self, config: WorldConfig, seed: int):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, seed), daemon=True)
        self._process.start()
        theirs.close()
        self._limit = config.episode_seconds
        self.job: Job | None = None
        self.idle = False
        self.deadline = time.monotonic() + START_SECONDS

    def play(self, job: Job) -> None:
        self.job, self.idle = job, False
        self.deadline = time.monotonic() + self._limit
        with suppress(ConnectionError):  # a dead process is seen when its pipe is read
            self.pipe.send(job)

    def answered(self) -> Job | None:
        """The job that an answer belongs to; None for the first message, which says that the world has started."""
        job, self.job = self.job, None
        self.idle, self.deadline = True, float("inf")
        return job

    def kill(self) -> None:
        """Ends the process and what it started."""
        _end(self._process.pid)
        self._process.join()
        self.pipe.close()

    def end(self) -> None:
        """Lets an idle world close what it started; a busy one is killed."""
        if self.idle:
            with suppress(ConnectionError):
                self.pipe.send(None)
            self._process.join(timeout=self._limit)
        self.kill()


def _end(worker: int) -> None:
    """Kills a worker after what it started: its descendants, and those of its session where it is dead already."""
    started = {pid for pid in psutil.pids() if _session(pid) == worker}
    with suppress(psutil.NoSuchProcess):
        started |= {child.pid for child in psutil.Process(worker).children(recursive=True)}
    for pid in [*(started - {worker}), worker]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def _follow_parent() -> None:
    """A simulator that hangs would never see that its pipe is closed."""
    parent_process().join()
    _end(os.getpid())


def _serve(pipe: Connection, config: WorldConfig, seed: int) -> None:
    """The worker's life: an empty list once the world has started, then a list of steps, or a line on what failed."""
    os.setsid()  # what the simulator starts is known by its session; Ctrl-C reaches the parent alone
    Thread(target=_follow_parent, daemon=True).start()
    try:
        with _opened(config) as world:
            pipe.send([])
            while (job := pipe.recv()) is not None:
                pipe.send(list(world.episode(job.task, Random(f"{seed}/{job.episode}"))))
    except (EOFError, ConnectionError):
        return  # the parent has gone
    except Exception as error:
        with suppress(ConnectionError):
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


@contextmanager
def _opened(config: WorldConfig) -> Iterator:
    world = find(config.name)(config)
    try:
        yield world
    finally:
        world.close()
