#!/usr/bin/env python3
"""Whether two runs have the same metrics.jsonl, bit for bit, clocks and memory left out.

Needs: two runs of the same commit, lock, settings and seed. Expect: how many lines agree; exit code 1 and the first
difference where they do not. Command: python recipes/same_metrics.py runs/one runs/other
"""

import sys
from pathlib import Path

from swirl_nemo.records import first_difference, read_lines


def main(one: str, other: str) -> str | None:
    metrics = Path(one, "metrics.jsonl"), Path(other, "metrics.jsonl")
    difference = first_difference(*metrics)
    if difference is None:
        print(f"the same: {len(read_lines(metrics[0]))} lines")
    return difference


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
