#!/usr/bin/env python3
"""The reward curves of a run as SVG files for a page that shows pictures, such as the README.

Needs: a run with at least one phase. Expect: OUT-fwm.svg and OUT-idm.svg.
Command: python recipes/curves.py runs/scienceworld_smollm2 docs/scienceworld
"""

import argparse
from pathlib import Path

from swirl_nemo.evaluation.pictures import pictures
from swirl_nemo.records import read_lines

GREY = "#808080"  # legible on a light page and on a dark one; a picture of its own has no page to take a colour from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", help="how the files' names begin")
    args = parser.parse_args()
    metrics = args.run / "metrics.jsonl"
    drawn = dict(pictures(read_lines(metrics))) if metrics.is_file() else {}
    found = {role: svg for role in ("fwm", "idm") if (svg := drawn.get(f"Reward, {role.upper()} phase"))}
    if not found:
        parser.error(f"{metrics}: has no reward of a phase: give the folder of a run that has trained in one")
    for role, svg in found.items():
        Path(f"{args.out}-{role}.svg").write_text(svg.replace("currentColor", GREY))


if __name__ == "__main__":
    main()
