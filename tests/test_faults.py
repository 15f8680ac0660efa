"""Whatever happens to a running job, the same command ends it with the metrics of the job that nothing happened to.

Jobs of two processes, struck by workers/faults.py; steps that are not finite, by workers/nonfinite.py.
"""

import json
import math
import signal
from pathlib import Path

import pytest
from test_resume import metrics, summary
from workers.faults import SLOW, in_background, layout_of
from workers.layouts import run_module

pytestmark = pytest.mark.megatron

KILLS = 30
SEEDS = range(11, 11 + KILLS // 6)


@pytest.fixture(scope="module")
def struck(tmp_path_factory) -> Path:
    """One run, struck by each fault in turn: a minute, once."""
    work = tmp_path_factory.mktemp("faults")
    run_module("workers.faults", work)
    return work


def rows(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "faults.jsonl").read_text().splitlines()]


def row(work: Path, moment: str, number: int | None) -> dict:
    """Of the run that everything happened to."""
    found = [row for row in rows(work) if row["run"] == "faulted"]
    (one,) = [row for row in found if (row["faults"][0]["moment"], row["faults"][0]["signal"]) == (moment, number)]
    return one


def used(run: Path) -> list[tuple]:
    """Which step of which stage, in order: each stands there once."""
    return [(line["phase"], line.get("role"), line["step"]) for line in metrics(run) if not line.get("eval")]


def assert_as_undisturbed(struck: Path, whole: Path) -> None:
    """To the last digit; a step's figures are those of its own transitions, so none was skipped or used twice.

    The checkpoints that are left hold the same bytes, the optimizer's among them.
    """
    for one, other in zip(metrics(struck), metrics(whole), strict=True):
        assert one == other
    assert summary(struck) == summary(whole)
    assert (struck / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert len(set(used(struck))) == len(used(struck))
    left = [path.name for path in (struck / "checkpoints").iterdir()]
    assert not [name for name in left if name.endswith((".partial", ".replaced"))], left
    manifests = list((whole / "checkpoints").glob("*/manifest.json"))
    assert manifests and all(map(weights, manifests))
    for path in manifests:
        same = struck / "checkpoints" / path.parent.name / "manifest.json"
        assert weights(same) == weights(path), path


def weights(manifest: Path) -> dict:
    """The files of weights and optimizer state: metrics.jsonl has times in it."""
    files = json.loads(manifest.read_text())["files"]
    return {name: entry for name, entry in files.items() if name.endswith(".distcp")}


def test_a_run_that_everything_happened_to_ends_as_if_nothing_had(struck):
    """Six kills, SIGTERM, SIGSTOP, a full disk, a damaged checkpoint and lost metrics."""
    signals = [fault["signal"] for row in rows(struck) if row["run"] == "faulted" for fault in row["faults"]]
    assert signals.count(signal.SIGKILL) >= 6 and {signal.SIGTERM, signal.SIGSTOP} <= set(signals), signals
    assert_as_undisturbed(struck / "runs" / "faulted", struck / "runs" / "TP2")


def test_a_pipeline_goes_on_to_the_last_digit_too(struck):
    """Megatron gave the second stage the first one's parameter groups: weights for norms, in another order."""
    (killed,) = (row for row in rows(struck) if row["run"] == "pipeline" and not row["finished"])
    assert -signal.SIGKILL in killed["codes"]
    assert_as_undisturbed(struck / "runs" / "pipeline", struck / "runs" / "PP2")


def test_saves_in_the_background_are_those_that_were_waited_for(struck):
    """Killed while one was written, and with a full disk. Other bytes would show in the comparison of checkpoints."""
    assert_as_undisturbed(struck / "runs" / "background", struck / "runs" / "TP2")
    killed, full = (row for row in rows(struck) if row["run"] == "background")
    assert killed["codes"][1] == -signal.SIGKILL and not killed["finished"]
    assert full["codes"][0] == 2 and "No space left on device" in full["log"] and not full["finished"]


def test_training_goes_on_while_a_save_in_the_background_is_written(struck):
    """Every file takes its writer SLOW seconds; three to four sets of files a checkpoint. What a busy machine adds to
    both is not judged."""
    lines = [json.loads(line) for line in (struck / "writes.jsonl").read_text().splitlines()]
    waited = {kind: [row["seconds"] for row in lines if row["background"] is kind] for kind in (True, False)}
    assert len(waited[True]) > 10 and len(waited[False]) > 3
    assert min(waited[False]) > 2 * SLOW
    assert sorted(waited[True])[len(waited[True]) // 2] < min(waited[False]) / 2


@pytest.mark.parametrize(
    "moment", ["rollout", "scoring", "backward", "optimizer step", "weight swap", "save"], ids=lambda m: m
)
def test_each_kill_hit_a_running_job(struck, moment):
    found = row(struck, moment, signal.SIGKILL)
    assert found["codes"][found["faults"][0]["rank"]] == -signal.SIGKILL and not found["finished"]


def test_sigterm_to_all_saves_and_exits_with_0(struck):
    found = row(struck, "scoring", signal.SIGTERM)
    assert found["codes"] == [0, 0] and not found["finished"]


def test_a_stopped_rank_is_named_with_its_place_within_the_limit(struck):
    """cluster.timeout_minutes=0.4, of which three quarters are 18 s."""
    found = row(struck, "scoring", signal.SIGSTOP)
    (told,) = [line for line in found["log"].splitlines() if line.startswith("swirl: error")]
    assert told.startswith("swirl: error: rank 1 has not answered for 18 s, last seen in ")
    assert "phase" in told or "start" in told
    assert found["codes"][0] == 1 and found["seconds"] < 24 + 60  # the job's start and two steps among it


def test_a_full_disk_ends_a_save_in_one_line_and_leaves_what_was_there(struck):
    found = row(struck, "save", None)
    (told,) = [line for line in found["log"].splitlines() if line.startswith("swirl: error")]
    assert "No space left on device" in told and told.endswith("make room, then run the same command again")
    assert found["codes"][0] == 2


def test_a_damaged_checkpoint_is_named_set_aside_and_the_newest_sound_one_taken(struck):
    log = (struck / "finished.log").read_text()
    assert "/__0_0.distcp is not what was written (SHA-256): left out" in log and "lines were missing" in log
    assert len(list((struck / "runs" / "faulted" / "checkpoints").glob("*.unsound"))) == 1


def test_without_a_sound_checkpoint_a_run_stops_in_one_line_and_leaves_all_as_it_is(struck):
    """Rather than start anew over what is there."""
    said = json.loads((struck / "none-sound.json").read_text())
    told = [line for line in said["log"].splitlines() if line.startswith("swirl: error")]
    assert said["codes"] == [2, 2] and len(told) == 2 and said["untouched"]
    assert all("no sound checkpoint among 3" in line or "no sound checkpoint among 2" in line for line in told)
    assert "state.json is missing: left out" in said["log"]


def test_no_secret_of_the_environment_is_left_anywhere(struck):
    """Every rank had a token and two keys in its environment: no file of a run nor its log holds them."""
    from workers.faults import SECRET

    files = [path for path in struck.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


# steps that are not finite


@pytest.fixture(scope="module")
def not_finite(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("nonfinite")
    run_module("workers.nonfinite", work)
    return work


@pytest.mark.parametrize("layout", ["DP2", "TP2 PP2"])
@pytest.mark.parametrize("case, skipped", [("gradient", 2), ("loss", 2), ("reward", 2), ("none", 0)])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(not_finite, layout, case, skipped):
    """Two optimizer steps, neither done: weights, moments and the optimizer's count keep every bit on every rank."""
    seen = json.loads((not_finite / f"{layout}.json").read_text())[case]
    assert [rank["skipped"] for rank in seen] == [skipped] * len(seen)
    assert all(rank["same"] == bool(skipped) for rank in seen)
    kinds = [row["kind"] for row in seen[0]["batch"]]
    assert kinds == (["policy"] * 16 + ["replay"] * 4 if skipped else [])
    if case == "reward":
        assert sum(math.isnan(row["reward"]) for row in seen[0]["batch"][:16]) == (1 if layout == "DP2" else 0)


def test_a_run_stops_after_some_steps_in_a_row_that_are_not_finite(not_finite):
    """Steps 2, 4 and 5 of the FWM's and IDM's warm-up, four each; run.max_nonfinite=2."""
    folder, said = not_finite / "runs" / "not-finite", json.loads((not_finite / "stopped.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped/nonfinite"] for line in lines] == [0, 1, 0, 1, 1]
    told = [line for line in said["log"].splitlines() if line.startswith("swirl: error")]
    assert said["codes"] == [2, 2] and "the 2. step in a row (run.max_nonfinite=2)" in told[0]
    assert sorted(path.name for path in (folder / "nonfinite").iterdir()) == [f"{n:08d}.jsonl" for n in (2, 4, 5)]
    batch = [json.loads(line) for line in (folder / "nonfinite" / "00000002.jsonl").read_text().splitlines()]
    assert len(batch) == 6 and all(row["kind"] == "fwm" and row["x"] and row["y"] for row in batch)


def test_drift_warns_then_stops_on_all_ranks(not_finite):
    """Seen by the last rank alone: 0.1 is nothing, 0.7 is over run.drift_warn, 5 over run.drift_stop."""
    told = json.loads((not_finite / "drift.json").read_text())
    assert len(told) == 2 and told[0] == told[1]
    nothing, warned, went_on, stopped = told[0]
    assert (nothing, went_on) == ("on", "on") and "over run.drift_warn=0.5" in warned
    assert "over run.drift_stop=3.0" in stopped


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_seeded_kills(tmp_path):
    """In three layouts; the table of them is printed, and left as kills.md."""
    run_module("workers.faults", tmp_path, *map(str, SEEDS))
    found = rows(tmp_path)
    head = "| seed | layout | saves | killed in | rank | call | after |\n|---|---|---|---|---|---|---|\n"
    table = head + "".join(_line(r) for r in found)
    (tmp_path / "kills.md").write_text(table)
    print(table)
    assert len(found) == KILLS
    assert all(r["codes"][r["faults"][0]["rank"]] == -signal.SIGKILL and not r["finished"] for r in found)
    for seed in SEEDS:
        assert_as_undisturbed(tmp_path / "runs" / f"seed-{seed}", tmp_path / "runs" / layout_of(seed))


def _line(r: dict) -> str:
    fault, seed = r["faults"][0], int(r["run"].removeprefix("seed-"))
    saves = "in the background" if in_background(seed) else "waited for"
    place = f"{fault['moment']} | {fault['rank']} | {fault['call']} | {fault['delay'] * 1000:.0f} ms"
    return f"| {seed} | {layout_of(seed)} | {saves} | {place} |\n"
