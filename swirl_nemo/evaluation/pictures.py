"""Pictures of a run's metrics as SVG that takes its text colour from the page around it, light or dark.

Small figures, so that on a phone one fills the width and its letters stay legible.
"""

import io
import re
from collections.abc import Callable
from html import escape
from itertools import groupby

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .metrics import MODELS

COLOURS = {"fwm": "#3b82f6", "idm": "#e8833a"}
BOTH = "#8b7fd6"
INK = "#010203"  # replaced by the page's text colour
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "axes.grid": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
}
BASELINES = {"continued_sft": "x", "pseudo_labels": "+", "merged": "1", "all_labels": "_"}  # model: mark
_SFT = {"pretrain": BOTH, "fwm": COLOURS["fwm"], "idm": COLOURS["idm"], "fwm+idm": BOTH}


def pictures(records: list[dict]) -> list[tuple[str, str]]:
    """(caption, SVG) of all that metrics.jsonl's `records` hold; parts that a run has not reached are left out."""
    steps = {role: [r for r in records if r.get("phase") == role and "role" not in r] for role in COLOURS}
    found = [role for role in COLOURS if steps[role]]
    drawn = [_reward(role, steps[role]) for role in found]
    drawn += [
        _steps("KL to reference (k3, per token)", {role: steps[role] for role in found}, "kl/reference"),
        _steps("Drift: max |behaviour − training|, nats", {role: steps[role] for role in found}, "drift/max", log=True),
        _steps("Dead groups, share", {role: steps[role] for role in found}, "group/dead_fraction"),
        _steps("Entropy, nats per token", {role: steps[role] for role in found}, "entropy"),
    ]
    held_out = [r for r in records if r.get("eval")]
    for split in ("validation", "test"):
        lines = [r for r in held_out if r["split"] == split]
        # one point makes no curve: its figures stand in the table
        if len({r["iteration"] for r in lines}) > 1:
            drawn += [_held_out(split, title, names, lines) for title, names in HELD_OUT.items()]
    drawn.append(_supervised([r for r in records if "role" in r]))
    return [one for one in drawn if one]


HELD_OUT = {
    "exact match": {"fwm/exact_match": "FWM", "idm/exact_match": "IDM", "cycle_consistency": "cycle"},
    "token F1": {"fwm/token_f1": "FWM", "idm/token_f1": "IDM"},
    "gold log-prob": {"fwm/gold_logprob": "FWM", "idm/gold_logprob": "IDM"},
}


def _reward(role: str, records: list[dict]) -> tuple[str, str] | None:
    """Mean reward with one within-group std to both sides: the spread that advantages are made of."""
    x, mean, std = series(records, "reward/mean", "reward/group_std")
    if not x:  # without the policy gradient nothing is rolled out
        return None

    def draw(axes: Axes) -> None:
        axes.plot(x, mean, color=COLOURS[role], label="mean reward")
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=COLOURS[role], alpha=0.2, linewidth=0, label="± std within groups")
        _iterations(axes, records)
        axes.set_xlabel("step, over all iterations")
        axes.legend()

    return picture(f"Reward, {role.upper()} phase", draw)


def _steps(title: str, roles: dict[str, list[dict]], name: str, *, log: bool = False) -> tuple[str, str] | None:
    curves = {role: series(records, name) for role, records in roles.items()}
    curves = {role: (x, y) for role, (x, y) in curves.items() if x}
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for role, (x, y) in curves.items():
            axes.plot(x, y, color=COLOURS[role], label=role.upper())
        if log and any(value > 0 for _, y in curves.values() for value in y):
            axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("step of the phase, over all iterations")
        axes.legend()

    return picture(title, draw)


def _held_out(split: str, title: str, names: dict[str, str], records: list[dict]) -> tuple[str, str]:
    """Warm-up stands at iteration 0; a baseline is a mark at the last."""
    main = [r for r in records if r["model"] not in BASELINES]
    baselines = {model: [r for r in records if r["model"] == model] for model in BASELINES}

    def draw(axes: Axes) -> None:
        for name, label in names.items():
            colour = COLOURS.get(name.split("/")[0], BOTH)
            x, y = points(main, name)
            axes.plot(x, y, "o-", color=colour, markersize=4, label=label)
            for model, lines in baselines.items():
                axes.plot(*points(lines, name), BASELINES[model], color=colour, markersize=7, markeredgewidth=2)
        for model, lines in baselines.items():
            if lines:
                axes.plot([], [], BASELINES[model], color=INK, label=MODELS[model])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("iteration (0: warm-up)")
        axes.legend()

    return picture(f"Held out ({split}): {title}", draw)


def _supervised(records: list[dict]) -> tuple[str, str] | None:
    if not records:
        return None

    def draw(axes: Axes) -> None:
        styles = {"pretrain": ":", "warmup": "-"}
        for (phase, role), lines in groupby(records, key=lambda r: (r["phase"], r["role"])):
            x, y = points(list(lines), "loss", at="step")
            axes.plot(
                x, y, styles.get(phase, "--"), color=_SFT[role], label=f"{phase.replace('_', ' ')} {role.upper()}"
            )
        axes.set_xlabel("step")
        axes.legend()

    return picture("Supervised loss, nats per token", draw)


def series(records: list[dict], *names: str) -> tuple[list, ...]:
    """Ordinals of the steps where all of `names` are known, then their values."""
    known = [(n, *(r[name] for name in names)) for n, r in enumerate(records, 1) if None not in map(r.get, names)]
    return tuple(map(list, zip(*known, strict=True))) if known else tuple([] for _ in range(len(names) + 1))


def points(records: list[dict], name: str, at: str = "iteration") -> tuple[list, list]:
    known = [(r[at], r[name]) for r in records if r.get(name) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _iterations(axes: Axes, records: list[dict]) -> None:
    for n, (before, after) in enumerate(zip(records, records[1:], strict=False), 1):
        if before["iteration"] != after["iteration"]:
            axes.axvline(n + 0.5, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")


def picture(title: str, draw: Callable[[Axes], None]) -> tuple[str, str]:
    """(title, SVG) of what `draw` draws. Titles of one page must differ."""
    # ids within the SVGs of one page must differ, and be the same in two reports of one run
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    label = escape(title).replace("\\", r"\\")
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return title, re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
