"""`swirl plan --compare`: the plan against published runs, this project's step beside NeMo-RL's, and a step on 8 to
4,096 GPUs."""

from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..config import HardwareConfig, SwirlConfig
from ..settings import compose
from . import published
from .plan import GB, Found, search
from .report import WIDTH, to_json
from .work import Lengths

GPUS = [8 * 2**n for n in range(10)]
LENGTHS = Lengths(state=120, next_state=398, action=10)  # NeMo-RL's prompt and completion
BOUNDED = 512  # tokens of the longest completion, as a world whose states are of like length has
_PARTS = {  # NeMo-RL's parts, and this project's for the same purpose
    "training": ("train",),
    "refit": ("swap",),
    "generation": ("rollout",),
    "log-probs": ("reward", "reference"),
}


def compare(json_file: Path | None) -> None:
    """Print all three, of Llama 3 70B on DGX H100, and write them to `json_file`. Half a minute."""
    console = Console(width=WIDTH)
    hardware = compose(["cluster=dgx_h100"]).cluster.hardware
    rows = published.rows(hardware)
    console.print(_published(rows))
    steps = _side_by_side(hardware)
    console.print(_steps(steps))
    scale = {gpus: _best(workload(gpus // 8, 1, BOUNDED)) for gpus in GPUS}
    console.print(_scale(scale))
    result = {
        "published": [{**asdict(row), "error": row.error} for row in rows],
        "steps": {name: parts for name, parts, _ in steps},
        "scale": {gpus: None if one is None else asdict(one) for gpus, one in scale.items()},
    }
    if json_file:
        json_file.write_text(to_json(result))


def workload(nodes: int, optimizer_steps: int, longest: int) -> SwirlConfig:
    """NeMo-RL's on this project: 64 prompts of 32 rows, a reference, completions of at most `longest` tokens."""
    values = {
        "cluster.nodes": nodes,
        "phase.fwm.prompts": 64,
        "phase.fwm.group": 32,
        "phase.fwm.optimizer_steps": optimizer_steps,
        "phase.fwm.sampling.top_k": 0,
        "phase.fwm.sampling.top_p": 1.0,
        "phase.fwm.steps": 1,
        "data.fwm.max_length": longest,
        "data.idm.max_length": LENGTHS.action,
        "model.max_length": longest + LENGTHS.state + LENGTHS.action,
        "alternation.order": "[fwm]",
        "warmup.batch": 64,
        "pretrain.batch": 64,
    }
    groups = ("model=llama3_70b", "cluster=dgx_h100", "precision=bf16", "phase=published")
    return compose([*groups, *(f"{key}={value}" for key, value in values.items())])


def _best(cfg: SwirlConfig) -> Found | None:
    found = search(cfg, LENGTHS, most=1)
    return found[0] if found else None


def _side_by_side(hardware: HardwareConfig) -> list[tuple[str, dict[str, float], str]]:
    """Seconds by part, and the layout."""
    theirs = published.STEPS[0]
    unbounded = theirs.length - LENGTHS.state - LENGTHS.action
    short = replace(theirs, longest=BOUNDED).predicted(hardware)
    layout = f"TP{theirs.tensor} PP{theirs.pipeline}, vLLM TP{theirs.generation}"
    return [
        ("NeMo-RL, published", theirs.figures, layout),
        ("NeMo-RL, planned", theirs.predicted(hardware), layout),
        _ours("this project, planned", unbounded),
        (f"NeMo-RL, at most {BOUNDED} tokens, planned", short, layout),
        _ours(f"this project, at most {BOUNDED} tokens, planned", BOUNDED),
    ]


def _ours(name: str, longest: int) -> tuple[str, dict[str, float], str]:
    best = _best(workload(8, published.STEPS[0].OPTIMIZER_STEPS, longest))
    (step,) = best.plan.steps
    parts = {
        theirs: sum(step.parts[part].seconds for part in ours if part in step.parts) for theirs, ours in _PARTS.items()
    }
    return name, parts | {"step": step.seconds}, _layout(best)


def _published(rows: list[published.Row]) -> Table:
    table = Table("run", title="Published runs: seconds, tokens/s of a GPU, or TFLOP/s of a GPU (Megatron-LM)")
    for name in ("published", "planned", "error", ""):
        table.add_column(name, justify="right")
    for row in rows:
        digits = 0 if row.published > 1000 else 1
        figures = (f"{figure:,.{digits}f}" for figure in (row.published, row.predicted))
        table.add_row(row.name, *figures, f"{row.error:+.0%}", row.use.value)
    return table


def _steps(steps: list[tuple[str, dict[str, float], str]]) -> Table:
    table = Table("2,048 rollouts of 398 tokens, 70B, 64 H100: s", title="This project's step beside NeMo-RL's")
    for name in (*_PARTS, "step"):
        table.add_column(name, justify="right")
    for name, parts, layout in steps:
        table.add_row(f"{name}\n{layout}", *(f"{parts[part]:.1f}" for part in (*_PARTS, "step")))
    return table


def _scale(scale: dict[int, Found | None]) -> Table:
    table = Table("GPUs", title=f"2,048 rollouts of 398 of at most {BOUNDED} tokens, 70B, one optimizer step")
    for name in ("step, s", "tokens/s of a GPU", "GB", "layout"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for gpus, one in scale.items():
        if one is None:
            table.add_row(f"{gpus:,}", "", "", "", "does not fit")
            continue
        (step,) = one.plan.steps
        tokens = step.parts["train"].tokens / step.seconds / gpus
        peak = max(device.peak for device in one.plan.memory.devices) / GB
        table.add_row(f"{gpus:,}", f"{step.seconds:.1f}", f"{tokens:,.0f}", f"{peak:.0f}", _layout(one))
    return table


def _layout(found: Found) -> str:
    layout = found.plan.layout
    sizes = f"TP{layout.tensor} PP{layout.pipeline} VP{layout.virtual} DP{layout.data}"
    return f"{sizes}, micro-batch {found.change['parallel.micro_batch']}"
