"""Experiments of clusters: what their names and heads say is so, and the command there is one that works."""

import re
import shlex
from pathlib import Path

import pytest

from swirl_nemo.checks import check, check_architecture
from swirl_nemo.cluster.submit import submit
from swirl_nemo.config import Dtype, Fp8
from swirl_nemo.planning.architecture import architecture
from swirl_nemo.planning.plan import GB, make_plan
from swirl_nemo.planning.work import Lengths
from swirl_nemo.settings import compose, shipped

NAME = re.compile(r"(?P<model>\w+)_(?P<nodes>\d+)x(?P<devices>\d+)_(?P<precision>bf16|fp8)")
EXPERIMENTS = sorted((shipped("conf") / "experiment").glob("*.yaml"))
FILES = {file.stem: file for file in EXPERIMENTS if NAME.fullmatch(file.stem)}


def head(file: Path) -> str:
    """Its comments, as one line."""
    return " ".join(line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#"))


def test_there_are_as_many_as_promised():
    assert len(FILES) == 7


@pytest.mark.parametrize("name", FILES)
def test_the_name_is_what_it_is(name):
    said, cfg = NAME.fullmatch(name), compose([f"experiment={name}"])
    assert cfg.run.name == name
    assert (cfg.cluster.nodes, cfg.cluster.devices) == (int(said["nodes"]), int(said["devices"]))
    assert cfg.model.fwm == f"models/{said['model']}"
    assert cfg.precision.dtype is Dtype.bf16
    assert cfg.precision.fp8 is (Fp8.hybrid if said["precision"] == "fp8" else Fp8.none)
    check(cfg, cfg.cluster.nodes * cfg.cluster.devices)
    check_architecture(cfg, architecture(cfg), "")


@pytest.mark.parametrize("name", FILES)
def test_its_command_makes_a_batch_script(name):
    command = re.search(r"Command: swirl submit (.*)", head(FILES[name]))[1]
    script = submit(shlex.split(command), dry_run=True)
    nodes, devices = re.search(r"_(\d+)x(\d+)_", name).groups()
    assert f"#SBATCH --nodes={nodes}" in script and f"#SBATCH --ntasks-per-node={devices}" in script
    assert "#SBATCH --account=ACCOUNT" in script


@pytest.mark.parametrize("name", FILES)
def test_its_head_says_what_the_plan_says(name):
    """And everything fits. Whoever changes the plan or an experiment is told here what to write."""
    cfg = compose([f"experiment={name}"])
    plan = make_plan(cfg, architecture(cfg), Lengths.longest(cfg))
    saved = plan.memory.checkpoint
    disk = (cfg.run.keep + 1) * (saved.weights + saved.optimizer)  # one is being written while the others stand
    assert plan.misfit is None
    assert f"{cfg.cluster.nodes * cfg.cluster.devices} GPUs of {cfg.cluster.hardware.memory_gb:.0f} GB" in head(
        FILES[name]
    )
    assert f"{plan.memory.host.weight_sets / GB:.0f} GB of host memory a node for weight sets" in head(FILES[name])
    assert f"{disk / 1e12:.1f} TB of disk for a phase's checkpoints" in head(FILES[name])
    assert f"Expected: {plan.hours:.1f} hours for the phases" in head(FILES[name])
