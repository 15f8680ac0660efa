"""recipes/gpu_check.py as far as a machine without a GPU can tell: its settings, its figures, and how it refuses.

Not shown: the rest of it. No GPU has run it.
"""

import os
import subprocess
import sys

import pytest
from workers.layouts import TESTS

from swirl_nemo.checks import check
from swirl_nemo.config import Dtype, Fp8
from swirl_nemo.settings import compose

RECIPE = TESTS.parent / "recipes" / "gpu_check.py"


@pytest.mark.parametrize(("precision", "fp8"), [("bf16", Fp8.none), ("fp8_hybrid", Fp8.hybrid)])
def test_it_trains_20_steps_of_both_phases(recipe, precision, fp8):
    cfg = compose(recipe.overrides(precision))
    check(cfg, 1)
    assert cfg.phase.fwm.steps == cfg.phase.idm.steps == 20
    assert (cfg.precision.dtype, cfg.precision.fp8, cfg.cluster.backend) == (Dtype.bf16, fp8, "nccl")
    assert all((TESTS.parent / name).is_file() for name in recipe.TESTS)


def test_its_figures_are_those_of_the_steps(recipe):
    names = (*recipe.MEDIANS, *recipe.HIGHEST)
    steps = [{"phase": role, **dict.fromkeys(names, value)} for role in ("fwm", "idm") for value in (1.0, 5.0, 2.0)]
    found = recipe.figures([{"phase": "warmup"}, *steps, {"eval": True}])
    assert found["fwm"] == found["idm"] == {
        "steps": 3, **dict.fromkeys(recipe.MEDIANS, 2.0), **dict.fromkeys(recipe.HIGHEST, 5.0)
    }  # fmt: skip


def test_versions_have_what_decides(recipe):
    assert {"torch", "nemo-toolkit", "nemo-aligner", "megatron-core", "cuda"} <= recipe.versions().keys()


def test_without_a_device_it_is_one_line(tmp_path):
    out = tmp_path / "out.json"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", RECIPE, out]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("gpu_check: no CUDA device") and not out.exists()
    assert done.stderr.count("\n") == 1
