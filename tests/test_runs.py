"""The run folder: each step once whatever interrupts it, readable by others, no secrets in it."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swirl_nemo import environment
from swirl_nemo.config import Schedule, SwirlConfig
from swirl_nemo.environment import source
from swirl_nemo.records import first_difference, read_lines
from swirl_nemo.runs import Run, check_settings
from swirl_nemo.settings import compose


@pytest.fixture
def cfg(tmp_path) -> SwirlConfig:
    """The shipped configuration, with what these tests look at pinned."""
    keys = ["run.name=first", f"run.root={tmp_path / 'runs'}", "run.seed=7", "run.tensorboard=false", "parallel=tp2"]
    return compose([*keys, "warmup.steps=30", "warmup.schedule=cosine", "phase.fwm.steps=40", "phase.idm.steps=60"])


FIGURES = {"warmup": 0.5, "continued_sft": 0.5, "swirl": 0.75}
SUMMARY = {
    "held_out": {
        "fwm": {"exact_match": FIGURES, "token_f1": FIGURES, "gold_logprob": FIGURES},
        "idm": {"exact_match": FIGURES, "token_f1": FIGURES | {"swirl": math.nan}, "gold_logprob": FIGURES},
    }
}


def step(n: int, **fields) -> dict:
    counters = {"iteration": 1, "phase": "idm", "step": n, "optimizer_step": n}
    return {**counters, "loss": 0.5, "reward/mean": -n / 2, **fields}


def test_folder_holds_configuration_and_environment(cfg):
    """config.yaml reads back as the same typed configuration; `latest` follows the newest run."""
    root = Path(cfg.run.root)
    with Run.open(cfg, is_main=True) as run:
        again = OmegaConf.merge(OmegaConf.structured(SwirlConfig), OmegaConf.load(run.folder / "config.yaml"))
        assert OmegaConf.to_object(again) == cfg and again.warmup.schedule is Schedule.cosine
    env = json.loads((root / "first" / "env.json").read_text())
    assert env["seed"] == 7 and env["layout"]["tensor"] == 2 and env["python"].startswith("3.")
    assert env["versions"]["torch"] == __import__("torch").__version__
    cfg.run.name = "second"
    Run.open(cfg, is_main=True)
    assert os.readlink(root / "latest") == "second" and (root / "latest" / "env.json").exists()


def test_a_run_goes_on_with_the_settings_it_began_with(cfg):
    """Layouts, places of files and what is written may change; what decides the rows and the steps may not."""
    Run.open(cfg, is_main=True)
    check_settings(cfg)
    seed, cfg.run.seed = cfg.run.seed, 8
    check_settings(cfg)  # nothing was trained yet
    (Path(cfg.run.root, cfg.run.name) / "checkpoints" / "00000003").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"first: began with run.seed={seed}, not 8: give the settings it began with"):
        check_settings(cfg)
    cfg.run.seed, cfg.parallel.tensor, cfg.data.labelled, cfg.run.keep = seed, 1, "elsewhere.jsonl", 9
    check_settings(cfg)
    cfg.phase.idm.steps, cfg.alternation.iterations = 999, 7
    with pytest.raises(ValueError, match=r"began with alternation.iterations=\d, not 7 \(2 such settings\)") as error:
        check_settings(cfg)
    assert "\n" not in str(error.value)
    cfg.run.name = "another"
    check_settings(cfg)


def test_environment_variables_stay_out(cfg, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-of-mine")
    run = Run.open(cfg, is_main=True)
    run.log(step(1))
    run.finish(SUMMARY)
    files = [path for path in run.folder.iterdir() if path.is_file()]
    assert len(files) == 5 and not any("s3cret-of-mine" in path.read_text() for path in files)


def test_a_folder_named_latest_is_refused_in_one_line(cfg, tmp_path):
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    with pytest.raises(ValueError, match="rename that folder") as error:
        Run.open(cfg, is_main=True)
    assert "\n" not in str(error.value)
    os.rmdir(tmp_path / "runs" / "latest")
    cfg.run.name = "latest"
    with pytest.raises(ValueError, match="choose another run.name"):
        Run.open(cfg, is_main=True)


def test_other_ranks_write_nothing(cfg, tmp_path, capsys):
    with Run.open(cfg, is_main=False) as run:
        run.log(step(1))
        run.samples("warmup", [{"role": "fwm"}])
        run.finish(SUMMARY)
        run.go_on(b"")
    assert not (tmp_path / "runs").exists() and not capsys.readouterr().out


def test_metrics_are_one_strict_json_object_a_line(cfg):
    """nan and inf become null; a reader of strict JSON takes every line."""

    def refuse(constant):
        raise AssertionError(constant)

    with Run.open(cfg, is_main=True) as run:
        run.log(step(1, **{"kl/reference": math.nan, "grad_norm": -math.inf, "text": "a\u2028b\nc"}))
        run.log(step(2))
    lines = run.metrics.read_text().rstrip("\n").split("\n")
    first, second = read = [json.loads(line, parse_constant=refuse) for line in lines]
    assert read == read_lines(run.metrics)
    assert 0 < first.pop("seconds/run") <= second.pop("seconds/run") < 100
    assert first == step(1, **{"kl/reference": None, "grad_norm": None, "text": "a\u2028b\nc"}) and second == step(2)


def test_two_runs_are_compared_bit_for_bit_but_for_clocks_and_memory(cfg):
    """A last bit, a missing field and a missing line are each named; seconds, tokens/s and memory never are."""
    runs = []
    for name in ("first", "second"):
        cfg.run.name = name
        with Run.open(cfg, is_main=True) as run:
            run.log(step(1, **{"seconds/step": len(runs), "memory/peak_gb": len(runs), "kl/reference": math.nan}))
            run.log(step(2, role="fwm"))
        runs.append(run)
    first, second = (run.metrics for run in runs)
    assert first_difference(first, second) is None
    whole = second.read_bytes()
    second.write_bytes(whole.replace(b'"loss": 0.5', f'"loss": {math.nextafter(0.5, 1)}'.encode()))
    assert first_difference(first, second) == "line 1 (idm 1): loss is 0.5 and 0.5000000000000001"
    second.write_bytes(whole.replace(b', "role": "fwm"', b""))
    assert first_difference(first, second) == 'line 2 (idm fwm 2): role is "fwm" and nothing'
    second.write_bytes(whole[: whole.index(b"\n") + 1])
    assert first_difference(first, second) == f"{second} ends before line 2"


def test_lines_written_at_once_do_not_mix(cfg):
    """Eight threads through eight handles: whole lines, all of them."""
    runs = [Run.open(cfg, is_main=True) for _ in range(8)]
    threads = [
        threading.Thread(target=lambda r=run, i=i: [r.log(step(100 * i + n, text="x" * 5000)) for n in range(20)])
        for i, run in enumerate(runs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["step"] for line in read_lines(runs[0].metrics)) == sorted(
        100 * i + n for i in range(8) for n in range(20)
    )


@pytest.mark.parametrize("tail", [b"", b'{"iteration": 1, "st', '{"text": "\u00e9'.encode()[:-1]])
def test_resumed_run_has_each_step_once(cfg, tail):
    """Killed at step 5, even in the middle of a line, resumed from the checkpoint of step 3: 1 to 6, once each."""
    with Run.open(cfg, is_main=True) as run:
        for n in (1, 2, 3):
            run.log(step(n))
        position = run.position
        run.log({"eval": True, "iteration": 1, "model": "swirl", "split": "test", "fwm/exact_match": 0.5})
        run.log(step(4))
        run.log(step(5))
    with run.metrics.open("ab") as file:
        file.write(tail)
    assert len(read_lines(run.metrics)) == 6
    with Run.open(cfg, is_main=True) as run:
        run.go_on(run.recorded(position))
        assert run.position == position
        for n in (4, 5, 6):
            run.log(step(n))
    assert [line["step"] for line in read_lines(run.metrics)] == [1, 2, 3, 4, 5, 6]


def test_lines_that_were_lost_come_back_from_the_checkpoint(cfg, capsys):
    """A file shorter than the checkpoint says, as after a power cut, and one that is gone."""
    with Run.open(cfg, is_main=True) as run:
        run.log(step(1))
        run.log(step(2))
        recorded = run.recorded(run.position)
    for lose in (lambda path: os.truncate(path, path.stat().st_size - 10), os.unlink):
        lose(run.metrics)
        run = Run.open(cfg, is_main=True)
        run.go_on(recorded)
        assert run.metrics.read_bytes() == recorded and "put back" in capsys.readouterr().out
    run.log(step(3))
    assert [line["step"] for line in read_lines(run.metrics)] == [1, 2, 3]


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .*remove it"):
        read_lines(path)


def test_finish_writes_summary_and_report_and_prints_the_table(cfg, capsys, monkeypatch):
    """nan becomes null; the commit is the one that the run began with, though the checkout has moved on; the figures
    stand in the terminal's table."""
    at = {"commit": "of the start", "dirty": False}
    monkeypatch.setattr(environment, "source", lambda folder: dict(at))
    with Run.open(cfg, is_main=True) as run:
        run.log(step(1))
        at["commit"] = "of a later pull"
        run.finish(SUMMARY)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["held_out"]["idm"]["token_f1"]["swirl"] is None
    assert summary["commit"] == "of the start" and summary["seconds"] > 0
    shown = capsys.readouterr().out
    assert "75.0 %" in shown and "+50.0 %" in shown and str(run.folder / "report.html") in shown
    assert (run.folder / "report.html").exists()


def test_summary_is_replaced_whole(cfg, monkeypatch):
    """A process that dies before the new summary is complete leaves the old one."""
    run = Run.open(cfg, is_main=True)
    run.finish(SUMMARY)
    before = (run.folder / "summary.json").read_text()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError):
        run.finish(SUMMARY | {"seed": 8})
    assert (run.folder / "summary.json").read_text() == before


def test_seconds_go_on_after_a_resume(cfg):
    """The second process starts from the seconds of the last line that was kept, not of those dropped, nor from 0."""
    with Run.open(cfg, is_main=True) as run:
        run.log(step(1))
    run.metrics.write_text(json.dumps(step(1, **{"seconds/run": 1000.0})) + "\n")
    position = run.position
    with run.metrics.open("a") as file:
        file.write(json.dumps(step(2, **{"seconds/run": 5000.0})) + "\n")
    with Run.open(cfg, is_main=True) as run:
        run.go_on(run.recorded(position))
        run.log(step(2))
    assert 1000 < read_lines(run.metrics)[-1]["seconds/run"] < 1100


def test_samples_of_a_stage_are_replaced_when_it_is_run_again(cfg):
    run = Run.open(cfg, is_main=True)
    run.samples("warmup", [{"role": "fwm", "prediction": "a"}])
    run.samples("iteration 1", [{"role": "fwm", "prediction": "b"}])
    run.samples("iteration 1", [{"role": "fwm", "prediction": "c"}])
    kept = [(row["stage"], row["prediction"]) for row in read_lines(run.folder / "samples.jsonl")]
    assert kept == [("warmup", "a"), ("iteration 1", "c")]


def test_tensorboard_shows_each_step_once_after_a_resume(cfg):
    """Read by TensorBoard's own reader; phases, supervised parts and held-out figures under names of their own."""
    cfg.run.tensorboard = True
    with Run.open(cfg, is_main=True) as run:
        run.log({"phase": "warmup", "role": "fwm", "step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": None})
        run.log(step(1))
        position = run.position
        run.log(step(2, loss=9.0))
    with Run.open(cfg, is_main=True) as run:
        run.go_on(run.recorded(position))
        run.log(step(2))
        run.log({"eval": True, "iteration": 1, "model": "swirl", "split": "validation", "fwm/exact_match": 0.75})
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    read = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read["idm/loss"] == [(1, 0.5), (2, 0.5)]
    assert read["warmup/fwm/loss"] == [(1, 2.0)] and "warmup/fwm/grad_norm" not in read
    assert read["held_out/validation/swirl/fwm/exact_match"] == [(1, 0.75)]


def test_wandb_gets_the_same_numbers_when_configured(cfg, monkeypatch):
    """Checked at the logger's door; W&B itself needs an account."""
    import lightning.pytorch.loggers as loggers

    calls = []

    class Recorder:
        def __init__(self, **options):
            assert options["project"] == "swirl" and options["resume"] == "allow"

        def log_metrics(self, numbers, at):
            calls.append((at, numbers))

        def save(self): ...

        def finalize(self, status):
            calls.append(status)

    monkeypatch.setattr(loggers, "WandbLogger", Recorder)
    cfg.run.wandb_project = "swirl"
    with Run.open(cfg, is_main=True) as run:
        run.log(step(1, note="text"))
    (at, numbers), status = calls
    assert numbers.pop("idm/seconds/run") > 0
    assert (at, numbers, status) == (1, {"idm/loss": 0.5, "idm/reward/mean": -0.5}, "success")


LINES = [
    ({"phase": "warmup", "role": "fwm", "step": 3, "loss": 1.25, "grad_norm": 0.5}, 30),
    (step(2, **{"kl/reference": None, "seconds/step": 1.04}), 60),
    ({"eval": True, "iteration": 1, "model": "swirl", "split": "test", "idm/exact_match": 0.5, "idm/token_f1": 0.9},),
    ({"phase": "continued_sft", "role": "idm", "step": 4, "loss": 1.0}, 120),
]


def test_a_log_file_gets_one_plain_short_line_a_step(cfg, capsys):
    with Run.open(cfg, is_main=True) as run:
        for line in LINES:
            run.log(*line)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "warmup fwm step 3/30 · loss 1.2500 · grad 0.50",
        "iteration 1 idm step 2/60 · loss 0.5000 · reward -1.000 · 1.0 s",
        "held out, test, iteration 1, swirl: idm/exact_match 0.500",
        "continued_sft idm step 4/120 · loss 1.0000",
    ]


def test_a_terminal_gets_bars(cfg, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Run.open(cfg, is_main=True) as run:
        for line in LINES:
            run.log(*line)
    shown = capsys.readouterr().out
    assert "3/30" in shown and "2/60" in shown and "4/120" in shown and "━" in shown
    assert "idm/exact_match 0.500" in shown


def test_source_is_the_commit_of_tracked_files_alone(tmp_path):
    """Compared with git: hash and dirtiness; a folder that the surrounding checkout ignores has no commit."""
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", "-C", tmp_path, *identity, *arguments], text=True).strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("a = 1\n")
    assert source(package) == {"commit": None, "dirty": None}
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert source(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("a = 2\n")
    assert source(package)["dirty"]
    installed = tmp_path / "venv"
    installed.mkdir()
    assert source(installed) == {"commit": None, "dirty": None}


def test_imports_neither_nemo_nor_megatron():
    code = "import sys, swirl_nemo.runs, swirl_nemo.grpo, swirl_nemo.schedule; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"nemo", "megatron", "nemo_aligner", "lightning"} & set(modules)
