"""Runs of two processes that are killed, stopped, starved and damaged, and go on: for test_faults.py.

Run as a module, this is the process that forks their ranks. Every fault strikes a running job; in between nothing is
done but starting the same command again.

    work/runs/{layout}     never disturbed: what the others are compared with
    work/runs/faulted      (`main`) each fault once, one after the other
    work/runs/pipeline     (`main`) a pipeline's process killed once
    work/runs/background   (`main`) saves in the background, slow, killed and on a full disk
    work/runs/seed-N       (`kills`) six kills at moments drawn from the seed
    work/writes.jsonl      of `background`: how long a save kept training waiting
    work/faults.jsonl      a row a launch with a fault: what it was, what came of it, the log
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from workers.layouts import import_stack

LAYOUTS = {"TP2": ["parallel.tensor=2"], "DP2": [], "PP2": ["parallel.pipeline=2"]}
# Each stage once, as short as can be, with all that a phase's step does; a checkpoint a step.
SETTINGS = (
    *("pretrain.steps=0", "warmup.steps=2", "warmup.batch=6", "warmup.lr=2e-3", "warmup.lr_warmup=0"),
    *("annotate.greedy=false", "annotate.pool=8", "annotate.certainty_ceiling=-9"),
    *("phase.fwm.plausibility_floor=null", "phase.fwm.confidence_floor=null"),
    *("phase.idm.plausibility_floor=null", "phase.idm.confidence_floor=null"),
    *("alternation.iterations=1", "alternation.order=[idm,fwm]", "alternation.baselines=[continued_sft]"),
    *("run.save_every=1", "run.keep=2", "run.keep_best=1", "run.seed=7"),
    *("eval.batch=4", "eval.samples=2", "eval.transitions=3"),
    *("phase.idm.steps=3", "phase.fwm.steps=2"),
    *(f"phase.{role}.{setting}" for role in ("idm", "fwm") for setting in (
        *("prompts=4", "group=4", "optimizer_steps=1", "lr=2e-4", "lr_warmup=0", "dead_std=0", "replay=1"),
        *("replay_batch=4", "policy_gradient=1", "kl_beta=0.04", "mstep=1", "mstep_batch=4"),
    )),
)  # fmt: skip
MOMENTS = ("rollout", "scoring", "backward", "optimizer step", "weight swap", "save")
BACKGROUND = "run.save_in_background=true"
SLOW = 1.0  # seconds that a writer of `background` sleeps
SECRET = "s3cret-of-this-test"


@dataclass(frozen=True)
class Fault:
    """At the `call`-th time that `rank` comes to `moment`, `delay` seconds later, it gets `signal`; None: its disk is
    full from then on."""

    moment: str
    call: int
    delay: float
    rank: int
    signal: int | None = signal.SIGKILL


def _places() -> dict[str, tuple]:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    from swirl_nemo.actor.actor import SwirlActor
    from swirl_nemo.checkpoint.saving import Saver
    from swirl_nemo.weights import WeightSets

    places = (
        *((SwirlActor, "infer"), (SwirlActor, "get_inference_log_probs"), (SwirlActor, "get_loss_and_metrics")),
        *((DistributedOptimizer, "step_with_ready_grads"), (WeightSets, "_copy"), (Saver, "save")),
    )
    return dict(zip(MOMENTS, places, strict=True))


def _plant(fault: Fault) -> None:
    owner, name = _places()[fault.moment]
    original, calls = getattr(owner, name), 0

    def struck(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == fault.call:
            strike = _fill_disk if fault.signal is None else lambda: os.kill(os.getpid(), fault.signal)
            if fault.delay:
                threading.Timer(fault.delay, strike).start()
            else:
                strike()
        return original(*arguments, **options)

    setattr(owner, name, struck)


def _fill_disk() -> None:
    """What Megatron's writer processes write from now on goes to a device that is full."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    original = FileSystemWriterAsync.write_preloaded_data

    def write(index, bucket, *rest):
        original(index, ("/dev/full", *bucket[1:]), *rest)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(write)


def _slow_disk(times: Path) -> None:
    """Writers sleep before they write; how long each save takes until weights may change is noted."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    from swirl_nemo.checkpoint.saving import Saver

    write, hand_over = FileSystemWriterAsync.write_preloaded_data, Saver._write

    def slow(*arguments):
        time.sleep(SLOW)
        write(*arguments)

    def timed(self, partial, state, sets, background):
        start = time.monotonic()
        hand_over(self, partial, state, sets, background)
        row = {"name": partial.name, "background": background, "seconds": time.monotonic() - start}
        with times.open("a") as file:
            file.write(json.dumps(row) + "\n")

    FileSystemWriterAsync.write_preloaded_data = staticmethod(slow)
    Saver._write = timed


def settings(work: Path, name: str, *extra: str) -> list[str]:
    from workers import setting

    return [*setting.overrides(work), *SETTINGS, f"run.name={name}", *extra]


def launch(work: Path, name: str, *extra: str, faults: tuple[Fault, ...] = (), plant=None, expect: int | None = None):
    """`swirl train` as two ranks, until all have ended, or, as torchrun does, until one has failed: the rest is killed.

    `plant` is called in each rank before it begins. Returns {"codes", "log", "seconds"};
    a launch with faults is a row of faults.jsonl.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    log, start = work / f"{name}.log", time.monotonic()
    log.unlink(missing_ok=True)
    arguments = settings(work, name, *extra)
    ranks = [multiprocessing.get_context("fork").Process(target=_rank, args=(r, port, log, arguments, faults, plant))
             for r in range(2)]  # fmt: skip
    for rank in ranks:
        rank.start()
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        time.sleep(0.05)
    seconds = time.monotonic() - start
    if not any((rank.exitcode or 0) < 0 for rank in ranks):
        for rank in ranks:
            rank.join(2)  # the first to fail may be about to say why
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        _end(rank.pid)
        rank.join()
    result = {"codes": codes, "log": log.read_text(), "seconds": seconds}
    if expect is not None:
        assert codes == [expect, expect], (codes, result["log"][-6000:])
    if faults:
        metrics = work / "runs" / name / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        row = {"run": name, "faults": [asdict(fault) for fault in faults], "lines": len(lines), **result}
        row["finished"] = (work / "runs" / name / "summary.json").exists()
        with (work / "faults.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return result


def _end(group: int) -> None:
    """A rank and all that it has started."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _rank(rank: int, port: int, log: Path, arguments: list[str], faults: tuple[Fault, ...], plant) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="localhost")
    os.environ.update(HF_TOKEN=SECRET, WANDB_API_KEY=SECRET, AWS_SECRET_ACCESS_KEY=SECRET)
    os.setpgrp()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from swirl_nemo import cli

    for fault in faults:
        if fault.rank == rank:
            _plant(fault)
    if plant:
        plant()
    cli.main(["train", *arguments])


def draw(seed: int, moment: str, background: bool = False) -> Fault:
    """A kill of either rank at a moment that depends on the seed, and on how long a save takes."""
    drawn = random.Random(f"{seed} {moment}")
    longest = (0.5 if background else 0.1) if moment == "save" else 0.05
    return Fault(moment, drawn.randint(1, 3), drawn.random() * longest, drawn.randint(0, 1))


def newest(work: Path, name: str) -> Path:
    return (work / "runs" / name / "checkpoints" / "latest").resolve()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _each_fault_once(work: Path) -> None:
    name, layout = "faulted", LAYOUTS["TP2"]

    def struck(*faults: Fault, extra: tuple[str, ...] = ()) -> dict:
        return launch(work, name, *layout, *extra, faults=faults)

    for moment in MOMENTS:
        struck(draw(1, moment))
    struck(*(Fault("scoring", 2, 0.0, rank, signal.SIGTERM) for rank in range(2)))
    struck(Fault("scoring", 2, 0.0, 1, signal.SIGSTOP), extra=("cluster.timeout_minutes=0.4",))
    struck(Fault("save", 2, 0.0, 0, None))
    metrics = work / "runs" / name / "metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size // 2)
    for case, damage in DAMAGE.items():
        _copy_and_damage(work, name, case, damage)
    flip(next(newest(work, name).glob("*/model_weights/__0_0.distcp")))
    result = launch(work, name, *layout, expect=0)
    (work / "finished.log").write_text(result["log"])


def _all(folder: Path) -> None:
    for path in folder.parent.glob("0*"):
        (path / "state.json").unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {"none sound": _all}


def _copy_and_damage(work: Path, name: str, case: str, damage) -> None:
    """What a launch says of a copy of the run whose newest checkpoint is damaged: work/{case}.log."""
    copied = case.replace(" ", "-")
    shutil.copytree(work / "runs" / name, work / "runs" / copied, symlinks=True)
    damage(newest(work, copied))
    before = (work / "runs" / copied / "metrics.jsonl").read_bytes()
    result = launch(work, copied, *LAYOUTS["TP2"])
    untouched = (work / "runs" / copied / "metrics.jsonl").read_bytes() == before
    (work / f"{copied}.json").write_text(json.dumps(result | {"untouched": untouched}))


def kills(work: Path, seeds: list[int]) -> None:
    """Six kills a seed, layouts in turn; see `options`."""
    for layout, extra in LAYOUTS.items():
        launch(work, layout, *extra, expect=0)
    for seed in seeds:
        for moment in random.Random(seed).sample(MOMENTS, len(MOMENTS)):
            launch(work, f"seed-{seed}", *options(seed), faults=(draw(seed, moment, in_background(seed)),))
        launch(work, f"seed-{seed}", *options(seed), expect=0)


def layout_of(seed: int) -> str:
    return list(LAYOUTS)[seed % len(LAYOUTS)]


def in_background(seed: int) -> bool:
    return seed % 2 == 1


def options(seed: int) -> tuple[str, ...]:
    return (*LAYOUTS[layout_of(seed)], *([BACKGROUND] if in_background(seed) else []))


def main(work: Path, seeds: list[int]) -> None:
    from workers import setting
    from workers.layouts import fork

    import_stack()
    fork(setting.make, work)
    if seeds:
        kills(work, seeds)
        return
    launch(work, "TP2", *LAYOUTS["TP2"], expect=0)
    _each_fault_once(work)
    launch(work, "PP2", *LAYOUTS["PP2"], expect=0)
    launch(work, "pipeline", *LAYOUTS["PP2"], faults=(Fault("optimizer step", 4, 0.0, 1),))
    launch(work, "pipeline", *LAYOUTS["PP2"], expect=0)
    background = (*LAYOUTS["TP2"], BACKGROUND)
    launch(work, "background", *background, faults=(Fault("save", 3, 0.1, 1),))
    launch(work, "background", *background, faults=(Fault("save", 2, 0.0, 0, None),))
    launch(work, "background", *background, plant=partial(_slow_disk, work / "writes.jsonl"), expect=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
