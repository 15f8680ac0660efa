"""Every layout's figures, from one Megatron process that imports the stack once and forks each layout's ranks.

Run as a module, this is that process; `compute` starts it and reads what rank 0 of each layout left.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["workers.stack"])


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    sequence: bool = False
    tied: bool = False  # one model with tied embeddings plays both roles; otherwise two models, untied
    dtype: str = "fp32"
    recompute: str = "none"
    overlap: bool = False
    brief: bool = False  # training alone, untied: another layout rolls out and scores with the same code
    padded: bool = False  # query groups padded from two to four, which tensor and context together divide

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def possible(self) -> bool:
        """gloo takes any number of processes, NCCL one a GPU."""
        return not torch.cuda.is_available() or self.processes <= torch.cuda.device_count()

    def overrides(self, work: Path) -> list[str]:
        parallel = {"tensor": self.tensor, "pipeline": self.pipeline, "context": self.context}
        parallel |= {"sequence": self.sequence, "overlap_grad_reduce": self.overlap}
        model = ["model.weights=shared", f"model.fwm={work / 'tied'}"] if self.tied else []
        if self.padded:
            model = [f"model.{role}={work / f'{role}_padded'}" for role in ("fwm", "idm")]
        kept = [f"precision={self.dtype}", f"model.recompute={self.recompute}"]
        return [*(f"parallel.{key}={value}" for key, value in parallel.items()), *kept, *model]


LAYOUTS = {
    "single": Layout(),
    "TP2": Layout(tensor=2),
    "TP2 SP": Layout(tensor=2, sequence=True, brief=True),
    "PP2": Layout(pipeline=2),
    "DP2": Layout(data=2),
    "TP2 PP2": Layout(tensor=2, pipeline=2, brief=True),
    "TP2 PP2 SP": Layout(tensor=2, pipeline=2, sequence=True),
    "DP2 overlap": Layout(data=2, overlap=True, recompute="selective", brief=True),
    "CP2": Layout(context=2, recompute="full", brief=True),
    "PP2 CP2": Layout(pipeline=2, context=2, brief=True),
    "TP2 CP2 SP": Layout(tensor=2, context=2, sequence=True, recompute="selective", brief=True, padded=True),
    "tied single": Layout(tied=True),
    "tied PP2": Layout(pipeline=2, tied=True),
    "tied TP2 PP2 SP": Layout(tensor=2, pipeline=2, sequence=True, tied=True),
    "bf16": Layout(dtype="bf16"),
}
LAYOUTS = {name: layout for name, layout in LAYOUTS.items() if layout.possible}
FULL = [name for name, layout in LAYOUTS.items() if not (layout.tied or layout.brief) and layout.dtype == "fp32"]
BRIEF = [name for name, layout in LAYOUTS.items() if layout.brief]
UNTIED = FULL + BRIEF
PADDED = [name for name, layout in LAYOUTS.items() if layout.padded]
TIED = [name for name, layout in LAYOUTS.items() if layout.tied]


def compute(work: Path) -> dict[str, dict]:
    """What `rooms.visit` returned in each layout. The fixture `layouts` calls it, once a session. In the same process a
    case of workers/memory.py is measured, into work/memory.json."""
    run_module("workers.layouts", work)
    return {name: torch.load(work / f"{name}.pt") for name in LAYOUTS}


def run_module(module: str, work: Path, *arguments: str) -> None:
    """A module of this folder in a process of its own, forked from one that has imported the stack; the end of its
    output is shown where it fails."""
    log = work / "log"
    process = FORKSERVER.Process(target=_as_main, args=(module, log, str(work), *arguments))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-6000:]


def _as_main(module: str, log: Path, *arguments: str) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(TESTS)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def import_stack() -> None:
    """All that a run imports, so that forked processes start at once. Starts no thread and no process group."""
    from swirl_nemo.stack import prepare

    prepare()
    import nemo_aligner.utils.train_script_utils  # noqa: F401

    import swirl_nemo.actor.actor
    import swirl_nemo.alternation  # noqa: F401


def fork(function, *arguments, processes: int = 1) -> None:
    """Run `function(*arguments)` in forked processes that look as if torchrun had started them.

    Raises what the first of them raised, or ProcessExitedException with its exit code if that is not 0.
    """
    from torch.multiprocessing import start_processes

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    start_processes(_as_rank, (processes, port, function, arguments), nprocs=processes, start_method="fork")


def _as_rank(rank: int, processes: int, port: int, function, arguments) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update(
        {name: str(value) for name, value in world.items()}, MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    function(*arguments)


def _visit(work: Path, name: str) -> None:
    from workers import rooms, setting

    from swirl_nemo.session import Session
    from swirl_nemo.settings import load

    layout = LAYOUTS[name]
    session = Session(load([*setting.overrides(work), *layout.overrides(work), f"run.name={name.replace(' ', '_')}"]))
    session.load()
    result = rooms.visit(session, work, name, layout.brief)
    if session.is_main:
        torch.save(result, work / f"{name}.pt")


def main(work: Path) -> None:
    from workers import memory, setting

    import_stack()
    fork(setting.make, work)
    for name, layout in LAYOUTS.items():
        fork(_visit, work, name, processes=layout.processes)
    if not torch.cuda.is_available():  # what it measures is of CPUs
        memory.measure_cases(work, [memory.AGAIN])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
