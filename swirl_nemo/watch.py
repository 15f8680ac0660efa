"""Notices, and says, that another process of the job has stopped answering.

A process that is stopped, or whose node is gone, leaves the others waiting in a collective, whose own time-out names
nobody. So a thread of each process writes a beat and where it is to RUN/alive/RANK; rank 0 reads them all, and rank 1
reads that of rank 0. No clock is compared: what counts is how many looks in a row found the same beat.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENDED = "ended"
SHARE = 0.75  # of the collectives' time-out: this line should come before theirs
LOOKS = 20  # a time-out
LONGEST = 10.0  # seconds between looks


class Watch:
    """Whoever works says `at` what it is."""

    def __init__(self, folder: Path, rank: int, world: int, timeout: float):
        self._stage, self._part, self._beats = "start", "", 0
        self._folder, self._rank = folder / "alive", rank
        self._watched = range(1, world) if rank == 0 else [0] if rank == 1 else []
        self._alone = world == 1
        self._interval = min(timeout / LOOKS, LONGEST)
        self._limit = int(SHARE * timeout / self._interval)
        self._over = threading.Event()
        self._running = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Beat and look while the body runs. Where another process is silent for SHARE of the time-out, one line says
        which and where it was last, and this process ends with code 1, at once: it waits for the other in C++."""
        if self._alone:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for rank in self._watched:  # what an earlier job left is no sign of life
            (self._folder / str(rank)).unlink(missing_ok=True)
        self._beat()
        self._running = True
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        except SystemExit as error:
            self._stop(thread, clean=not error.code)
            raise
        except BaseException:
            self._stop(thread, clean=False)
            raise
        self._stop(thread, clean=True)

    def _stop(self, thread: threading.Thread, clean: bool) -> None:
        self._over.set()
        self._running = False
        thread.join()
        if clean:
            self._write(ENDED)

    def _run(self) -> None:
        seen, looks = {}, dict.fromkeys(self._watched, 0)
        while not self._over.wait(self._interval):
            self._beat()
            for rank in self._watched:
                beat = self._read(rank)
                looks[rank] = looks[rank] + 1 if beat == seen.get(rank) != ENDED else 0
                seen[rank] = beat
                if looks[rank] >= self._limit:
                    self._end(rank, beat)

    def _end(self, rank: int, beat: str) -> None:
        place = beat.partition(" ")[2] or "its start"
        told = f"rank {rank} has not answered for {self._limit * self._interval:.0f} s, last seen in {place}"
        mend = f"({self._folder / str(rank)}): look at its node, then run the same command again"
        sys.stderr.write(f"swirl: error: {told} {mend}\n")
        sys.stderr.flush()
        os._exit(1)

    def at(self, part: str, stage: str | None = None) -> None:
        """What this process does from now on, within the stage named last."""
        self._part, self._stage = part, stage or self._stage
        if self._running:
            self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._write(f"{self._beats} {self._stage} {self._part}".rstrip())

    def _write(self, text: str) -> None:
        (self._folder / str(self._rank)).write_text(text)

    def _read(self, rank: int) -> str:
        path = self._folder / str(rank)
        return path.read_text() if path.exists() else ""
