"""Figures of recipes/fp8_rewards.py against scipy's Kendall tau, and closed forms.

Not shown: the figures of docs/precision.md themselves. Scoring takes the pretrained model and an hour.
"""

import pytest
import torch
from scipy.stats import kendalltau
from workers.layouts import TESTS

from swirl_nemo.checks import check
from swirl_nemo.config import ScoringPrecision
from swirl_nemo.settings import compose


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def phase(recipe):
    phase = compose(recipe.settings(TESTS, "fp8")).phase.fwm
    phase.dead_std, phase.reward_floor, phase.divide_by_std = 0.1, -10.0, True
    return phase


def test_variants_are_what_their_names_say_and_training_takes_them(recipe):
    found = {}
    for variant in recipe.VARIANTS:
        cfg = compose(recipe.settings(TESTS, variant))
        check(cfg, world_size=1)
        p = cfg.precision
        assert p.scoring is ScoringPrecision.training and p.emulate is variant.startswith("fp8")
        found[variant] = (p.dtype.name, p.fp8.name, p.fp8_edge_layers, p.fp8_amax_compute_algo.name)
    fp8 = ("fp32", "hybrid", 1, "max")
    assert found == {
        "float32": ("fp32", "none", 0, "max"),
        "bf16": ("bf16", "none", 0, "max"),
        "fp8": fp8,
        "fp8, edge layers too": ("fp32", "hybrid", 0, "max"),
        "fp8, most recent amax": ("fp32", "hybrid", 1, "most_recent"),
        "fp8, scale 1": fp8,
        "fp8 on bf16": ("bf16", "hybrid", 1, "max"),
    }


def test_kendalls_tau_is_scipys(recipe):
    rewards, reference = drawn(5, 8), drawn(5, 8, seed=1)
    found = recipe.rank_agreement(rewards, reference, [[str(i) for i in range(8)]] * 5)
    expected = [kendalltau(*pair).statistic for pair in zip(rewards, reference, strict=True)]
    assert found["kendall_tau"] == pytest.approx(sum(expected) / 5)
    assert found["flipped_pairs"] == pytest.approx((1 - found["kendall_tau"]) / 2)
    best = [int(one.argmax() != other.argmax()) for one, other in zip(rewards, reference, strict=True)]
    assert found["other_best"] == sum(best) / 5 and 0 < sum(best) < 5


def test_equal_completions_count_once_and_groups_of_one_not_at_all(recipe):
    """Group 0: a, b, c of which b and c change places. Group 1: nothing but noise on one completion."""
    rewards = torch.tensor([[3.0, 1.0, 3.1, 2.0], [1.0, 2.0, 3.0, 4.0]])
    reference = torch.tensor([[3.0, 2.0, 2.9, 1.0], [4.0, 3.0, 2.0, 1.0]])
    found = recipe.rank_agreement(rewards, reference, [["a", "b", "a", "c"], ["a"] * 4])
    assert found == pytest.approx({"kendall_tau": 1 / 3, "flipped_pairs": 1 / 3, "other_best": 0.0})


def test_a_change_that_a_group_has_in_common_is_no_noise(recipe):
    reference = drawn(4, 8)
    shift, noise = torch.tensor([[0.5], [-0.5], [0.25], [1.0]]), torch.tensor([0.1, -0.1] * 4)
    found = recipe.change(reference + shift + noise, reference)
    assert found["change"] == pytest.approx((0.5 + 0.5 + 0.25 + 1.0) / 4)
    assert found["noise"] == pytest.approx(0.1 * (8 / 7) ** 0.5)
    assert found["spread"] == pytest.approx(sum(group.var().item() / 4 for group in reference) ** 0.5)


def test_advantages_are_compared_where_the_reference_has_any(recipe, phase):
    """Two live groups, of which one is turned round, and one that is dead in the reference alone."""
    reference = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    rewards = torch.tensor([[-1.5, -2.5], [-1.0, -3.0], [-1.0, -2.0]], dtype=torch.float64)
    found = recipe.advantage_agreement(rewards, reference, phase)
    expected = {"live": 2, "advantage_correlation": 0.0, "flipped_signs": 0.5, "other_live": 1 / 3}
    assert found == pytest.approx(expected, abs=1e-3)
    assert recipe.advantage_agreement(5 * reference, reference, phase)["advantage_correlation"] > 0.9999


def test_the_table_has_a_row_a_variant_and_a_cell_for_each_base(recipe, phase):
    reference = drawn(3, 8).tolist()
    figures = recipe.compare(reference, reference, [[str(i) for i in range(8)]] * 3, phase)
    rows = recipe.table(
        "fwm", {"bf16": {"float32": figures}, "fp8": {"float32": figures, "bf16": figures}}
    ).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    cells = ["0.0000 / 0.0000", *["0.0% / 0.0%", "1.000 / 1.000", "0.0% / 0.0%", "0.0% / 0.0%"]]
    assert rows[-1] == "| fp8 | " + " | ".join([*cells, "1.0000 / 1.0000", "0.0% / 0.0%", "0.0% / 0.0%"]) + " |"
