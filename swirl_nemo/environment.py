"""env.json: all that decides a run's metrics on a CPU (docs/containers.md).

Same commit, lock, config, data, seed, CPU and threads: the same metrics.jsonl, bit for bit (recipes/same_metrics.py).
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import OmegaConf

from .checkpoint.manifest import sha256
from .config import SwirlConfig

HERE = Path(__file__).parent
COMMIT = "COMMIT"  # beside the code where there is no git: the build of an image writes it


def environment(cfg: SwirlConfig) -> dict:
    """What a run was made with. Versions, not environment variables: those hold secrets."""
    every = (distribution.metadata for distribution in importlib.metadata.distributions())  # each reads a file
    versions = dict(sorted((metadata["Name"], metadata["Version"]) for metadata in every))
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": cfg.run.seed,
        "config": _config_hash(cfg),
        "data": _data_hashes(cfg),
        "layout": {
            "nodes": cfg.cluster.nodes,
            "devices": cfg.cluster.devices,
            "backend": cfg.cluster.backend,
            "tensor": cfg.parallel.tensor,
            "pipeline": cfg.parallel.pipeline,
            "context": cfg.parallel.context,
            "sequence": cfg.parallel.sequence,
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "image": os.environ.get("SWIRL_IMAGE"),
        "cpus": os.cpu_count(),
        **_processor(),
        **source(HERE),
        "lock": _lock_hash(versions),
        "versions": versions,
    }


def source(folder: Path) -> dict:
    """{"commit": hash, "dirty": bool} of the git checkout whose tracked files `folder` holds, or of its file COMMIT,
    else nulls."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if (folder / COMMIT).is_file():
        return {"commit": (folder / COMMIT).read_text().strip(), "dirty": False}
    # an installed package may lie, untracked, inside another project's checkout
    if shutil.which("git") is None or not git("ls-tree", "--name-only", "HEAD", "."):
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}


def _processor() -> dict:
    """Kernels are chosen by the CPU's instructions, and sums are divided among threads."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    named = next((line for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": named.rpartition(":")[2].strip(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _config_hash(cfg: SwirlConfig) -> str:
    """SHA-256 of config.yaml, but for the run's name and root: those differ between two runs of the same."""
    same = OmegaConf.create(OmegaConf.to_yaml(cfg))
    same.run.name = same.run.root = ""
    return hashlib.sha256(OmegaConf.to_yaml(same).encode()).hexdigest()


def _lock_hash(versions: dict[str, str]) -> str:
    """SHA-256 of what is installed, a line NAME==VERSION each, without pip, which no lock has."""
    lines = [f"{name}=={version}\n" for name, version in versions.items() if name != "pip"]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _data_hashes(cfg: SwirlConfig) -> dict[str, str]:
    """SHA-256 of the transitions files that are there."""
    splits = ("labelled", "unlabelled", "validation", "test")
    paths = {split: Path(getattr(cfg.data, split)) for split in splits}
    return {split: sha256(path) for split, path in paths.items() if path.is_file()}
