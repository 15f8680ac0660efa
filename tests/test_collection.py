"""Collecting from simulators that crash and hang: a world that does so when it is told to, since a real one cannot be
asked to. What is collected must be what an undisturbed simulator would have given."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trial_world
from collected import digests
from trial_world import SPLITS, Trial, configure

from swirl_nemo.collection import collect
from swirl_nemo.collection.splits import in_turn
from swirl_nemo.collection.workers import HOPELESS, TRIES

FILES = [f"{split}.jsonl" for split, wanted in SPLITS.items() if wanted]
FILES += ["unlabelled_actions.jsonl", "test_episodes.jsonl"]
TASKS = Trial(configure(Path("unused")).world).tasks()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    collect(configure(out))
    return out


@pytest.fixture
def trouble(tmp_path, monkeypatch):
    """Has the world misbehave from now on; returns the folder with its notes."""

    def tell(**kinds) -> Path:
        folder = tmp_path / "notes"
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv(trial_world.VARIABLE, json.dumps({"folder": str(folder), **kinds}))
        return folder

    return tell


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def played(folder: Path) -> Counter[str]:
    return Counter((folder / "played").read_text().split())


def counts(out: Path) -> dict:
    return json.loads((out / "collect.json").read_text())["episodes"]


def gone(pids: list[int], seconds: float = 10) -> bool:
    """Whether the processes end, or are only waiting for their parent to look at them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if psutil.pid_exists(pid)]
        if all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in alive):
            return True
        time.sleep(0.1)
    return False


def test_a_crash_is_tried_again_and_leaves_no_trace_in_the_rows(undisturbed, trouble, tmp_path):
    folder = trouble(crashes_once=TASKS[::4])
    collect(configure(tmp_path / "out"))
    assert digests(tmp_path / "out", *FILES) == digests(undisturbed, *FILES)
    crashed = [row for row in rows(tmp_path / "out" / "episodes.jsonl")[1:] if row["failures"]]
    assert crashed and all(row["failures"] == ["crashed"] for row in crashed)
    assert counts(tmp_path / "out") == counts(undisturbed) | {"failures": {"crashed": len(crashed)}}
    assert set(played(folder).values()) == {1, TRIES}
    left = list(map(int, (folder / "left").read_text().split()))
    assert len(left) == len(crashed) and gone(left), "what a simulator started must end with it"


def test_episodes_that_always_fail_are_left_out_and_counted(undisturbed, trouble, tmp_path):
    held_out = json.loads((undisturbed / "collect.json").read_text())["held_out_tasks"]
    bad = [task for task in TASKS if task not in held_out][:2]
    kinds = {"crashes": "crashed", "raises": "RuntimeError: the simulator is cross"}
    for kind, failure in kinds.items():
        out = tmp_path / kind
        trouble(**{kind: bad})
        collect(configure(out))
        found = counts(out)
        assert found["left_out"] > HOPELESS and found["failures"] == {failure: TRIES * found["left_out"]}
        assert found["played"] > counts(undisturbed)["played"]
        lost = {row["episode"] for row in rows(out / "episodes.jsonl")[1:] if row["steps"] is None}
        assert len(lost) == found["left_out"]
        kept = [row for split, wanted in SPLITS.items() if wanted for row in rows(out / f"{split}.jsonl")]
        assert len(kept) == sum(SPLITS.values()) and not lost & {row["episode"] for row in kept}


def test_a_hang_is_ended_with_all_that_it_started(undisturbed, trouble, tmp_path):
    folder = trouble(hangs=2)
    collect(configure(tmp_path / "out"))
    assert digests(tmp_path / "out", *FILES) == digests(undisturbed, *FILES)
    hung = [list(map(int, line.split())) for line in (folder / "hung").read_text().splitlines()]
    assert len(hung) == 2 and counts(tmp_path / "out")["failures"] == {"hung": 2}
    assert all(len(pids) == 5 for pids in hung) and gone(sum(hung, []))


def test_where_nothing_works_there_is_one_line(trouble, tmp_path):
    folder = trouble(crashes=TASKS)
    with pytest.raises(ValueError, match=rf"^world=trial: {HOPELESS} failures in a row, the last: crashed: .*$"):
        collect(configure(tmp_path / "out"))
    assert max(played(folder).values()) == TRIES
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def kill_in_the_middle(out: Path, ready) -> list[int]:
    """Collects in a process of its own, kills it as soon as `ready` says so; returns the processes that it left."""
    process = subprocess.Popen([sys.executable, trial_world.__file__, str(out)])
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, "it was to be killed in the middle"
        time.sleep(0.05)
    left = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return left


def test_a_killed_collection_goes_on_and_plays_nothing_twice(undisturbed, trouble, tmp_path):
    folder, out = trouble(seconds=0.1), tmp_path / "out"
    kept = out / "episodes.jsonl"
    left = kill_in_the_middle(out, lambda: kept.exists() and kept.read_bytes().count(b"\n") > 12)
    assert len(left) >= 2 and gone(left), "simulators must end with the process that asked them"
    before = kept.read_bytes()
    done = {row["episode"] for row in rows(kept)[1:]}
    kept.write_bytes(before + b'{"episode": "trial-000')  # cut where the process was writing
    first = played(folder)
    (folder / "played").unlink()
    collect(configure(out))
    assert digests(out) == digests(undisturbed)
    assert kept.read_bytes().startswith(before)
    again = first & played(folder)
    assert len(first) - len(again) >= len(done), "what the file had was played again"
    (folder / "played").write_text("")
    collect(configure(out))
    assert digests(out) == digests(undisturbed)
    assert not played(folder), "a collection that was complete was played again"


def test_a_hanging_simulator_ends_with_the_process_that_asked_it(trouble, tmp_path):
    folder = trouble(hangs=2)
    hung = folder / "hung"
    left = kill_in_the_middle(tmp_path / "out", lambda: hung.exists() and hung.read_text().count("\n") == 2)
    assert {int(pid) for pid in hung.read_text().split()} <= set(left) and gone(left)


@pytest.mark.parametrize("change", [{"most": 4}, {"held_out_tasks": 3}, {"seed": 1}])
def test_kept_episodes_of_other_settings_are_not_mixed_in(undisturbed, tmp_path, change):
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    used.mkdir()
    (used / "episodes.jsonl").write_bytes((undisturbed / "episodes.jsonl").read_bytes())
    for out in (used, fresh):
        config = configure(out, **{key: value for key, value in change.items() if key != "seed"})
        config.seed = change.get("seed", 0)
        collect(config)
    assert digests(used) == digests(fresh)
    assert (used / "test.jsonl").read_bytes() != (undisturbed / "test.jsonl").read_bytes()


def test_other_numbers_of_rows_use_the_episodes_that_are_there(undisturbed, trouble, tmp_path):
    folder = trouble()
    (folder / "played").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    (out / "episodes.jsonl").write_bytes((undisturbed / "episodes.jsonl").read_bytes())
    collect(configure(out, labelled=10, unlabelled=30))
    assert not played(folder)
    held_out = ("test.jsonl", "validation.jsonl", "test_tasks.jsonl")
    assert digests(out, *held_out) == digests(undisturbed, *held_out)


def test_the_number_of_processes_changes_nothing(undisturbed, tmp_path):
    for processes in (1, 3):
        config = configure(tmp_path / str(processes))
        config.processes = processes
        collect(config)
        assert digests(tmp_path / str(processes)) == digests(undisturbed)


def test_a_step_that_changes_nothing_is_no_row(undisturbed):
    played = [step for line in rows(undisturbed / "episodes.jsonl")[1:] for step in line["steps"]]
    assert any(x == y for x, _, y in played)
    assert all(
        row["x"] != row["y"] for name in FILES if name != "unlabelled_actions.jsonl" for row in rows(undisturbed / name)
    )


def test_no_history_shows_a_state_of_another_split(tmp_path):
    collect(replace(configure(tmp_path, unseen_states=True, most=5), history=2))
    by_split = {split: rows(tmp_path / f"{split}.jsonl") for split, wanted in SPLITS.items() if wanted}
    cut = 0
    for split, own in by_split.items():
        others = {row[key] for other in by_split.keys() - {split} for row in by_split[other] for key in ("x", "y")}
        assert not others & {state for row in own for state in row["history"]}
        cut += sum(len(row["history"]) < min(2, row["t"]) for row in own)
    assert cut, "no episode came upon a state of another split"


def test_the_tokenizer_learns_words_of_labels_and_none_of_actions_that_are_hidden(tmp_path):
    from transformers import AutoTokenizer

    known = {}
    for labelled in (0, 20):
        out = tmp_path / str(labelled)
        collect(replace(configure(out, labelled=labelled), vocabulary=400))
        tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer", local_files_only=True)
        known[labelled] = len(tokenizer.tokenize("put")) == 1
        assert len(tokenizer.tokenize("apple")) == 1  # of the states
    assert known == {0: False, 20: True}


def test_every_file_is_read_by_datasets(undisturbed, tmp_path):
    import datasets  # seconds

    for name in [*FILES, "episodes.jsonl"]:
        path = undisturbed / name
        read = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
        assert len(read) == len(rows(path)), name
        if name in FILES:
            assert read.to_list() == rows(path), name


def test_the_world_of_the_docs_is_one_file_and_one_configuration(tmp_path):
    """docs/worlds.md's own words, in a copy of the package."""
    root = Path(__file__).parent.parent
    text = (root / "docs" / "worlds.md").read_text()
    code, config = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml"))
    for folder in ("swirl_nemo", "conf"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "swirl_nemo" / "worlds" / "lights.py").write_text(code)
    (tmp_path / "conf" / "world" / "lights.yaml").write_text(config)
    command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "collect", "world=lights"]
    said = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    for row in rows(tmp_path / "data" / "lights" / "test.jsonl"):
        pressed = int(row["z"].split()[1])
        changed = [
            i for i, (old, new) in enumerate(zip(row["x"].split("\n"), row["y"].split("\n"), strict=True)) if old != new
        ]
        assert changed == [lamp for lamp in range(6) if abs(lamp - pressed) <= 1]


def test_labels_in_turn_have_as_many_of_each_verb_as_may_be():
    rows = [{"z": z} for z in ("go a", "go b", "take c", "go d", "take e", "drop f", "go g")]
    assert [row["z"] for row in in_turn(rows)] == ["go a", "take c", "drop f", "go b", "take e", "go d", "go g"]
    assert in_turn([]) == []
