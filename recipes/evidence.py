#!/usr/bin/env python3
"""Evidence of one world: SWIRL, its baselines and its ablations on three seeds, each run's figures kept.

One base model a world is pre-trained on the state-only transitions: it can copy a state and carry out a stated change.
A seed warms it up on the labels once, and all its runs start from there, but for `shared`, whose warm-up is of both
roles together. `swirl` makes the baselines of conf/experiment/NAME.yaml, too. `no_prior` has no prior over actions, and
neither have the ablations after it, which are to be compared with it (in a world without one it is SWIRL without
baselines). `equal_time` has no policy gradient in Phase I, and as many more steps of it as fit into the time that the
gradient takes. `states-N` have N state-only transitions for the phases (the base saw all). One machine for a seed's
runs: processors round differently, so that base and warm-up differ.

Needs: two cores, 8 GB of memory, what the world needs (docs/worlds.md).
Command: python recipes/evidence.py minigrid
         python recipes/evidence.py minigrid --seeds 1 --runs swirl shared
Expect: docs/evidence/NAME/RUN-SEED.json each, then `python recipes/evidence_tables.py` for the tables. A run that is
kept is not run again; one that was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median

from omegaconf import OmegaConf

from swirl_nemo.quickstart import prepare
from swirl_nemo.records import read_lines, write_json
from swirl_nemo.runs import CONFIG, deciding_settings
from swirl_nemo.settings import compose

DATA = ["seed=1"]  # settings were chosen on the data of seed 0, whose test splits some of the first runs read
ROOT, KEPT = Path("runs/evidence"), Path("docs/evidence")
NO_PRIOR = "alternation.new_form=0"
RUNS = {
    "swirl": [],
    "shared": ["model.weights=shared"],
    "no_prior": [NO_PRIOR],
    "no_gradient": [NO_PRIOR, "phase.fwm.policy_gradient=0"],
    "equal_time": [NO_PRIOR, "phase.fwm.policy_gradient=0"],
    "permuted": [NO_PRIOR, "phase.fwm.permute_advantages=true"],
    "phase_1": [NO_PRIOR, "alternation.order=[fwm]"],
    "phase_2": [NO_PRIOR, "alternation.order=[idm]"],
    "states-250": [NO_PRIOR, "data.max_unlabelled=250"],
    "states-1000": [NO_PRIOR, "data.max_unlabelled=1000"],
}
BASELINES = {"swirl": [], "shared": ["alternation.baselines=[continued_sft,pseudo_labels]"]}  # the others have none
TIMED, TIMED_STEPS = ("no_prior", "no_gradient"), 12  # for equal_time
SAMPLES = ("test, warmup", "test, swirl")


def folder_of(experiment: str, run: str, seed: int) -> Path:
    return ROOT / f"{experiment}-{run}-{seed}"


def origin(run: str, seed: int) -> tuple[str, int]:
    """Name and seed of the run whose models this one begins with. One set of weights warms up both roles at once."""
    return ("base", 0) if run == "shared" else ("warmup", seed)


def settings(experiment: str, run: str, seed: int) -> list[str]:
    begun = origin(run, seed)
    chosen = start(experiment, seed, *begun)
    chosen += [*RUNS[run], *BASELINES.get(run, ["alternation.baselines=[]"])]
    if begun[0] == "warmup":
        chosen += ["warmup.steps=0"]
    if run == "equal_time":
        chosen += [f"phase.fwm.steps={steps_of_equal_time(experiment, seed)}"]
    if run != "swirl":
        chosen += ["eval.horizon=0", "eval.plans=0"]
    return [*chosen, f"run.root={ROOT}", f"run.name={experiment}-{run}-{seed}"]


def start(experiment: str, seed: int, *begun: str | int) -> list[str]:
    """Settings of a run from the models of another, `begun` being its name and seed."""
    models = folder_of(experiment, *begun) / "checkpoints" / "warmup"
    chosen = [f"experiment={experiment}", f"run.seed={seed}", "pretrain.steps=0"]
    return chosen + [f"model.{role}={models / role}" for role in ("fwm", "idm")]


def time_phase_1(experiment: str, seed: int) -> None:
    """A few steps of Phase I with and without the policy gradient, side by side from this seed's warm-up: how long the
    runs themselves take depends on what is beside them."""
    short = ["warmup.steps=0", "alternation.iterations=1", "alternation.order=[fwm]", "alternation.baselines=[]"]
    short += [
        f"phase.fwm.steps={TIMED_STEPS}",
        "annotate.pool=100",
        "eval.transitions=1",
        "eval.horizon=0",
        "eval.plans=0",
    ]
    short += ["data.test=${data.validation}", "data.further_tests=[]"]

    def one(run: str) -> None:
        folder = folder_of(experiment, f"timed_{run}", seed)
        if not (folder / "summary.json").is_file():
            chosen = [*start(experiment, seed, "warmup", seed), *RUNS[run], *short]
            execute("train", folder, [*chosen, f"run.root={ROOT}", f"run.name={folder.name}"])

    with ThreadPoolExecutor(len(TIMED)) as pool:
        list(pool.map(one, TIMED))


def steps_of_equal_time(experiment: str, seed: int) -> int:
    """Steps of Phase I without the policy gradient that take as long as one iteration's with it, by `time_phase_1`."""
    files = [folder_of(experiment, f"timed_{run}", seed) / "metrics.jsonl" for run in TIMED]
    timed = [[line["seconds/step"] for line in read_lines(file) if "seconds/step" in line] for file in files]
    with_gradient, without = map(median, timed)
    return round(compose([f"experiment={experiment}"]).phase.fwm.steps * with_gradient / without)


def train(experiment: str, run: str, seed: int, warmup: Future | None) -> None:
    """One run, once the warm-up that it starts from is done, and what is kept of it."""
    if warmup:
        warmup.result()
    file = KEPT / experiment / f"{run}-{seed}.json"
    folder = folder_of(experiment, run, seed)
    if file.is_file():
        return
    if run == "equal_time":
        time_phase_1(experiment, seed)
    if not (folder / "summary.json").is_file():
        execute("train", folder, settings(experiment, run, seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, figures(experiment, run, seed))
    print(folder.name, flush=True)


def execute(command: str, folder: Path, chosen: list[str]) -> None:
    """`swirl COMMAND` on one core, what it says in a file beside its folder. Ends this process where it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        words = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", command, *chosen]
        done = subprocess.run(words, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"evidence: {folder.name} ended with code {done.returncode}: see {folder.with_suffix('.log')}")


def make_base(experiment: str) -> None:
    """Data, random weights, and the base model: what conf/experiment/NAME.yaml says under `pretrain`."""
    cfg = compose([f"experiment={experiment}"])
    prepare(cfg.data.world, Path(cfg.data.tokenizer), Path(cfg.model.fwm), *DATA)
    make_models(folder_of(experiment, "base", 0), base_settings(experiment))


def base_settings(experiment: str) -> list[str]:
    return [f"experiment={experiment}", "warmup.steps=0"]


def make_warmup(experiment: str, seed: int) -> None:
    make_models(folder_of(experiment, "warmup", seed), start(experiment, seed, "base", 0))


def make_models(folder: Path, chosen: list[str]) -> None:
    if not (folder / "checkpoints" / "warmup").is_dir():
        execute("warmup", folder, [*chosen, f"run.root={ROOT}", f"run.name={folder.name}"])


def told(experiment: str, run: str, seed: int) -> dict[Path, list[str]]:
    """The folders that a run's figures come from, each with the settings that decide it: base, warm-up, the run."""
    folders = {folder_of(experiment, "base", 0): base_settings(experiment)}
    if origin(run, seed)[0] == "warmup":
        folders[folder_of(experiment, "warmup", seed)] = start(experiment, seed, "base", 0)
    return folders | {folder_of(experiment, run, seed): settings(experiment, run, seed)}


def figures(experiment: str, run: str, seed: int) -> dict:
    """summary.json, the validation figures of each iteration, the seconds of each phase's steps, the settings that
    decided it (a test compares them with today's), and of `swirl` what warm-up and SWIRL said of the first transitions
    of the test split."""
    folder = folder_of(experiment, run, seed)
    decided = {part.name: deciding_settings(OmegaConf.load(part / CONFIG)) for part in told(experiment, run, seed)}
    summary, lines = json.loads((folder / "summary.json").read_text()), read_lines(folder / "metrics.jsonl")
    curve = [line for line in lines if line.get("eval") and line["split"] == "validation"]
    seconds: dict[str, float] = {}
    for line in lines:
        if "seconds/step" in line:  # of a phase
            seconds[line["phase"]] = round(seconds.get(line["phase"], 0.0) + line["seconds/step"], 3)
    kept = summary | {"validation": curve, "step_seconds": seconds, "settings": decided}
    if run != "swirl":
        return kept
    said = [row for row in read_lines(folder / "samples.jsonl") if row["stage"] in SAMPLES]
    shown = [{key: row[key] for key in ("stage", "role", "x", "z", "y", "prediction", "correct")} for row in said]
    return kept | {"samples": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="a file of conf/experiment, such as minigrid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--at-once", type=int, default=2, help="a run a core")
    asked = parser.parse_args()
    try:
        compose([f"experiment={asked.experiment}"])
    except ValueError as error:
        parser.error(str(error))
    make_base(asked.experiment)
    wanted = [(run, seed) for run in RUNS if run in asked.runs for seed in asked.seeds]
    started: dict[tuple[str, int], Future] = {}
    with ThreadPoolExecutor(asked.at_once) as pool:  # in the order of RUNS, so what a run waits for has begun before it
        for name, seed in dict.fromkeys(origin(*one) for one in wanted):
            if name == "warmup":
                started[name, seed] = pool.submit(make_warmup, asked.experiment, seed)
        for run, seed in wanted:
            started[run, seed] = pool.submit(train, asked.experiment, run, seed, started.get(origin(run, seed)))
        for done in started.values():
            done.result()


if __name__ == "__main__":
    main()
