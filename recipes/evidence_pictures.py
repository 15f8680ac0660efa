#!/usr/bin/env python3
"""Two pictures of what `recipes/evidence.py NAME` kept: exact match against the number of state-only transitions (the
paper's data-efficiency figure), and the FWM rolled forward on its own predictions.

Command: python recipes/evidence_pictures.py minigrid        (writes docs/evidence/minigrid-*.svg)
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from curves import GREY
from evidence_tables import KEPT, Kept, by_states, read
from matplotlib.axes import Axes

from swirl_nemo.evaluation.pictures import COLOURS, picture

Drawing = Callable[[Axes], None]


def line(axes: Axes, x: list[int], seeds: list[list[float]], style: str, **looks) -> None:
    """The mean over seeds, in per cent, and a band from the least to the most."""
    at = [[100 * value for value in values] for values in seeds]
    axes.plot(x, [fmean(values) for values in at], style, markersize=4, **looks)
    axes.fill_between(x, [min(v) for v in at], [max(v) for v in at], color=looks["color"], alpha=0.15, linewidth=0)


def states(kept: Kept) -> Drawing | None:
    """0 state-only transitions are the warmed-up models."""
    runs = by_states(kept)
    if not runs:
        return None
    counts = [0, *runs]

    def draw(axes: Axes) -> None:
        for role, colour in COLOURS.items():
            exact = [[run["held_out"][role]["exact_match"] for run in part] for part in runs.values()]
            seeds = [[of["warmup"] for of in exact[-1]], *([of["swirl"] for of in part] for part in exact)]
            line(axes, counts, seeds, "o-", color=colour, label=f"{role.upper()}, SWIRL")
        axes.set_xscale("symlog", linthresh=100)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("state-only transitions")
        axes.legend()

    return draw


def horizon(kept: Kept) -> Drawing | None:
    runs = [run["lookahead"] for run in kept.get("swirl", {}).values() if "horizon" in run["lookahead"]["swirl"]]
    if not runs:
        return None
    looks = {"warmup": ("warm-up", "#8b7fd6"), "swirl": ("SWIRL", COLOURS["fwm"])}

    def draw(axes: Axes) -> None:
        for model, (label, colour) in looks.items():
            steps = list(zip(*(run[model]["horizon"] for run in runs), strict=True))
            k = [step[0]["k"] for step in steps]
            line(axes, k, [[seed["exact_match"] for seed in step] for step in steps], "o-", color=colour, label=label)
        axes.set_xlabel("steps rolled forward")
        axes.legend()

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="one that recipes/evidence.py has run")
    experiment = parser.parse_args().experiment
    kept = read(experiment)
    drawings = {
        "states": ("Exact match on the test split, %", states(kept)),
        "horizon": ("FWM's exact match after k steps, %", horizon(kept)),
    }
    if not any(draw for _, draw in drawings.values()):
        parser.error(f"{KEPT / experiment}: nothing to draw: run python recipes/evidence.py {experiment}")
    for name, (title, draw) in drawings.items():
        if draw:
            svg = picture(title, draw)[1].replace("currentColor", GREY)
            Path(KEPT, f"{experiment}-{name}.svg").write_text(svg)


if __name__ == "__main__":
    main()
