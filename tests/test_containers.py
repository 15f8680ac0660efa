"""What an image is built by and what env.json says, without building one: docs/containers.md has what was built."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swirl_nemo import versions
from swirl_nemo.environment import environment, source
from swirl_nemo.settings import compose

ROOT = Path(__file__).parents[1]
NGC = {"nemo-toolkit": "2.2.0rc3", "nemo-aligner": "0.7.0", "megatron-core": "0.11.0+f8b2", "apex": "0.1"}
NGC |= {"transformer-engine": "2.1.0.dev0+a1b2", "torch": "2.7.0a0+ecf3bae40a.nv25.2"}


@pytest.fixture
def image(tmp_path):
    """Runs the check of an image in which these distributions, and no others, are installed."""

    def check(installed: dict[str, str]) -> subprocess.CompletedProcess:
        site = tmp_path / "site"
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(Path(importlib.util.find_spec("packaging").origin).parent, site / "packaging")
        for name, version in installed.items():
            folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        command = [sys.executable, "-S", "-m", "swirl_nemo.versions"]
        return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(site)}, capture_output=True, text=True)

    return check


def test_the_check_takes_the_generation_that_the_image_is_of(image):
    done = image(NGC)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nemo-toolkit 2.2.0rc3, nemo-aligner 0.7.0, megatron-core 0.11.0+f8b2" in done.stdout


def test_a_cpu_wants_the_release_of_the_tests_and_an_image_its_generation(monkeypatch):
    (megatron,) = (package for package in versions.STACK if package.name == "megatron-core")
    for release, on_cpu in (("0.11.0", None), ("0.11.1", "megatron-core 0.11.1 is installed, not 0.11.0")):
        monkeypatch.setattr(versions, "installed", lambda name, release=release: release)
        assert (versions.fault(megatron, gpu=False), versions.fault(megatron, gpu=True)) == (on_cpu, None)


@pytest.mark.parametrize(
    "name, version, said",
    [
        ("nemo-toolkit", "2.3.0", "nemo-toolkit 2.3.0 is installed, not 2.2"),
        ("nemo-aligner", "0.6.0", "nemo-aligner 0.6.0 is installed, not 0.7"),
        ("megatron-core", "0.12.1", "megatron-core 0.12.1 is installed, not 0.11"),
        ("transformer-engine", "1.13.0", "transformer-engine 1.13.0 is installed, not 2"),
        ("apex", None, "apex is not installed, 0.1 is needed"),
    ],
)
def test_the_check_refuses_another_image_in_one_line(image, name, version, said):
    installed = {key: value for key, value in (NGC | {name: version}).items() if value}
    done = image(installed)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and said in done.stderr


def test_the_table_the_lock_and_the_extra_are_of_one_mind():
    """What `make` installs, what pyproject.toml's extra installs, and what the patches ask for."""
    lock = "".join((ROOT / "requirements" / name).read_text() for name in ("torch.lock", "cpu.lock"))
    extra = (ROOT / "pyproject.toml").read_text()
    for package in versions.STACK:
        if package.cpu:
            name = package.name.replace("-", "[-_]")
            assert re.search(rf"^{name}=={package.cpu}$", lock, re.M)
            assert re.search(rf'"{name}(\[.*\])?=={package.cpu}"', extra)


def test_every_file_that_a_build_names_is_there():
    """Scripts can be run, and both builds of the GPU image start from one tag."""
    for script in (ROOT / "containers").glob("*.sh"):
        assert os.access(script, os.X_OK), script
        subprocess.run(["sh" if "bin/sh" in script.read_text() else "bash", "-n", script], check=True)
    tags = []
    for name in ("Dockerfile", "Dockerfile.cpu", "swirl.def", "build_cpu.sh", "install.sh", "inventory.sh"):
        text = (ROOT / "containers" / name).read_text()
        for named in re.findall(r"containers/[\w.]+\w", text):
            assert (ROOT / named).exists(), f"{name}: {named}"
        tags += re.findall(r"TAG=(\S+)", text)
    assert len(tags) == 2 and len(set(tags)) == 1


def test_a_build_says_which_commit_it_is_of(tmp_path):
    done = subprocess.run([ROOT / "containers" / "install.sh", ""], capture_output=True, text=True)
    assert done.returncode == 1 and "give the build COMMIT" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "COMMIT").write_text("0123abc\n")
    assert source(tmp_path) == {"commit": "0123abc", "dirty": False}


def test_env_json_has_all_that_decides_the_metrics(tmp_path, monkeypatch):
    """The same twice, whatever the run is called; each thing that decides changes its own field."""
    monkeypatch.chdir(tmp_path)  # away from what `make quickstart` has left
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("{}\n")
    keys = ["run.name=one", f"run.root={tmp_path / 'a'}", f"data.labelled={labelled}", "run.seed=7"]
    monkeypatch.delenv("SWIRL_IMAGE", raising=False)
    one = environment(compose(keys))
    assert json.loads(json.dumps(one)) == one
    assert one["data"] == {"labelled": hashlib.sha256(b"{}\n").hexdigest()} and one["image"] is None
    assert one["threads"] == torch.get_num_threads() and one["instructions"] in torch.__config__.show().upper()
    assert one["cpu"] in Path("/proc/cpuinfo").read_text() and one["cpu"]

    def changed(*more: str) -> set[str]:
        other = environment(compose([*keys, *more]))
        return {name for name in one if one[name] != other[name]} - {"started"}

    assert changed("run.name=two", f"run.root={tmp_path / 'b'}") == set()
    assert changed("run.seed=8") == {"seed", "config"}
    labelled.write_text("{} \n")
    monkeypatch.setenv("SWIRL_IMAGE", "swirl-nemo:cpu-0123abc")
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [importlib.metadata.distribution("torch")])
    assert changed() == {"data", "image", "lock", "versions"}
