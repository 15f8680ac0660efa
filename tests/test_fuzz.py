"""9,500 inputs of no sense, and 2,000 more for import in test_import.py: each is read, or refused by one line of ours.

Cases follow from SEED alone.
"""

import json
import random
import traceback
from collections.abc import Callable

import pytest

from swirl_nemo.checkpoint import manifest
from swirl_nemo.checks import check
from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.settings import _keys, compose

pytestmark = [pytest.mark.long, pytest.mark.slow]

SEED = 5
TRANSITIONS, OVERRIDES, MANIFESTS = 5000, 3000, 1500
ROW = {
    "id": "a-0",
    "x": "a door is shut",
    "z": "open door",
    "y": "a door is open",
    "world": "w",
    "episode": "a",
    "t": 0,
}
STATES = {"id": "b", "states": ["one", "two", "three"], "world": "w", "episode": "b"}


def any_value(r: random.Random, depth: int = 0):
    """JSON of any kind; numbers and texts that are known to hurt among it."""
    numbers = (0, -1, 1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"))
    texts = ("", " ", "a", "\0", "\n", "é", "\ud800", "{", "../../etc/passwd", "None", "1e400", "${a}", "x" * 999)
    kinds = [None, True, False, r.choice(numbers), r.choice(texts), r.randint(-9, 99), r.random()]
    if depth < 3:
        kinds += [[any_value(r, depth + 1) for _ in range(r.randint(0, 3))]]
        kinds += [{r.choice((*ROW, *texts)): any_value(r, depth + 1) for _ in range(r.randint(0, 3))}]
    return r.choice(kinds)


def spoil(r: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    for _ in range(r.randint(1, 4)):
        at, to = sorted(r.randint(0, len(content)) for _ in range(2))
        middle = r.choice([b"", r.randbytes(r.randint(0, 5)), content[at:to] * 2, b"\n", b"\xff", b'"', b"}"])
        content = content[:at] + middle + content[to if r.random() < 0.3 else at :]
    return content


def refusals(cases: int, attempt: Callable[[random.Random], object]) -> int:
    """How many of the cases were refused. A case fails where anything but our own one-line ValueError comes out."""
    refused = 0
    for case in range(cases):
        r = random.Random(f"{SEED} {case}")
        try:
            attempt(r)
        except ValueError as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            ours = frame.f_globals["__name__"].split(".")[0] == "swirl_nemo"
            assert ours and str(error).strip(), f"case {case}: {error!r} from {frame.f_globals['__name__']}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {case}: {error!r}") from error
    return refused


def _rows(r: random.Random) -> bytes:
    rows = [dict(r.choice((ROW, STATES)), id=f"{i}") for i in range(r.randint(1, 4))]
    if r.random() < 0.6:
        row = r.choice(rows)
        for _ in range(r.randint(1, 2)):
            row[r.choice((*row, "more"))] = any_value(r)
        if r.random() < 0.3:
            row.pop(r.choice(list(row)))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_transitions(tmp_path):
    path = tmp_path / "transitions.jsonl"

    def attempt(r: random.Random) -> None:
        kind = r.random()
        content = r.randbytes(r.randint(0, 300)) if kind < 0.2 else _rows(r)
        path.write_bytes(spoil(r, content) if kind > 0.5 else content)
        for transition in TransitionFile(path, r.choice([None, 1, 3])):
            assert isinstance(transition.id, str)

    assert TRANSITIONS * 0.3 < refusals(TRANSITIONS, attempt) < TRANSITIONS


def _override(r: random.Random, keys: list[str]) -> str:
    key = r.choice(keys)
    if r.random() < 0.2:
        key = spoil(r, key.encode()).decode(errors="replace")
    value = json.dumps(any_value(r), ensure_ascii=r.random() < 0.5) if r.random() < 0.8 else str(any_value(r))
    return f"{key}{r.choice(('=', '=', '=', '=', '', '==', ' = '))}{value}"


def test_overrides():
    from swirl_nemo.config import SwirlConfig

    keys = [*_keys(SwirlConfig), "model", "data", "phase", "parallel", "experiment", "cluster", "precision"]

    def attempt(r: random.Random) -> None:
        cfg = compose([_override(r, keys) for _ in range(r.randint(1, 2))])
        check(cfg, r.choice([1, 2, 8]))

    assert OVERRIDES * 0.5 < refusals(OVERRIDES, attempt) < OVERRIDES


def test_manifests(tmp_path):
    """A manifest of no sense is a fault with a name, never an error: at start it costs one checkpoint, not the run."""
    (tmp_path / "state.json").write_text("{}")
    manifest.write(tmp_path, manifest.describe(tmp_path, ["state.json"]))
    path = tmp_path / manifest.NAME
    honest, faults = path.read_bytes(), 0
    for case in range(MANIFESTS):
        r = random.Random(f"{SEED} {case}")
        entry = {"size": any_value(r), "sha256": any_value(r)}
        nonsense = r.choice([any_value(r), {"files": any_value(r)}, {"files": {str(any_value(r)): entry}}])
        path.write_bytes(spoil(r, honest) if case % 2 else json.dumps(nonsense).encode())
        fault = manifest.fault(tmp_path)
        faults += bool(fault)
    assert MANIFESTS * 0.9 < faults < MANIFESTS
