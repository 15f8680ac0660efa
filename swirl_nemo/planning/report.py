"""`swirl plan`: what a configuration needs of each GPU and host, what a step takes, and the first thing that does not
fit."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..checks import check
from ..config import SwirlConfig
from .architecture import Layout, architecture, parameters
from .memory import ROLLOUT, STATIC, TRAIN, memory
from .seconds import step_time
from .work import Lengths

GB = 1e9


def plan(cfg: SwirlConfig, json_file: Path | None) -> None:
    """Print the plan of a run on cluster.nodes x cluster.devices GPUs, and write it to `json_file`.

    Raises ValueError for a combination that training refuses.
    """
    a = architecture(cfg)
    check(cfg, cfg.cluster.nodes * cfg.cluster.devices)
    layout = Layout.of(cfg)
    needed = memory(cfg, a, layout)
    times = [step_time(cfg, a, layout, role, Lengths.longest(cfg)) for role in cfg.alternation.order]
    console = Console()
    console.print(f"{parameters(a) / 1e9:.2f}B parameters on {layout.gpus} x {cfg.cluster.hardware.device}: {layout}")
    table = Table("GB a GPU", *(f"stage {device.stage}" for device in needed.devices))
    for name in (*STATIC, *TRAIN, *ROLLOUT, "reserved"):
        table.add_row(name, *(f"{device.parts[name] / GB:.2f}" for device in needed.devices))
    table.add_row("peak", *(f"{device.peak / GB:.2f}" for device in needed.devices))
    console.print(table)
    for step in times:
        table = Table(f"a step of phase {step.role}", "s", "tokens/s")
        for name, part in step.parts.items():
            table.add_row(
                name, f"{part.seconds:.2f}", "" if part.tokens is None else f"{part.tokens / part.seconds:,.0f}"
            )
        table.add_row("step", f"{step.seconds:.2f}", "")
        console.print(table)
    if json_file:
        json_file.write_text(
            json.dumps({"memory": asdict(needed), "seconds": [asdict(step) for step in times]}, indent=1)
        )
