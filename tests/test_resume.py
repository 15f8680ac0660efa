"""Stop and go on: the metrics that follow are those of the run that was never stopped. Runs: workers/runs.py.

In the same layout every figure is the same to its last digit, whatever was random; on TP2, DP2 and CP2 within 1e-4.
"""

import json
import math
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.megatron

ON_THE_CLOCK = ("seconds", "tokens_per_s", "memory")


def metrics(run: Path) -> list[dict]:
    """All that does not depend on the clock."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(ON_THE_CLOCK)} for line in parsed]


def stops(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stops.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    """But for what says when and from which commit it ran."""
    values = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in values.items() if key not in ("seconds", "commit")}


def assert_alike(actual: dict, expected: dict) -> None:
    """Within 1e-4, relative; absolute under 1, since a difference of log-probs has no size of its own."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float) and not key.startswith("drift"):
            assert math.isclose(actual[key], value, rel_tol=1e-4, abs_tol=1e-4), (key, actual, expected)
        elif not key.startswith("drift"):
            assert actual[key] == value, (key, actual, expected)


def test_it_stopped_where_it_was_told(runs):
    """Each SIGTERM ended the process with exit code 0 (workers/runs.py raises otherwise) at that very step."""
    seen = stops(runs / "stopped")
    assert [stop["phase"] for stop in seen] == ["pretrain", "warmup", "idm", "idm", "fwm", *2 * ["continued_sft"]]
    assert [stop["signal"] for stop in seen] == 6 * [signal.SIGTERM] + [signal.SIGKILL]
    assert not any(stop["finished"] for stop in seen)
    for stop in seen:
        last = stop["last line"]
        assert (last["phase"], last.get("role"), last["step"]) == (stop["phase"], stop["role"], stop["step"])


def test_it_stops_while_it_annotates_and_evaluates(runs):
    """What was done so far is saved, or was before: of two batches of an evaluation the second is not waited for."""
    annotation, _, _, validation, test = stops(runs / "shared_stopped")
    assert not any(stop["finished"] for stop in (annotation, validation, test))
    assert (annotation["saved"]["stage"], annotation["saved"]["step"]) == (1, 0), "warm-up done, Phase II not begun"
    assert (validation["saved"]["stage"], validation["saved"]["step"]) == (2, 3), "Phase I done, not left"
    assert (test["saved"]["stage"], test["saved"]["step"]) == (4, 0), "all stages done"
    assert annotation["last line"]["split"] == test["last line"]["split"] == "validation"
    assert (validation["last line"]["phase"], validation["last line"]["step"]) == ("fwm", 3)


@pytest.mark.parametrize("whole", ["whole", "shared", "baselines", "better"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(runs, whole):
    """To the last digit, in metrics, held-out figures, predictions and annotations."""
    stopped = "stopped" if whole == "whole" else f"{whole}_stopped"
    expected, actual = metrics(runs / whole), metrics(runs / stopped)
    for one, other in zip(actual, expected, strict=True):
        assert one == other, stops(runs / stopped)
    assert summary(runs / stopped) == summary(runs / whole)
    annotations = (f"{kind}-1-{role}.jsonl" for kind in ("annotations", "annotation_scores") for role in ("fwm", "idm"))
    for name in ("samples.jsonl", *annotations):
        assert (runs / stopped / name).read_bytes() == (runs / whole / name).read_bytes()


def test_a_run_goes_on_in_another_layout(runs):
    """From one process to TP2 with sequence parallelism in Phase II, from there to DP2 in Phase I and to CP2 in the
    baseline. Of several ranks only the last got the signal."""
    expected, actual = metrics(runs / "whole"), metrics(runs / "moved")
    for one, other in zip(actual, expected, strict=True):
        assert_alike(one, other)
    before = stops(runs / "moved")[2]["lines"]
    assert actual[:before] == expected[:before]
    assert actual != expected  # else it did not move


def test_without_the_optimizers_state_it_would_show(runs):
    """The same run, told that its checkpoint has no optimizer state: the comparison above fails at its second step."""
    expected, actual = metrics(runs / "whole"), metrics(runs / "forgetful")
    start = stops(runs / "forgetful")[2]["lines"]
    assert actual[:start] == expected[:start]
    with pytest.raises(AssertionError):
        for one, other in zip(actual[start:], expected[start:], strict=False):
            assert_alike(one, other)
