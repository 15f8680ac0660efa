"""Whole runs, stopped runs, and runs that go on: `swirl train` in forked processes, for test_resume.py, test_loop.py.

Run as a module, this is the process that forks them. A run is stopped by a real signal, right after a
step's line of metrics, in the middle of what the driver does for that step, or after a batch of annotation or
evaluation. As from Slurm, it reaches the process and all that it has started.

    work/runs/whole      never stopped, a process of its own: python -m swirl_nemo train
    work/runs/stopped    stopped in every kind of stage, and killed once; begun as `swirl warmup`
    work/runs/moved      the same up to Phase II, then on TP2, on DP2 and on CP2
    work/runs/forgetful  the same up to Phase II, then on without the optimizer's state
    work/runs/baselines  short phases, every baseline, figures of looking ahead; baselines_stopped: stopped in one
    work/runs/better     three iterations with alternation.only_better; better_stopped: stopped in each
    work/runs/shared     one weight set for both roles, never stopped; shared_stopped: stopped in each phase, and while
                         it annotated, evaluated on validation, and on the test split
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.layouts import fork, import_stack

STEPS = {"pretrain": 4, "warmup": 5, "idm": 5, "fwm": 4, "continued_sft fwm": 4, "continued_sft idm": 10}
# Every figure that a test looks at is set here: presets change.
SETTINGS = (
    *("pretrain.steps=4", "pretrain.batch=6", "pretrain.lr=2e-3", "pretrain.lr_warmup=2", "pretrain.schedule=cosine"),
    *("warmup.steps=5", "warmup.batch=6", "warmup.lr=2e-3", "warmup.lr_warmup=2", "warmup.schedule=cosine"),
    *("annotate.greedy=false", "annotate.pool=18", "annotate.certainty_ceiling=-9"),
    *("phase.fwm.plausibility_floor=null", "phase.fwm.confidence_floor=null"),
    *("phase.idm.plausibility_floor=null", "phase.idm.confidence_floor=null"),
    *(
        "alternation.iterations=1",
        "alternation.order=[idm,fwm]",
        "alternation.baselines=[continued_sft]",
    ),
    *("phase.idm.steps=5", "phase.idm.prompts=4", "phase.idm.group=4", "phase.idm.optimizer_steps=2"),
    *("phase.idm.lr=2e-4", "phase.idm.lr_warmup=2", "phase.idm.schedule=cosine", "phase.idm.dead_std=0"),
    *("phase.idm.replay=1", "phase.idm.replay_batch=4", "phase.idm.policy_gradient=1", "phase.idm.kl_beta=0.04"),
    *("phase.fwm.steps=4", "phase.fwm.prompts=4", "phase.fwm.group=4", "phase.fwm.optimizer_steps=1"),
    *("phase.fwm.lr=2e-4", "phase.fwm.lr_warmup=2", "phase.fwm.schedule=constant", "phase.fwm.dead_std=0.05"),
    *("phase.fwm.replay=1", "phase.fwm.replay_batch=4", "phase.fwm.policy_gradient=1", "phase.fwm.kl_beta=0.04"),
    *("phase.fwm.mstep=3", "phase.idm.mstep=1", "phase.fwm.mstep_batch=4", "phase.idm.mstep_batch=4"),
    *("run.save_every=3", "run.keep=2", "run.seed=1234"),
    *("eval.batch=4", "eval.samples=2"),
)
BASELINES = (
    *("pretrain.steps=0", "warmup.steps=2", "phase.idm.steps=3", "phase.fwm.steps=3", "eval.horizon=2", "eval.plans=2"),
    "alternation.baselines=[continued_sft,merged,pseudo_labels,all_labels]",
)
# A warm-up of both roles together takes pairs of rows, and the baseline has the steps of both phases.
SHARED = (
    *("model.weights=shared", "pretrain.steps=0", "warmup.steps=2", "phase.idm.steps=3", "phase.fwm.steps=3"),
    "phase.idm.mstep=0",  # annotations without an M-step: they put Phase II's prompts in order
)


BETTER = (
    *("pretrain.steps=0", "warmup.steps=2", "phase.idm.steps=2", "phase.fwm.steps=2", "alternation.iterations=3"),
    *("alternation.only_better=true", "alternation.baselines=[]", "run.keep=100"),
)
# FWM and IDM after each iteration: what these little models reach is 0 always
BETTER_FIGURES = ((0.3, 0.3), (0.2, 0.4), (0.35, 0.1), (0.35, 0.2))


@dataclass(frozen=True)
class Stop:
    """After which step of which stage the last rank gets which signal; `role` where the stage's lines name one. Or,
    `phase` being "annotation" or the split of an evaluation, after which batch of it."""

    phase: str
    role: str | None
    step: int
    signal: int = signal.SIGTERM


def settings(work: Path, name: str, *extra: str) -> list[str]:
    from workers import setting

    return [*setting.overrides(work), *SETTINGS, f"run.name={name}", *extra]


def launch(
    work: Path, name: str, *extra: str, verb: str = "train", processes: int = 1, stop: Stop | None = None, figures=()
):
    """`swirl VERB` as forked processes. Whoever is asked to stop must exit 0; whoever is killed cannot."""
    killed = stop is not None and stop.signal == signal.SIGKILL
    arguments = [verb, *settings(work, name, *extra)]
    if killed:
        from torch.multiprocessing import ProcessExitedException

        with contextlib.suppress(ProcessExitedException):
            fork(_launch, arguments, stop, figures, processes=processes)
    else:
        fork(_launch, arguments, stop, figures, processes=processes)
    if stop is not None:
        folder = work / "runs" / name
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        record = asdict(stop) | {"lines": len(lines), "last line": json.loads(lines[-1])}
        record["finished"] = (folder / "summary.json").exists()
        latest = folder / "checkpoints" / "latest" / "state.json"
        record["saved"] = json.loads(latest.read_text())["counters"] if latest.exists() else None
        with (folder / "stops.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def _launch(arguments: list[str], stop: Stop | None, figures) -> None:
    from swirl_nemo import alternation, annotation, cli
    from swirl_nemo.evaluation import held_out
    from swirl_nemo.runs import Run
    from swirl_nemo.session import Session

    if figures:
        alternation.Driver._evaluate = lambda driver, model, iteration: {
            f"{role}/exact_match": figure for role, figure in zip(("fwm", "idm"), figures[iteration], strict=True)
        }

    def stop_at(*place) -> None:
        if stop is not None and place == (stop.phase, stop.role, stop.step) and _is_last_rank():
            os.killpg(0, stop.signal)

    log, batches, annotate, evaluate = Run.log, Session.batches, annotation.annotate, held_out.evaluate
    work = ""

    def log_and_stop(self, record, *steps):
        log(self, record, *steps)
        stop_at(record.get("phase"), record.get("role"), record.get("step"))

    def batches_and_stop(self, count):
        for number, part in enumerate(batches(self, count), 1):
            yield part
            stop_at(work, None, number)

    def named(function, name=None):
        def named_work(session, read, *rest):
            nonlocal work
            work = name or Path(read).stem
            return function(session, read, *rest)

        return named_work

    Run.log, Session.batches = log_and_stop, batches_and_stop
    annotation.annotate, held_out.evaluate = named(annotate, "annotation"), named(evaluate)
    os.setpgrp()
    cli.main(arguments)


def _is_last_rank() -> bool:
    return int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"])


def _random_stop(phase: str, role: str | None = None) -> Stop:
    steps = STEPS[f"{phase} {role}" if phase == "continued_sft" else phase]
    return Stop(phase, role, random.randint(1, steps))


def _stopped(work: Path) -> None:
    """Every kind of stage, at a random step; Phase II at its last step once more, and a crash in the baseline."""
    runs_folder = work / "runs"
    launch(work, "stopped", stop=_random_stop("pretrain", "fwm+idm"))
    launch(work, "stopped", verb="warmup", stop=_random_stop("warmup", random.choice(["fwm", "idm"])))
    launch(work, "stopped", verb="warmup")
    in_phase = Stop("idm", None, random.randint(2, STEPS["idm"] - 1))
    launch(work, "stopped", stop=in_phase)
    for name in ("moved", "forgetful"):
        shutil.copytree(runs_folder / "stopped", runs_folder / name, symlinks=True)
    launch(work, "stopped", stop=Stop("idm", None, STEPS["idm"]))
    launch(work, "stopped", stop=_random_stop("fwm"))
    launch(work, "stopped", stop=_random_stop("continued_sft", "fwm"))
    launch(work, "stopped", stop=Stop("continued_sft", "idm", 5, signal.SIGKILL))
    launch(work, "stopped")


def _moved(work: Path) -> None:
    tensor = ("parallel.tensor=2", "parallel.sequence=true")
    launch(work, "moved", *tensor, processes=2, stop=_random_stop("fwm"))
    launch(work, "moved", processes=2, stop=_random_stop("continued_sft", "fwm"))
    launch(work, "moved", "parallel.context=2", processes=2)


def _forgetful(work: Path) -> None:
    from swirl_nemo.checkpoint import manifest

    state = work / "runs" / "forgetful" / "checkpoints" / "latest" / "state.json"
    saved = json.loads(state.read_text())
    assert saved["optimizer"] is True
    state.write_text(json.dumps(saved | {"optimizer": False}))
    manifest.write(state.parent, manifest.describe(state.parent, manifest.files(state.parent)))
    launch(work, "forgetful", stop=Stop("idm", None, STEPS["idm"]))


def _shared(work: Path) -> None:
    launch(work, "shared", *SHARED)
    for place, last in (("annotation", 4), ("idm", 3), ("fwm", 3), ("validation", 1), ("test", 1)):
        launch(work, "shared_stopped", *SHARED, stop=Stop(place, None, random.randint(1, last)))
    launch(work, "shared_stopped", *SHARED)


def _baselines(work: Path) -> None:
    launch(work, "baselines", *BASELINES)
    launch(work, "baselines_stopped", *BASELINES, stop=Stop("pseudo_labels", "idm", 1))
    launch(work, "baselines_stopped", *BASELINES)


def _better(work: Path) -> None:
    launch(work, "better", *BETTER, figures=BETTER_FIGURES)
    for sent in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):  # an iteration further each time
        launch(work, "better_stopped", *BETTER, figures=BETTER_FIGURES, stop=Stop("idm", None, 1, sent))
        if sent == signal.SIGKILL:  # as if it had been killed before the iteration's own checkpoint
            shutil.rmtree((work / "runs" / "better_stopped" / "checkpoints" / "latest").resolve())
    launch(work, "better_stopped", *BETTER, figures=BETTER_FIGURES)


def main(work: Path) -> None:
    from workers import setting

    import_stack()
    fork(setting.make, work)
    whole = subprocess.Popen([sys.executable, "-m", "swirl_nemo", "train", *settings(work, "whole")])
    _stopped(work)
    _moved(work)
    _forgetful(work)
    _shared(work)
    _baselines(work)
    _better(work)
    assert whole.wait() == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
