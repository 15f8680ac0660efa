#!/usr/bin/env python3
"""Exact match on the test split of several runs as one Markdown table, a row a run.

Needs: finished runs. Command: python recipes/table.py runs/household-*
"""

import argparse
import json
from pathlib import Path

from swirl_nemo.evaluation.metrics import MODELS

COLUMNS = [(role, model) for role in ("fwm", "idm") for model in MODELS]


def row(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text())
    cells = [summary["held_out"][role]["exact_match"].get(model) for role, model in COLUMNS]
    return f"| {run.name} | " + " | ".join("-" if cell is None else f"{cell:.1%}" for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs; those that are not finished are left out")
    runs = [run for run in sorted(parser.parse_args().runs) if (run / "summary.json").is_file()]
    if not runs:
        parser.error("none of these folders has a summary.json: give a run that is finished")
    print("| run | " + " | ".join(f"{role.upper()} {MODELS[model]}" for role, model in COLUMNS) + " |")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for run in runs:
        print(row(run))


if __name__ == "__main__":
    main()
