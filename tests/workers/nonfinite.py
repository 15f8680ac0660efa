"""Losses, gradients and rewards that are not finite, on one process of several: for test_faults.py.

work/steps.json       {layout: {case: [what each rank saw]}}
work/drift.json       [what each rank was told]
work/runs/not-finite  `swirl train` that stops at its second such step in a row
"""

import json
import math
import os
import sys
from pathlib import Path

from workers.faults import LAYOUTS as PAIRS
from workers.faults import launch
from workers.layouts import LAYOUTS, fork, import_stack

CASES = ("gradient", "loss", "reward", "none")
STEPS_NOT_FINITE = (2, 4, 5)


def _is_last() -> bool:
    return int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"])


def _session(work: Path, name: str):
    from workers import setting

    from swirl_nemo.session import Session
    from swirl_nemo.settings import load

    phase = ("group=4", "optimizer_steps=2", "replay=1", "replay_batch=4", "policy_gradient=1", "dead_std=0", "mstep=0")
    settings = [*setting.overrides(work), *LAYOUTS[name].overrides(work), *(f"phase.idm.{key}" for key in phase)]
    session = Session(load([*settings, f"run.name={name.replace(' ', '_')}"]))
    session.load()
    session.sets.become("idm")
    session.sets.snapshot("reference")
    session.actor.reset_optimizer()
    return session


def _state(session) -> list:
    """Every parameter and moment of this rank, and its counters, as they are."""
    optimizer = session.actor._optimizer.mcore_optimizer
    moments = [v for state in optimizer.optimizer.state.values() for v in state.values() if hasattr(v, "clone")]
    tensors = [*session.actor.module.parameters(), *moments]
    return [tensor.detach().clone() for tensor in tensors], [group.get("step") for group in optimizer.param_groups]


def _same(one, other) -> bool:
    import torch

    return one[1] == other[1] and all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def _steps(work: Path, name: str) -> None:
    import torch.distributed as dist

    from swirl_nemo import phase
    from swirl_nemo.data.transitions import TransitionFile
    from swirl_nemo.roles import IDM

    session = _session(work, name)
    rows, actor = list(TransitionFile(session.cfg.data.labelled, None)), session.actor
    score, run = phase.score, actor.get_loss_and_metrics

    def take(case: str) -> dict:
        def planted(batches, forward_only):
            sums = run(batches, forward_only)
            if case == "gradient" and _is_last():
                next(p for p in actor.module.parameters()).main_grad.view(-1)[0] = math.nan
            if case == "loss" and _is_last():
                sums = sums | {"loss": sums["loss"] * math.inf}
            return sums

        def planted_score(*arguments):
            rewards, reference = score(*arguments)
            if case == "reward" and _is_last():
                rewards[1] = math.nan
            return rewards, reference

        actor.get_loss_and_metrics, phase.score = planted, planted_score
        before = _state(session)
        step = phase.Step(transitions=rows[:4], annotated=[], replay=rows[4:8], lr=1e-3, seed=(1, 2))
        record = phase.grpo_step(session, IDM, step)
        batch = record.pop("nonfinite", [])
        return {"skipped": record["skipped/nonfinite"], "same": _same(before, _state(session)), "batch": batch}

    take("none")  # moments from here on
    said = {}
    for case in CASES:
        said[case] = [None] * dist.get_world_size()
        dist.all_gather_object(said[case], take(case))
    if session.is_main:
        (work / f"{name}.json").write_text(json.dumps(said))
        if name == "DP2":
            (work / "drift.json").unlink(missing_ok=True)
    if name == "DP2":
        _drift(work, session)


def _drift(work: Path, session) -> None:
    """drift/max as the last rank alone sees it."""
    import torch.distributed as dist

    from swirl_nemo.guard import judge

    told = []
    for drift in (0.1, 0.7, 5.0):
        record = {"phase": "fwm", "step": 1, "optimizer_step": 1, "drift/max": drift if _is_last() else 0.0}
        session.run.say = lambda text: told.append(text)
        try:
            judge(session.cfg.run, session.run, record, None, 0, session.device)
            told.append("on")
        except ValueError as error:
            told.append(str(error))
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, told)
    if session.is_main:
        (work / "drift.json").write_text(json.dumps(gathered))


def _plant_losses() -> None:
    from swirl_nemo.actor.actor import SwirlActor

    run, calls = SwirlActor.get_loss_and_metrics, 0

    def planted(self, batches, forward_only):
        nonlocal calls
        calls += 1
        sums = run(self, batches, forward_only)
        return sums | {"loss": sums["loss"] * math.nan} if calls in STEPS_NOT_FINITE and _is_last() else sums

    SwirlActor.get_loss_and_metrics = planted


def main(work: Path) -> None:
    from workers import setting

    import_stack()
    fork(setting.make, work)
    for name in ("DP2", "TP2 PP2"):
        fork(_steps, work, name, processes=LAYOUTS[name].processes)
    steps = ("warmup.steps=4", "run.max_nonfinite=2", "run.save_every=0")
    said = launch(work, "not-finite", *PAIRS["TP2"], *steps, plant=_plant_losses)
    (work / "stopped.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
