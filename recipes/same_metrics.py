#!/usr/bin/env python3
"""Whether two runs have the same metrics.jsonl, bit for bit, clocks and memory left out.

Needs: two runs of the same commit, lock, settings and seed. Expect: how many lines agree; exit code 1 and the first
difference where they do not. Command: python recipes/same_metrics.py runs/one runs/other
"""

import argparse
import sys
from pathlib import Path

from swirl_nemo.records import first_difference, read_lines


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("one", "other"):
        parser.add_argument(name, type=Path, help="folder of a run")
    one, other = (run / "metrics.jsonl" for run in vars(parser.parse_args()).values())
    for file in (one, other):
        if not file.is_file():
            parser.error(f"{file}: no such file: give the folder of a run that has begun")
    difference = first_difference(one, other)
    if difference is None:
        print(f"the same: {len(read_lines(one))} lines")
    return difference


if __name__ == "__main__":
    sys.exit(main())
