"""What `swirl plan` prints and writes."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import Fp8, SwirlConfig
from .architecture import architecture
from .memory import ROLLOUT, STANDING, TRAINING, DeviceMemory, Memory
from .plan import GB, Found, Plan, make_plan, mends, overrides, search
from .seconds import StepTime
from .work import Lengths

WIDTH = 120  # columns, where the output is no terminal too
_SHOWN = 4  # mends, and layouts that a search found


def plan(cfg: SwirlConfig, lengths: Lengths | None, searching: bool, json_file: Path | None) -> None:
    """Print the plan of a run on cluster.nodes x cluster.devices GPUs, and write it to `json_file`.

    `lengths` are means, the longest where None. Raises ValueError for a combination that training refuses.
    """
    a, lengths = architecture(cfg), lengths or Lengths.longest(cfg)
    lengths.check(cfg)
    console = Console(width=WIDTH)
    made = make_plan(cfg, a, lengths)
    show(cfg, made, console)
    found = search(cfg, lengths, _SHOWN) if searching else []
    if searching:
        _show_search(found, console)
    elif made.misfit:
        _show_mends([overrides(change) for change in mends(cfg, a)], console)
    if json_file:
        layouts = [{"overrides": overrides(one.change), **asdict(one.plan)} for one in found]
        json_file.write_text(to_json({**asdict(made), "search": layouts}))


def to_json(result: dict) -> str:
    return json.dumps(result, indent=1, default=lambda choice: choice.name) + "\n"


def show(cfg: SwirlConfig, made: Plan, console: Console) -> None:
    """Everything about one configuration."""
    layout, hardware = made.layout, cfg.cluster.hardware
    console.print(
        f"{made.parameters / 1e9:.2f}B parameters on {cfg.cluster.nodes} x {cfg.cluster.devices} {hardware.device}: "
        f"TP{layout.tensor} PP{layout.pipeline} VP{layout.virtual} CP{layout.context} DP{layout.data}, "
        f"{cfg.precision.dtype.name}{', FP8' if cfg.precision.fp8 is not Fp8.none else ''}, "
        f"recompute {cfg.model.recompute.name}"
    )
    console.print(_devices(made.memory.devices, hardware.memory_gb))
    console.print(_host(cfg, made.memory))
    for step in made.steps:
        console.print(_step(step))
    sizes = made.lengths
    console.print(f"A state, next state, action: {sizes.state:g}, {sizes.next_state:g}, {sizes.action:g} tokens")
    console.print(f"{made.hours:.1f} hours for all phases of {cfg.alternation.iterations} iteration(s)")
    if made.misfit is None:
        console.print("Fits.")
    else:
        one = made.misfit
        sizes = f"{one.needed / GB:.1f} GB with all before it, of {one.there / GB:.0f}"
        console.print(f"Does not fit: {one.what} {one.where}: {sizes}.")


def _devices(devices: list[DeviceMemory], there: float) -> Table:
    table = Table("GB on each GPU", title="Memory")
    for device in devices:
        table.add_column(f"stage {device.stage}", justify="right")

    def row(name: str, sizes: Iterable[float], end: bool = False) -> None:
        table.add_row(name, *(f"{size / GB:.2f}" for size in sizes), end_section=end)

    for names in (STANDING, TRAINING, ROLLOUT):
        for name in names:
            row(name, (device.parts[name] for device in devices), end=name == names[-1])
    row("scoring", (device.scoring for device in devices))
    row("reserved", (device.parts["reserved"] for device in devices), end=True)
    row(f"peak, of {there:.0f}", (device.peak for device in devices))
    return table


def _host(cfg: SwirlConfig, needed: Memory) -> Table:
    table = Table("GB", "", "of", title="Hosts and disk")
    host, saved = needed.host, needed.checkpoint
    size = f"{host.weight_sets / GB:.1f}"
    table.add_row(f"{host.sets} named weight sets on each host", size, f"{cfg.cluster.hardware.host_memory_gb:.0f}")
    table.add_row("checkpoint: weight sets", f"{saved.weights / GB:.1f}", "")
    table.add_row("checkpoint: optimizer", f"{saved.optimizer / GB:.1f}", "")
    table.add_row("seconds to write it", f"{saved.seconds:.1f}", "")
    return table


def _step(step: StepTime) -> Table:
    table = Table("", title=f"A step of phase {step.role}")
    for name in ("seconds", "tokens/s"):
        table.add_column(name, justify="right")
    for name, part in step.parts.items():
        speed = "" if part.tokens is None else f"{part.tokens / part.seconds:,.0f}"
        table.add_row(name, f"{part.seconds:.2f}", speed)
    table.add_row("step", f"{step.seconds:.2f}", "")
    return table


def _show_mends(lines: list[str], console: Console) -> None:
    if not lines:
        console.print("No single change makes it fit: --search looks for a layout that does.")
        return
    console.print("Any one of these makes it fit:")
    for line in lines[:_SHOWN]:
        console.print(f"    {line}")


def _show_search(found: list[Found], console: Console) -> None:
    if not found:
        console.print("Nothing fits on so many GPUs: give more cluster.nodes.")
        return
    console.print("The fastest that fit:")
    for one in found:
        seconds = ", ".join(f"{step.role} {step.seconds:.1f} s" for step in one.plan.steps)
        peak = max(device.peak for device in one.plan.memory.devices) / GB
        console.print(f"  {seconds} a step, {peak:.0f} GB:\n    {overrides(one.change)}", soft_wrap=True)
