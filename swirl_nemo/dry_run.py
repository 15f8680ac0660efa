"""`swirl train --dry-run`: what a run would be on its whole world, from one CPU process. Nothing is trained or written.

The actor is the one that trains, with Megatron's DDP and distributed optimizer, built as rank 0 on the meta device.
"""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .alternation import Stage, phase_of, stages
from .checks import check, check_architecture
from .config import ArchitectureConfig, Fp8, SwirlConfig
from .data.transitions import TransitionFile
from .planning import report
from .planning.architecture import Layout, architecture, parameters
from .planning.architecture import stages as pipeline_stages
from .planning.plan import make_plan
from .planning.work import Lengths
from .settings import compose


def dry_run(cfg: SwirlConfig) -> None:
    """Build the model, read the data that is there, lay out the schedule, and print these and the plan.

    Raises ValueError, one line, for what training would refuse too; files that are not there are said to be missing.
    """
    check(cfg, cfg.cluster.nodes * cfg.cluster.devices)
    a, layout = architecture(cfg), Layout.of(cfg)
    check_architecture(cfg, a, "model.architecture")
    files, plan = _files(cfg), _schedule(cfg, layout)
    built, sharded = rank_zero_parameters(cfg, a)
    console = Console(width=report.WIDTH)
    console.print(
        f"rank 0 of {layout.gpus}, built on the meta device: {built:,} of {parameters(a):,} parameters, "
        f"{sharded:,} of them in its part of the optimizer",
        soft_wrap=True,
    )
    console.print(files)
    console.print(plan)
    report.show(cfg, make_plan(cfg, a, Lengths.longest(cfg)), console)


def rank_zero_parameters(cfg: SwirlConfig, a: ArchitectureConfig) -> tuple[int, int]:
    """Of the model that rank 0 holds, and of the optimizer's part there.

    Raises ValueError where model.fwm is another model than model.architecture says.
    """
    from .checkpoint.stand_in import write_stand_in
    from .stack.rank_zero import rank_zero

    with tempfile.TemporaryDirectory() as place:
        folder = Path(cfg.model.fwm)
        if not (folder / "model_config.yaml").is_file():
            folder = Path(place)
            write_stand_in(a, folder)
        # Transformer Engine and Apex need a GPU; layers have the same weights without them
        local = compose(["kernels=local"]).kernels
        plain = replace(cfg, precision=replace(cfg.precision, fp8=Fp8.none), kernels=local)
        with rank_zero(cfg.cluster.nodes, cfg.cluster.devices):
            from .actor.build import build_actor

            actor = build_actor(plain, folder)
    built = sum(parameter.numel() for stage in actor.model for parameter in stage.parameters())
    layout = Layout.of(cfg)
    expected = pipeline_stages(a, layout)[0].parameters(a, layout.tensor)
    if built != expected:
        raise ValueError(
            f"model.architecture: {expected:,} parameters on rank 0, but {built:,} with {folder}/model_config.yaml: "
            "give the architecture of that model, or null"
        )
    return built, sum(parameter.numel() for parameter in actor.optimizer_parameters())


def _files(cfg: SwirlConfig) -> Table:
    table = Table("setting", "file", "what is there")
    for name, limit in (
        ("labelled", cfg.data.max_labels),
        ("unlabelled", cfg.data.max_unlabelled),
        ("validation", None),
        ("test", None),
    ):
        path = Path(getattr(cfg.data, name))
        there = f"{len(TransitionFile(path, limit)):,} transitions" if path.is_file() else "missing"
        table.add_row(f"data.{name}", str(path), there)
    folders = {"data.tokenizer": cfg.data.tokenizer, "model.fwm": cfg.model.fwm, "model.idm": cfg.model.idm}
    for key, folder in folders.items():
        table.add_row(key, folder, "a folder" if Path(folder).is_dir() else "missing")
    return table


def _schedule(cfg: SwirlConfig, layout: Layout) -> Table:
    """A row a stage: its steps, updates by the optimizer, sequences of a step, and a rank's micro-batches of an
    update."""
    table, total = Table("iteration", "stage", "steps", "updates", "sequences", "micro-batches"), 0
    for stage in stages(cfg):
        sequences, updates = _step(cfg, stage)
        micro_batches = math.ceil(sequences / updates / layout.data / cfg.parallel.micro_batch)
        row = (stage.iteration, stage.name, stage.steps, stage.steps * updates, sequences, micro_batches)
        table.add_row(*map(str, row))
        total += stage.steps * updates
    table.add_row("", "in all", "", str(total), "", "")
    return table


def _step(cfg: SwirlConfig, stage: Stage) -> tuple[int, int]:
    """Sequences and optimizer steps of one step, replay and M-step left out."""
    if stage.kind != "phase":
        return (cfg.pretrain if stage.kind == "pretrain" else cfg.warmup).batch, 1
    (role,) = stage.roles
    phase = phase_of(cfg, role)
    return phase.prompts * phase.group, phase.optimizer_steps
