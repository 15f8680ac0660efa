"""JSON lines of finished items, a file a data-parallel rank, so that an evaluation goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...records import append, read_lines


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate together. The processes of one model copy have one `number`."""

    number: int = 0
    count: int = 1
    writes: bool = True  # one process of each model copy
    main: bool = True
    agree: Callable[[Any], Any] = lambda value: value  # the main process's value, on every process
    wait: Callable[[], None] = lambda: None  # until all have come here


def digest(deciding: Any) -> str:
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


class Ledger:
    """Rows {"part", "id", ...} in `folder`, {stem}-{rank}.jsonl, each file headed by `key`: what decides its rows.

    Files of another key are removed. A row with "fault" is not finished: its item is tried again the next time.
    """

    def __init__(self, folder: Path, stem: str, key: str, ranks: Ranks):
        self._folder, self._stem, self._key, self._ranks = folder, stem, key, ranks
        if ranks.main:
            for path in self._files():
                if read_lines(path)[:1] != [{"key": key}]:
                    path.unlink()
        ranks.wait()
        self.finished: set[str] = ranks.agree({name for name, row in self.rows().items() if "fault" not in row})

    def append(self, row: dict) -> None:
        if not self._ranks.writes:
            return
        path = self._folder / f"{self._stem}-{self._ranks.number}.jsonl"
        if not path.exists():
            append(path, {"key": self._key})
        append(path, row)

    def rows(self) -> dict[str, dict]:
        """The latest row of each item, by PART/ID, of all ranks; finished ones before those with a fault."""
        found: dict[str, dict] = {}
        for path in self._files():
            for row in read_lines(path)[1:]:
                name = f"{row['part']}/{row['id']}"
                if "fault" not in row or "fault" in found.get(name, row):
                    found[name] = row
        return found

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._stem}-*.jsonl"))
