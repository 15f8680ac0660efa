#!/usr/bin/env python3
"""How many of a run's annotations are the action that was taken, and what the wrong ones look like.

The true actions of state-only transitions are read here, and by the upper bound `all_labels`; nothing else sees them.

Needs: finished runs on data that was collected with data.unlabelled_actions.
Command: python recipes/annotation_quality.py runs/evidence/bfcl-no_prior-1 runs/evidence/bfcl-swirl-1
Expect: a Markdown table, a row for each phase's annotations: shares of right ones in per cent, of all, of those that
are plausible (log P(y|x,z) + log p(z) over FLOOR), and by fifths of that, the likeliest first; how many wrong and
right ones have a form that no label has (swirl_nemo/prior.py).
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

from omegaconf import DictConfig, OmegaConf

from swirl_nemo import annotation
from swirl_nemo.data.transitions import TransitionFile, with_actions
from swirl_nemo.prior import Prior
from swirl_nemo.runs import CONFIG

FLOOR = -2.0  # the IDM's phase.idm.plausibility_floor in `phase=long`
HEAD = (
    "run",
    "annotations",
    "right",
    "plausible",
    "right of these",
    "by fifths",
    "wrong",
    "new form",
    "right, new form",
)


def quality(annotated: list[annotation.Annotated], actions: dict[str, str], prior: Prior) -> list[str]:
    """Cells of HEAD from the third on. `actions`: the true ones by id; `prior`: below 0 for a new form."""
    ranked = sorted(annotated, key=lambda a: -a.plausibility)
    right = [a.transition.z == actions[a.transition.id] for a in ranked]
    new = [prior(a.transition.z) < 0 for a in ranked]
    plausible = sum(a.plausibility >= FLOOR for a in ranked)  # they come first
    parts = [right[len(right) * n // 5 : len(right) * (n + 1) // 5] for n in range(5)]
    return [
        _percent(right),
        f"{100 * plausible / len(ranked):.1f}",
        _percent(right[:plausible]),
        ", ".join(f"{100 * fmean(part):.0f}" if part else "-" for part in parts),
        str(right.count(False)),
        str(sum(is_new and not is_right for is_new, is_right in zip(new, right, strict=True))),
        str(sum(is_new and is_right for is_new, is_right in zip(new, right, strict=True))),
    ]


def _percent(values: list[bool]) -> str:
    return f"{100 * fmean(values):.1f}" if values else "-"


def rows(run: Path) -> list[list[str]]:
    """Raises ValueError where the run has no annotations, or its data no true actions."""
    files = sorted(run.glob("annotations-*.jsonl"))
    if not files:
        raise ValueError(f"{run}: has no annotations-*.jsonl: give the folder of a run that has begun a phase")
    data: DictConfig = OmegaConf.load(run / CONFIG).data
    if data.unlabelled_actions is None:
        raise ValueError(f"{run}: data.unlabelled_actions=null: its data have no true actions to compare with")
    unlabelled = TransitionFile(data.unlabelled, data.max_unlabelled)
    actions = {row.id: row.z for row in with_actions(unlabelled, data.unlabelled_actions)}
    prior = Prior((row.z for row in TransitionFile(data.labelled, data.max_labels)), -1.0)
    found = []
    for file in files:
        scores = file.with_name(file.name.replace("annotations", "annotation_scores"))
        found.append([run.name, file.stem.partition("-")[2], *quality(annotation.read(file, scores), actions, prior)])
    return found


def main(runs: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that have begun a phase")
    try:
        lines = [row for run in parser.parse_args(runs).runs for row in rows(run)]
    except ValueError as error:
        sys.exit(f"annotation_quality: {error}")
    for line in (HEAD, ("---",) * len(HEAD), *lines):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
