"""Measures a step and prints it: alone, or pair by pair with TRL in an environment of its own."""

import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..settings import launched
from . import limit, work
from .config import BenchConfig, check

PEER = Path(__file__).with_name("trl_peer.py")


def bench(cfg: BenchConfig, trl_python: Path | None, out: Path | None) -> dict:
    """Medians over cfg.steps steps: {"seconds", "tokens_per_s", "limit_seconds", "limit_ratio", "swap_share",
    "peak_memory_gb", "machine"}, and with `trl_python` {"trl"}: its seconds and the medians of the ratios TRL / ours,
    pair by pair.

    Printed as a table, and written to `out` as JSON, by the first of torchrun's processes. Raises ValueError for sizes
    that are no work, a missing model, and where TRL does not start.
    """
    processes = math.prod(launched() or (1, 1))
    check(cfg, processes)
    if trl_python and processes > 1:
        raise ValueError(f"--against-trl: {processes} processes of ours would slow TRL in its turns: start one")
    with tempfile.TemporaryDirectory() as folder:
        job = work.make(cfg, Path(folder))
        peer = Peer(cfg, trl_python, job) if trl_python else None
        session = work.open_session(cfg, job, max(1, cfg.threads // processes))
        ours = work.steps(session, cfg, job.rows)
        pairs = [(metrics, peer.step() if peer else None) for metrics in ours][1:]  # the first step warms up
        result = _summary(cfg, session.actor, pairs)
        if peer:
            peer.close()
    if not session.is_main:
        return result
    _print(result)
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")
    return result


class Peer:
    """TRL in a process of its own, which does a step when it is told to."""

    def __init__(self, cfg: BenchConfig, python: Path, job: work.Job):
        place, models = job.place, {"fwm": str(job.fwm), "idm": str(job.idm)}
        task = models | {"rows": job.rows, "instruction": job.instruction} | vars(cfg)
        (place / "task.json").write_text(json.dumps(task))
        try:
            self._process = subprocess.Popen(
                [str(python), str(PEER), str(place / "task.json"), str(place / "trl")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ValueError(
                f"--against-trl {python}: {error.strerror}: give the python of an environment with trl"
            ) from None

    def step(self) -> dict[str, float]:
        """Seconds of its next step's parts."""
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise ValueError(
                "--against-trl: TRL ended, its message is above: its environment needs torch 2.13, trl 1.16"
            ) from None

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _summary(cfg: BenchConfig, actor, pairs: list[tuple[dict, dict | None]]) -> dict:
    ours = [{part: metrics.get(f"seconds/{name}", 0.0) for part, name in work.PARTS.items()} for metrics, _ in pairs]
    machine, rows = limit.measure_machine(cfg.threads), cfg.prompts * cfg.group
    least = limit.least_seconds(cfg, limit.sizes(actor), machine)
    seconds = _medians(ours)
    result = {
        "settings": vars(cfg),
        "seconds": seconds,
        "tokens_per_s": {
            "generate": rows * cfg.completion_len / seconds["generate"],
            "step": rows * cfg.completion_len / seconds["step"],
        },
        "limit_seconds": least,
        "limit_ratio": {part: seconds[part] / value for part, value in least.items() if value},
        "swap_share": statistics.median(metrics["seconds/swap"] / metrics["seconds/step"] for metrics, _ in pairs),
        "peak_memory_gb": max(metrics["memory/peak_gb"] for metrics, _ in pairs),
        "machine": {"gflops": machine.flops / 1e9, "copy_gb_per_s": machine.bandwidth / 1e9},
    }
    theirs = [row for _, row in pairs if row]
    if theirs:
        both = list(zip(ours, theirs, strict=True))
        ratios = [{part: other[part] / own[part] for part in other if own[part]} for own, other in both]
        every = [ratio["step"] for ratio in ratios]
        result["trl"] = {"seconds": _medians(theirs), "ratio": _medians(ratios), "ratios_of_steps": every}
    return result


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _print(result: dict) -> None:
    table = Table(title=f"One step of Phase I, {result['settings']['model']}: seconds, medians")
    peer = ("TRL", "TRL / ours") if "trl" in result else ()
    for column in ("part", "seconds", "the machine's limit", "times the limit", *peer):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, seconds in result["seconds"].items():
        least, ratio = result["limit_seconds"][part], result["limit_ratio"].get(part)
        row = [part, f"{seconds:.3f}", f"{least:.3f}", f"{ratio:.1f}" if ratio else "–"]
        if "trl" in result:
            row += [f"{result['trl']['seconds'][part]:.3f}", f"{result['trl']['ratio'][part]:.2f}"]
        table.add_row(*row)
    console = Console()
    console.print(table)
    speed, machine = result["tokens_per_s"], result["machine"]
    console.print(
        f"{speed['generate']:.0f} tokens/s generated, {speed['step']:.0f} in all · "
        f"weights swapped in {100 * result['swap_share']:.1f}% of the step · peak {result['peak_memory_gb']:.2f} GB · "
        f"machine: {machine['gflops']:.0f} GFLOP/s, copies {machine['copy_gb_per_s']:.1f} GB/s"
    )
