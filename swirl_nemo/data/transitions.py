"""Transitions files: JSON lines, read lazily.

A row is one transition, {"id", "x", "z" or null, "y", "world", "episode", "t"}, or a state-only sequence,
{"id", "states": [s_0, ..., s_T], "world", "episode"}, which stands for the T pairs x = s_t, y = s_t+1 without actions.
A transition may have "history" too, the states before x, the latest last; in a sequence they are known. A state is a
text or {"image": codes}, a list of them or "FILE.npy#ROW" with a path from the file's own folder (images/codes.py).
"""

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np

from ..records import read_lines
from .images.characters import FORGED
from .images.codes import ImageReader
from .transition import Transition

State = str | dict[str, str | list[int]]
Value = State | int | list[State] | None

ROW_KEYS = {"id", "x", "z", "y", "world", "episode", "t"}
OPTIONAL_KEYS = {"history"}
SEQUENCE_KEYS = {"id", "states", "world", "episode"}
WHOLE_ROW = -1


class TransitionFile(Sequence[Transition]):
    """The first `limit` transitions of a file (None: all), in the file's order, with up to `history` states before x.

    One scan at construction checks every row under the limit and keeps where each transition begins, 16 bytes apiece;
    a row is parsed when it is indexed. The file must not change while it is in use.

    Raises ValueError, naming file and line, for a row that is not as this module's docstring says, and for a file that
    is missing or empty.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int | None, history: int = 0):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such transitions file: mend its path under data, or collect it first")
        if limit is not None and limit < 1:
            raise ValueError(
                f"{self.path}: a limit of {limit} transitions reads nothing: give at least 1, or null for all"
            )
        self._images, self._history = ImageReader(self.path.parent), history
        self._offsets, self._steps = self._scan(limit)
        if not len(self):
            raise ValueError(f"{self.path}: the file is empty: give at least one transition")

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Transition: ...

    @overload
    def __getitem__(self, index: slice) -> list[Transition]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        # Opened anew for each row: a handle shared with a forked process would share its position too.
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            row = json.loads(file.readline())
        step = int(self._steps[index])
        if step == WHOLE_ROW:
            earlier = row.get("history", [])
        else:
            states = row.pop("states")
            earlier, (x, y) = states[:step], states[step : step + 2]
            row |= {"id": f"{row['id']}:{step}", "x": x, "z": None, "y": y, "t": step}
        return Transition.of(row | {"history": earlier[max(0, len(earlier) - self._history) :]}, self._images.text)

    def _scan(self, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Byte offset of each transition's row, and its place in the row's sequence or WHOLE_ROW: int64 [N] both."""
        offsets, steps = array("q"), array("q")
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                row = _parse(line, f"{self.path}:{number}", self._images)
                pairs = range(len(row["states"]) - 1) if "states" in row else [WHOLE_ROW]
                steps.extend(pairs)
                offsets.extend([offset] * len(pairs))
                offset += len(line)
                if limit is not None and len(offsets) >= limit:
                    break
        return np.array(offsets[:limit], dtype=np.int64), np.array(steps[:limit], dtype=np.int64)


def with_actions(rows: Sequence[Transition], path: str | os.PathLike[str]) -> list[Transition]:
    """State-only rows with the actions that a file of {"id", "z"} lines has for them.

    Raises ValueError for a row that the file has no action for, and for a line that is none.
    """
    if not Path(path).is_file():
        raise ValueError(f"data.unlabelled_actions={path}: no such file: collect it (swirl collect), or give null")
    try:
        actions = {line["id"]: line["z"] for line in read_lines(Path(path))}
    except KeyError as error:
        raise ValueError(f"{path}: a line has no {error}: a line has id and z") from None
    if missing := next((row.id for row in rows if row.id not in actions), None):
        raise ValueError(f"{path}: has no action for transition {missing}: give the file that was collected with it")
    return [replace(row, z=actions[row.id]) for row in rows]


def _parse(line: bytes, where: str, images: ImageReader) -> dict[str, Value]:
    """The checked row of one line. `where` is FILE:LINE."""
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise ValueError(
                f"{where}: the last line is cut in the middle ({error}): remove it, or write the file again"
            ) from error
        raise ValueError(f"{where}: not a JSON object in UTF-8 ({error}): write one object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {_shown(row)} is not a JSON object: write one object a line")
    expected = SEQUENCE_KEYS if "states" in row else ROW_KEYS
    optional = OPTIONAL_KEYS if expected is ROW_KEYS else set()
    if row.keys() - optional != expected:
        missing, unknown = sorted(expected - row.keys()), sorted(row.keys() - expected)
        faults = [f"{what} {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise ValueError(f"{where}: keys {' and '.join(faults)}: a row has exactly {', '.join(sorted(expected))}")
    for key, value in row.items():
        _check_value(key, value, where, images)
    return row


def _check_value(key: str, value: object, where: str, images: ImageReader) -> None:
    if key == "t":
        if type(value) is not int or value < 0:
            raise ValueError(f"{where}: t is {_shown(value)}: give the step within the episode, an integer from 0")
    elif key == "states":
        if not isinstance(value, list) or len(value) < 2:
            raise ValueError(f"{where}: states is {_shown(value)}: give a list of at least 2 states")
        _check_states(key, value, where, images)
    elif key == "history":
        if not isinstance(value, list):
            raise ValueError(f"{where}: history is {_shown(value)}: give a list of the states before x")
        _check_states(key, value, where, images)
    elif key in ("x", "y"):
        _check_state(key, value, where, images)
    elif key != "z" or value is not None:
        _check_text(key, value, where)


def _check_states(key: str, values: list, where: str, images: ImageReader) -> None:
    for place, state in enumerate(values):
        _check_state(f"{key}[{place}]", state, where, images)


def _check_state(key: str, value: object, where: str, images: ImageReader) -> None:
    if not isinstance(value, dict):
        _check_text(key, value, where)
    elif value.keys() != {"image"}:
        raise ValueError(f'{where}: {key} is {_shown(value)}: give a text or {{"image": CODES}}')
    else:
        images.check(value["image"], f"{where}: {key}")


def _check_text(key: str, value: object, where: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {_shown(value)}: give a text")
    if FORGED.search(value):
        raise ValueError(f"{where}: {key} has a character of Unicode's private planes 15 and 16: remove it")
    if not value.strip():
        raise ValueError(f"{where}: {key} is empty: give a text{', or null where no action is known' * (key == 'z')}")


def _shown(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
