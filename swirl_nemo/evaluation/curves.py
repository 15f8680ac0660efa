"""Pictures that compare runs: one a metric, with one line a run, which the page shows and hides by its class."""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .metrics import METRICS, MODELS, NAMES
from .pictures import BASELINES, picture, points, series

# Each at least 3:1 against the cards of a light and of a dark page.
PALETTE = ("#3b82f6", "#d97014", "#229954", "#d6559b", "#8b6fe0", "#0d93a0", "#e5484d", "#9a8700")
DASHES = ((), (4, 1.5), (1.2, 1.5), (6, 1.5, 1.2, 1.5))
PHASE = {
    "reward/mean": "Reward, mean",
    "kl/reference": "KL to reference (k3, per token)",
    "entropy": "Entropy, nats per token",
    "group/dead_fraction": "Dead groups, share",
}
STAGES = {"pretrain": "pre-training"} | MODELS

Line = tuple[list, list]  # x and y; two empty ones of a run that has nothing of a picture


class Stroke(NamedTuple):
    """How a run is drawn in every picture and in the legend."""

    colour: str
    dash: tuple[float, ...]  # in widths of the line; none for an unbroken one

    def dash_of_width(self, width: float) -> str:
        return " ".join(f"{part * width:g}" for part in self.dash)


def stroke(group: int, member: int) -> Stroke:
    """A colour a group of runs, a dash a run of it. Both begin anew where there are no more."""
    return Stroke(PALETTE[group % len(PALETTE)], DASHES[(member + group // len(PALETTE)) % len(DASHES)])


def curves(runs: list[list[dict]], strokes: list[Stroke]) -> list[tuple[str, str]]:
    """(title, SVG) of every metric that a run has two points of; `runs` are the records of their metrics.jsonl."""
    drawn = [
        *(_validation(runs, role, metric) for role in ("fwm", "idm") for metric in METRICS),
        _validation(runs, "both", "cycle_consistency"),
        *(_phase(runs, role, name) for name in PHASE for role in ("fwm", "idm")),
        *(_stage(runs, *key) for key in dict.fromkeys((r["phase"], r["role"]) for r in sum(runs, []) if "role" in r)),
    ]
    return [_picture(title, x_label, lines, strokes) for title, x_label, lines in drawn if _makes_a_curve(lines)]


def _validation(runs: list[list[dict]], role: str, metric: str) -> tuple[str, str, list[Line]]:
    name = metric if role == "both" else f"{role}/{metric}"
    lines = [
        points([r for r in run if r.get("eval") and r["split"] == "validation" and r["model"] not in BASELINES], name)
        for run in runs
    ]
    title = NAMES[metric] if role == "both" else f"{role.upper()} {NAMES[metric]}"
    return f"Held out (validation): {title}", "iteration (0: warm-up)", lines


def _phase(runs: list[list[dict]], role: str, name: str) -> tuple[str, str, list[Line]]:
    lines = [series([r for r in run if r.get("phase") == role and "role" not in r], name) for run in runs]
    return f"{PHASE[name]}, {role.upper()} phase", "step, over all iterations", lines


def _stage(runs: list[list[dict]], phase: str, role: str) -> tuple[str, str, list[Line]]:
    """Of one supervised stage."""
    lines = [
        points([r for r in run if r.get("phase") == phase and r.get("role") == role], "loss", at="step") for run in runs
    ]
    stage = STAGES.get(phase, phase.replace("_", " "))
    return f"Supervised loss, nats per token: {stage} {role.upper()}", "step", lines


def _makes_a_curve(lines: list[Line]) -> bool:
    return any(len(x) > 1 for x, _ in lines)


def _picture(title: str, x_label: str, lines: list[Line], strokes: list[Stroke]) -> tuple[str, str]:
    title, svg = picture(title, _drawing(x_label, lines, strokes))
    return title, re.sub(r'<g id="run(\d+)">', r'<g class="run\1">', svg)  # ids of one page must differ


def trailing_mean(values: list[float], window: int) -> list[float]:
    """Of each value and those before it, `window` at most."""
    sums = [0.0, *accumulate(values)]
    return [(sums[end] - sums[max(0, end - window)]) / min(end, window) for end in range(1, len(sums))]


def _drawing(x_label: str, lines: list[Line], strokes: list[Stroke]) -> Callable[[Axes], None]:
    longest = max(len(x) for x, _ in lines)
    few, window = longest < 12, max(1, longest // 20)  # lines of many noisy steps would hide each other

    def draw(axes: Axes) -> None:
        for number, ((x, y), (colour, dash)) in enumerate(zip(lines, strokes, strict=True)):
            look = {
                "color": colour,
                "linestyle": (0, dash) if dash else "-",
                "marker": "o" if few or len(x) == 1 else None,  # a single point has no line to be seen by
                "markersize": 4,
            }
            axes.plot(x, trailing_mean(y, window), **look, gid=f"run{number}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x_label if window == 1 else f"{x_label}; mean of the last {window}")

    return draw
