"""A phase's step: which rows it teaches to which role, and the permuted-advantages control."""

from types import SimpleNamespace

import pytest
import torch

from swirl_nemo import phase
from swirl_nemo.data.transition import Transition
from swirl_nemo.grpo import group_advantages
from swirl_nemo.phase import permuted
from swirl_nemo.roles import FWM, IDM
from swirl_nemo.session import Session
from swirl_nemo.settings import compose

GROUP = 8
ROWS = [Transition(f"row {number}", "x", "z", "y", "w", "e", number) for number in range(40)]


def advantages(reward: torch.Tensor):
    return group_advantages(reward.view(-1, GROUP), divide_by_std=True, std_epsilon=1e-4, dead_std=0.1)


def test_permuted_advantages_are_the_same_within_each_group_and_unrelated_to_the_rewards():
    reward = torch.randn(len(ROWS) * GROUP, generator=torch.Generator().manual_seed(0))
    reward[:GROUP] = -1.0  # a dead group
    real = advantages(reward)
    dealt = permuted(real, ROWS, (3, 1))
    assert torch.equal(dealt.advantages.sort(1).values, real.advantages.sort(1).values)
    assert torch.equal(dealt.live, real.live) and not real.live[0]
    correlation = torch.corrcoef(torch.stack([dealt.advantages.flatten(), real.advantages.flatten()]))[0, 1]
    assert abs(correlation) < 0.2  # 320 pairs: three standard errors are 0.17


def test_the_permutation_is_a_rows_own_in_a_step_wherever_the_row_lies():
    """Data-parallel ranks hold other rows in other layouts; the control must not depend on that."""
    ranked = advantages(torch.arange(float(2 * GROUP)))
    second = ranked._replace(advantages=ranked.advantages[1:])
    both = permuted(ranked, ROWS[:2], (3, 1)).advantages
    assert torch.equal(both[1:], permuted(second, ROWS[1:2], (3, 1)).advantages)
    assert not torch.equal(both, permuted(ranked, ROWS[:2], (3, 2)).advantages)
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("role", [FWM, IDM])
@pytest.mark.parametrize("weights", ["separate", "shared"])
def test_what_a_step_teaches_to_the_roles_that_its_weights_play(monkeypatch, weights, role):
    """Labels to each, annotated rows to the phase's role and in Phase II to the FWM; each role's rows a mean of their
    own, over two optimizer steps."""
    session = Session.__new__(Session)
    session.cfg, session.share = compose([f"model.weights={weights}"]), lambda rows: rows
    steps = [[]]

    def micro_batches(session, pairs, weight) -> list:
        steps[-1].append((weight, pairs))
        return []

    def optimizer_step(*given) -> dict:
        steps.append([])
        return {"loss": 0.0, "tokens": 0, "skipped/nonfinite": 0}

    monkeypatch.setattr(phase.supervised, "micro_batches", micro_batches)
    monkeypatch.setattr(phase, "_optimizer_step", optimizer_step)
    cfg = SimpleNamespace(optimizer_steps=2, replay=3.0, mstep=9.0)
    phase.update(session, role, cfg, None, [], phase.Step([], ROWS[:4], ROWS[4:8], 1e-4, (0, 0)))
    replayed = [role] if weights == "separate" else [FWM, IDM]
    annotated = [FWM, IDM] if (weights, role) == ("shared", IDM) else [role]
    assert steps[:-1] == [
        [(3.0, [(each, ROWS[4 + part]), (each, ROWS[6 + part])]) for each in replayed]
        + [(9.0, [(each, ROWS[part]), (each, ROWS[2 + part])]) for each in annotated]
        for part in (0, 1)
    ]
