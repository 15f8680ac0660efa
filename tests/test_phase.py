"""The permuted-advantages control: what a group's completions are told says nothing about them, and all else stays."""

from dataclasses import replace

import torch

from swirl_nemo.data.transition import Transition
from swirl_nemo.phase import _advantages
from swirl_nemo.settings import compose

PHASE = replace(compose([]).phase.fwm, group=8, dead_std=0.1)
ROWS = [Transition(f"row {number}", "x", "z", "y", "w", "e", number) for number in range(40)]


def test_permuted_advantages_are_the_same_within_each_group_and_unrelated_to_the_rewards():
    reward = torch.randn(len(ROWS) * PHASE.group, generator=torch.Generator().manual_seed(0))
    reward[: PHASE.group] = -1.0  # a dead group
    real = _advantages(PHASE, reward, ROWS, (3, 1))
    permuted = _advantages(replace(PHASE, permute_advantages=True), reward, ROWS, (3, 1))
    assert torch.equal(permuted.advantages.sort(1).values, real.advantages.sort(1).values)
    assert torch.equal(permuted.live, real.live) and not real.live[0]
    correlation = torch.corrcoef(torch.stack([permuted.advantages.flatten(), real.advantages.flatten()]))[0, 1]
    assert abs(correlation) < 0.2  # 320 pairs: three standard errors are 0.17


def test_the_permutation_is_a_rows_own_in_a_step_wherever_the_row_lies():
    """Data-parallel ranks hold other rows in other layouts; the control must not depend on that."""
    reward, phase = torch.arange(float(2 * PHASE.group)), replace(PHASE, permute_advantages=True)
    both = _advantages(phase, reward, ROWS[:2], (3, 1)).advantages
    alone = _advantages(phase, reward[PHASE.group :], ROWS[1:2], (3, 1)).advantages
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both, _advantages(phase, reward, ROWS[:2], (3, 2)).advantages)
    assert not torch.equal(both[0], both[1])
