"""A world's episodes in a fixed order, however they were played; kept in a file, so that a collection goes on."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from random import Random

from ..records import append, read_lines
from ..worlds import Step
from ..worlds.base import SplitConfig
from .config import CollectConfig
from .workers import Job, Outcome, Pool

AHEAD = 3  # episodes requested ahead of the one that is waited for, for each process


class Episodes:
    """The episodes of a configuration. Those in `path` are not played again, unless they were played otherwise."""

    def __init__(self, cfg: CollectConfig, path: Path):
        self._cfg, self._path = cfg, path
        self._pool: Pool | None = None
        self._kept = _read(path, self._key())
        self.failures: Counter[str] = Counter()
        self.played = self.left_out = 0

    def stream(self, tasks: Sequence[str], suffix: str = "") -> Iterator[tuple[Job, list[Step]]]:
        """Up to `world.max_episodes` episodes on `tasks`, in order; one that failed is left out."""
        world, ahead = self._cfg.world, 1 + AHEAD * self._cfg.processes
        for index in range(world.max_episodes):
            numbers = range(index, min(index + ahead, world.max_episodes))
            coming = [self._job(f"{world.name}-{number:05d}{suffix}", tasks) for number in numbers]
            for job in coming:
                if job.episode not in self._kept:
                    self._running().request(job)
            job = coming[0]
            outcome = self._kept.get(job.episode) or self._play(job)
            self.played += 1
            self.failures.update(outcome.failures)
            if outcome.steps is None:
                self.left_out += 1
            else:
                yield job, outcome.steps

    def _job(self, episode: str, tasks: Sequence[str]) -> Job:
        return Job(episode, Random(f"{self._cfg.seed}/{episode}/task").choice(tasks))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _running(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self._cfg.world, self._cfg.seed, self._cfg.processes)
        return self._pool

    def _play(self, job: Job) -> Outcome:
        """Played, and appended to the file in the order of asking, which depends on the configuration alone."""
        outcome = self._running().take(job)
        if not self._kept:
            self._path.unlink(missing_ok=True)
            append(self._path, {"key": self._key()})
        self._kept[job.episode] = outcome
        append(self._path, {"episode": job.episode, **asdict(outcome)})
        return outcome

    def _key(self) -> str:
        """Of all that decides what happens in an episode."""
        others = {field.name for field in fields(SplitConfig)}
        deciding = {key: value for key, value in asdict(self._cfg.world).items() if key not in others}
        text = json.dumps([self._cfg.seed, self._cfg.world.held_out_tasks, deciding], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, key: str) -> dict[str, Outcome]:
    """Episodes of an earlier collection of the same key."""
    rows = read_lines(path) if path.is_file() else []
    if not rows or rows[0] != {"key": key}:
        return {}
    return {
        row["episode"]: Outcome(row["steps"] and [Step(*step) for step in row["steps"]], row["failures"])
        for row in rows[1:]
    }
