#!/usr/bin/env python3
"""How good a run's rewards are: whether right completions get more than wrong ones, and what is rewarded though wrong.

Both roles sample groups on validation transitions, whose true actions and next states are known; the counterpart scores
them as in a phase. A completion of the FWM is right where it is the next state, one of the IDM where it leads there.

Needs: a finished run, and what trained it. Expect: RUN/reward_quality.json, and a table of it.
Command: python recipes/reward_quality.py minigrid minigrid-swirl-1 run.root=runs/evidence
         ... --judge minigrid-no_gradient-1    the same completions, the counterpart that scores them being that run's
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from swirl_nemo import worlds
from swirl_nemo.checkpoint import run_state
from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.evaluation.metrics import right_action
from swirl_nemo.grpo import group_advantages
from swirl_nemo.phase import Step, roll_out
from swirl_nemo.records import write_json
from swirl_nemo.reward import counterpart_rewards
from swirl_nemo.roles import FWM, ROLES, Role
from swirl_nemo.session import Session
from swirl_nemo.settings import load

GROUPS, SIZE = 64, 8
HIGH = -0.1  # nats per token: the counterpart is sure


def quality(session: Session, role: Role) -> dict[str, float]:
    """Shares in [0, 1] over GROUPS groups of SIZE samples. `auc`: of pairs of a right and a wrong completion in one
    group, those where the right one has the higher reward (a half for equals); None where no group has both."""
    rows = list(TransitionFile(session.cfg.data.validation, GROUPS))
    phase = getattr(session.cfg.phase, role.name)
    session.sets.become(role.name)
    step = Step(rows, [], [], lr=0.0, seed=(session.cfg.run.seed,))
    rollout = roll_out(session, role, replace(phase, group=SIZE), rows, step)
    texts = session.prompter.completions(role, rows, rollout.completions)
    repeated = [row for row in rows for _ in range(SIZE)]
    with session.sets.wear(role.counterpart.name):
        rewards = counterpart_rewards(session, role, repeated, texts, SIZE).view(-1, SIZE)
    right = torch.tensor([_right(session, role, row, text) for row, text in zip(repeated, texts, strict=True)])
    right = right.view(-1, SIZE)
    ranked = group_advantages(
        rewards, divide_by_std=phase.divide_by_std, std_epsilon=phase.std_epsilon, dead_std=phase.dead_std
    )
    high, mixed = rewards > HIGH, right.any(1) & ~right.all(1)
    return {
        "right": _share(right),
        "groups with both": _share(mixed),
        "auc": _auc(rewards[mixed], right[mixed]),
        "live groups": _share(ranked.live),
        "live groups with both": _share(mixed[ranked.live]),
        "wrong of the highly rewarded": _share(~right[high]),
        "highly rewarded of the wrong": _share(high[~right]),
        "reward of right": _share(rewards[right]),
        "reward of wrong": _share(rewards[~right]),
    }


def _right(session: Session, role: Role, row, text: str) -> bool:
    if role is FWM:
        return session.prompter.same_state(text, row.y)
    return right_action(text, row.z, worlds.find(session.cfg.data.world).actions_between(row.x, row.y))


def _share(values: Tensor) -> float | None:
    return values.double().mean().item() if values.numel() else None


def _auc(rewards: Tensor, right: Tensor) -> float | None:
    wins = [
        (group[is_right][:, None] > group[~is_right]).double() + 0.5 * (group[is_right][:, None] == group[~is_right])
        for group, is_right in zip(rewards, right, strict=True)
    ]
    return _share(torch.cat([part.flatten() for part in wins])) if wins else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="a file of conf/experiment, such as minigrid")
    parser.add_argument("run", help="its run.name")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, such as run.root=runs/evidence")
    parser.add_argument("--judge", metavar="RUN", help="another run beside it, whose models score (default: its own)")
    asked = parser.parse_args()
    try:
        session = Session(load([f"experiment={asked.experiment}", *asked.overrides, f"run.name={asked.run}"]))
        found = measured(session, asked.run, asked.judge or asked.run)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"reward_quality: {error}")
    print(table(found))


def measured(session: Session, run: str, judge: str) -> dict[str, dict[str, dict]]:
    """Figures by model of `run` and role; written into its folder as well."""
    root, found = Path(session.cfg.run.root), {}
    for model in ("warmup", "swirl"):
        found[model] = {}
        for name, role in ROLES.items():
            run_state.load(session, root / run / "checkpoints" / model)
            session.sets.become(role.counterpart.name)
            run_state.load_weights(session.actor, root / judge / "checkpoints" / model / role.counterpart.name)
            session.sets.trained()
            found[model][name] = quality(session, role)
    write_json(root / run / (f"reward_quality{'' if judge == run else f'-{judge}'}.json"), found)
    return found


def table(found: dict[str, dict[str, dict]]) -> str:
    columns = [f"{role.upper()}, {model}" for model in found for role in found[model]]
    rows = [
        [
            name,
            *(
                "-" if (value := found[model][role][name]) is None else f"{value:.3f}"
                for model in found
                for role in ROLES
            ),
        ]
        for name in found["warmup"]["fwm"]
    ]
    lines = [["", *columns], ["---"] * (1 + len(columns)), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    main()
