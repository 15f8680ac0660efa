#!/usr/bin/env python3
"""The reward curves of a run as SVG files for a page that shows pictures, such as the README.

Needs: a run with at least one phase. Expect: OUT-fwm.svg and OUT-idm.svg.
Command: python recipes/curves.py runs/scienceworld_smollm2 docs/scienceworld
"""

import sys
from pathlib import Path

from swirl_nemo.evaluation.pictures import pictures
from swirl_nemo.records import read_lines

GREY = "#808080"  # legible on a light page and on a dark one; a picture of its own has no page to take a colour from


def main(run: str, out: str) -> None:
    drawn = dict(pictures(read_lines(Path(run, "metrics.jsonl"))))
    for role in ("fwm", "idm"):
        svg = drawn.get(f"Reward, {role.upper()} phase")
        if svg:
            Path(f"{out}-{role}.svg").write_text(svg.replace("currentColor", GREY))


if __name__ == "__main__":
    main(*sys.argv[1:])
