"""The permuted-advantages control: what a group's completions are told says nothing about them, and all else stays."""

import torch

from swirl_nemo.data.transition import Transition
from swirl_nemo.grpo import group_advantages
from swirl_nemo.phase import permuted

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
