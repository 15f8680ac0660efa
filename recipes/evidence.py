#!/usr/bin/env python3
"""Evidence of one world: SWIRL, its baselines and its ablations, all from one warm-up a seed, each run's figures kept.

The first run of a seed, `swirl`, makes the warmed-up models and the baselines of conf/experiment/NAME.yaml; the others
start from its checkpoints/warmup, but for `shared`, whose warm-up is of both roles together, and the `states-N`, which
have N state-only transitions for everything, pre-training included.

Needs: two cores, 8 GB of memory, what the world needs (docs/worlds.md). No world's evidence was gathered with it yet.
Command: python recipes/evidence.py minigrid
         python recipes/evidence.py minigrid --seeds 1 --runs swirl shared
Expect: docs/evidence/NAME/RUN-SEED.json each, then `python recipes/evidence_tables.py` for the tables. A finished run
is not run again; one that was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swirl_nemo.quickstart import prepare
from swirl_nemo.records import read_lines, write_json
from swirl_nemo.settings import compose

SIDE_BY_SIDE = 2  # a run a core
ROOT, KEPT = Path("runs/evidence"), Path("docs/evidence")
RUNS = {
    "swirl": [],
    "no_gradient": ["phase.fwm.policy_gradient=0"],
    "permuted": ["phase.fwm.permute_advantages=true"],
    "phase_1": ["alternation.order=[fwm]"],
    "phase_2": ["alternation.order=[idm]"],
    "shared": ["model.weights=shared"],
    "states-250": ["data.max_unlabelled=250"],
    "states-1000": ["data.max_unlabelled=1000"],
}
FROM_WARMUP = ("no_gradient", "permuted", "phase_1", "phase_2")
AHEAD = ("swirl", "no_gradient")  # whose FWM is rolled forward and plans


def settings(experiment: str, run: str, seed: int) -> list[str]:
    chosen = [f"experiment={experiment}", *RUNS[run], f"run.seed={seed}"]
    if run in FROM_WARMUP:
        warm = ROOT / f"{experiment}-swirl-{seed}" / "checkpoints" / "warmup"
        chosen += ["pretrain.steps=0", "warmup.steps=0", *(f"model.{role}={warm / role}" for role in ("fwm", "idm"))]
    if run != "swirl":
        chosen += [f"alternation.baselines=[{'continued_sft' if run not in FROM_WARMUP else ''}]"]
    if run not in AHEAD:
        chosen += ["eval.horizon=0", "eval.plans=0"]
    return [*chosen, f"run.root={ROOT}", f"run.name={experiment}-{run}-{seed}"]


def train(experiment: str, run: str, seed: int) -> None:
    """One run, and what is kept of it."""
    folder = ROOT / f"{experiment}-{run}-{seed}"
    if not (folder / "summary.json").is_file():
        command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "train", *settings(experiment, run, seed)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            sys.exit(f"evidence: {folder.name} ended with code {done.returncode}: see {log.name}")
    KEPT.joinpath(experiment).mkdir(parents=True, exist_ok=True)
    write_json(KEPT / experiment / f"{run}-{seed}.json", kept(folder))
    print(folder.name, flush=True)


def kept(folder: Path) -> dict:
    """summary.json, the validation figures of each iteration, and seconds by kind of step."""
    summary, lines = json.loads((folder / "summary.json").read_text()), read_lines(folder / "metrics.jsonl")
    curve = [line for line in lines if line.get("eval") and line["split"] == "validation"]
    seconds: dict[str, float] = {}
    for line in lines:
        if not line.get("eval"):
            kind = line["phase"]
            seconds[kind] = round(seconds.get(kind, 0.0) + line["seconds/step"], 3)
    return summary | {"validation": curve, "step_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="a file of conf/experiment, such as minigrid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    asked = parser.parse_args()
    cfg = compose([f"experiment={asked.experiment}"])
    prepare(cfg.data.world, Path(cfg.data.tokenizer), Path(cfg.model.fwm))
    every = [(run, seed) for run in asked.runs for seed in asked.seeds]
    first = [(run, seed) for run, seed in every if run == "swirl"]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for part in (first, [pair for pair in every if pair not in first]):
            list(pool.map(lambda pair: train(asked.experiment, *pair), part))


if __name__ == "__main__":
    main()
