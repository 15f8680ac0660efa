"""`swirl doctor`: what a run would find on this machine."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import torch
import torch.multiprocessing as multiprocessing
from rich.console import Console
from rich.table import Table
from torch import distributed

from . import kernels, versions

NEEDED = ("lightning", "transformers", "hydra-core", "omegaconf")
COLLECTIVE_SECONDS = 120.0

Finding = tuple[str, str, bool]  # what, what was found, whether a run could do without


def examine() -> int:
    """Prints a table; 0, or 1 where something that a run needs is missing."""
    findings = [*_versions(), *_devices(), *_kernels(), _memory(), _java(), _collective()]
    table = Table("what", "found", "", title="swirl doctor")
    for what, found, fine in findings:
        table.add_row(what, found, "[green]ok[/]" if fine else "[red]missing[/]")
    Console().print(table)
    return 0 if all(fine for *_, fine in findings) else 1


def _versions() -> list[Finding]:
    gpu = torch.cuda.is_available()
    findings = [("python", platform.python_version(), True)]
    for package in versions.STACK:
        fault = versions.fault(package, gpu=gpu)
        if fault or (found := versions.installed(package.name)):
            findings.append((package.name, fault or found, fault is None))
    others = [(name, versions.installed(name)) for name in NEEDED]
    return findings + [(name, version or "not installed", version is not None) for name, version in others]


def _devices() -> list[Finding]:
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
    return [
        ("CPU cores", str(len(os.sched_getaffinity(0))), True),
        ("GPUs", names or "none: gloo on CPU", True),
    ]


def _kernels() -> list[Finding]:
    """What conf/kernels can ask for here; and the optimizer, which nobody has to ask for."""
    gpu, adam = torch.cuda.is_available(), kernels.adam()
    torchs = "torch's AdamW, whose state Megatron cannot save: install Transformer Engine or Apex"
    ours = "this project's, as none can run without a GPU"
    return [
        *((kernel.name, kernel.lack() or "can be used", True) for kernel in kernels.KERNELS),
        ("Adam", (adam or torchs) if gpu else ours, not gpu or adam is not None),
    ]


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return "memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free", True


def _java() -> Finding:
    java = shutil.which("java")
    if java is None:
        return "java", "none: only `swirl collect world=scienceworld` needs it", True
    return "java", subprocess.run([java, "-version"], capture_output=True, text=True).stderr.splitlines()[0], True


def _collective() -> Finding:
    """An all-reduce between two new processes, over NCCL where each can have a GPU of its own."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    what = f"all-reduce of 2 processes, {backend}"
    with tempfile.TemporaryDirectory() as folder:
        processes = multiprocessing.spawn(_all_reduce, (backend, Path(folder) / "rendezvous"), nprocs=2, join=False)
        deadline = time.monotonic() + COLLECTIVE_SECONDS
        try:
            while not processes.join(max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    return what, f"no answer within {COLLECTIVE_SECONDS:.0f} s", False
        except multiprocessing.ProcessException as error:
            return what, str(error).strip().splitlines()[-1], False
        finally:
            for process in processes.processes:
                process.kill()
    return what, "right sum", True


def _all_reduce(rank: int, backend: str, rendezvous: Path) -> None:
    distributed.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    total = torch.tensor(rank + 1.0, device=device)
    distributed.all_reduce(total)
    distributed.destroy_process_group()
    if total.item() != 3.0:
        raise RuntimeError(f"1 + 2 over {backend} gave {total.item()}")
