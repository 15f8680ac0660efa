#!/usr/bin/env python3
"""What a CUDA device makes of this code: the layout and log-prob tests, and 20 steps of both phases in bf16, and in FP8
where Transformer Engine and the device have it. Figures go into a JSON file, with device and versions.

Never run on a GPU so far: none was at hand. Needs: the NeMo container (containers/) and one GPU or more; with one, the
layouts of several processes are left out, since NCCL takes a GPU a process. Expect: every test passed, drift/max of
bf16 far under run.drift_warn. Command: python recipes/gpu_check.py docs/runs/gpu_check.json
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from swirl_nemo.kernels import FP8
from swirl_nemo.quickstart import prepare
from swirl_nemo.records import read_lines, write_json
from swirl_nemo.roles import ROLES
from swirl_nemo.settings import compose

ROOT = Path(__file__).parent.parent
TESTS = ("tests/test_layouts.py", "tests/test_rollout.py")
PACKAGES = ("torch", "nemo-toolkit", "nemo-aligner", "megatron-core", "transformer-engine")
STEPS = 20
MEDIANS = ("seconds/step", "tokens_per_s/rollout", "tokens_per_s/score", "tokens_per_s/train")
HIGHEST = ("drift/max", "memory/peak_gb", "skipped/nonfinite")


def overrides(precision: str) -> list[str]:
    """Of a run with a short start and 20 steps of each phase. No floor for its annotations: after so short a start none
    may pass."""
    name = f"run.name=gpu_check_{precision}"
    stages = ("pretrain.steps=100", "warmup.steps=40", "alternation.iterations=1", "alternation.baselines=[]")
    values = {"steps": STEPS, "plausibility_floor": "null", "confidence_floor": "null", "dead_std": 0}
    phases = (f"phase.{role}.{key}={value}" for role in ROLES for key, value in values.items())
    return ["experiment=quickstart", "cluster=gpu", f"precision={precision}", name, *stages, *phases]


def figures(metrics: list[dict]) -> dict[str, dict]:
    """Of each phase: how many steps, medians of speeds, the highest of what should be low."""
    result = {}
    for role in ROLES:
        lines = [line for line in metrics if not line.get("eval") and line["phase"] == role]
        result[role] = {
            "steps": len(lines),
            **{name: statistics.median(line[name] for line in lines) for name in MEDIANS},
            **{name: max(line[name] for line in lines) for name in HIGHEST},
        }
    return result


def train(precision: str) -> dict[str, dict]:
    cfg = compose(overrides(precision))
    prepare(cfg.data.world, Path(cfg.data.tokenizer), Path(cfg.model.fwm))
    subprocess.run([sys.executable, "-m", "swirl_nemo", "train", *overrides(precision)], check=True)
    return figures(read_lines(Path(cfg.run.root, cfg.run.name, "metrics.jsonl")))


def tests() -> str:
    """pytest's last line."""
    # Without it, asking for a device makes a CUDA context, which does not outlive the forks that the tests make
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.splitlines()[-1]


def versions() -> dict[str, str]:
    every = importlib.metadata.distributions()
    found = {distribution.metadata["Name"].lower().replace("_", "-"): distribution.version for distribution in every}
    return {name: found[name] for name in PACKAGES if name in found} | {"cuda": torch.version.cuda}


def main(out: Path) -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_check: no CUDA device here: run it where there is one, inside the NeMo container")
    precisions = ["bf16"] + ["fp8_hybrid"] * (FP8.lack() is None)
    result = {"device": torch.cuda.get_device_name(), "devices": torch.cuda.device_count(), "versions": versions()}
    result |= {"tests": tests(), "train": {precision: train(precision) for precision in precisions}}
    write_json(out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    main(parser.parse_args().out)
