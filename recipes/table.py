#!/usr/bin/env python3
"""Exact match on the test split of several runs as one Markdown table, a row a run.

Needs: finished runs. Command: python recipes/table.py runs/household-*
"""

import json
import sys
from pathlib import Path

from swirl_nemo.evaluation.metrics import MODELS

COLUMNS = [(role, model) for role in ("fwm", "idm") for model in MODELS]


def row(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text())
    cells = [summary["held_out"][role]["exact_match"].get(model) for role, model in COLUMNS]
    return f"| {run.name} | " + " | ".join("-" if cell is None else f"{cell:.1%}" for cell in cells) + " |"


def main(runs: list[str]) -> None:
    print("| run | " + " | ".join(f"{role.upper()} {MODELS[model]}" for role, model in COLUMNS) + " |")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for run in sorted(map(Path, runs)):
        if (run / "summary.json").is_file():
            print(row(run))


if __name__ == "__main__":
    main(sys.argv[1:])
