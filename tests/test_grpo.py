"""grpo.py against loops over single floats, written from the papers' formulas, and against closed forms."""

import itertools
import math
import statistics

import pytest
import torch

from swirl_nemo.config import Aggregation, Kl
from swirl_nemo.grpo import (
    LossOptions,
    clamp_rewards,
    group_advantages,
    kl_estimate,
    loss_total,
    policy_loss,
    token_means,
)

OPTIONS = [
    LossOptions(low, high, beta, kl, aggregation)
    for (low, high), beta, kl, aggregation in itertools.product(
        [(0.2, 0.2), (0.1, 0.4)], [0.0, 0.3], list(Kl), list(Aggregation)
    )
]


def batch(seed: int, rows: int = 6, tokens: int = 5, noise: float = 0.3) -> dict[str, torch.Tensor]:
    """Ragged completions in float64 whose ratios lie on both sides of every clip boundary; row 2 is of a dead group."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    logprobs = -normal(rows, tokens).abs() - 0.1
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    lengths[2] = 0
    return {
        "logprobs": logprobs,
        "behaviour": logprobs + noise * normal(rows, tokens),
        "reference": logprobs + noise * normal(rows, tokens),
        "advantages": normal(rows),
        "mask": torch.arange(tokens) < lengths[:, None],
    }


def loop_loss(data: dict[str, torch.Tensor], options: LossOptions, total: float) -> torch.Tensor:
    """The same loss, one token at a time, in Python's own arithmetic but for the log-prob that carries the gradient."""
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(data["mask"].shape[0]):
        kept = [t for t in range(data["mask"].shape[1]) if data["mask"][b, t]]
        advantage = data["advantages"][b].item()
        for t in kept:
            p, old, ref = data["logprobs"][b, t], data["behaviour"][b, t].item(), data["reference"][b, t].item()
            ratio = (p - old).exp()
            if advantage > 0:
                gain = advantage * min(ratio, 1 + options.clip_high)
            else:
                gain = advantage * max(ratio, 1 - options.clip_low)
            kl = {Kl.k1: p - ref, Kl.k2: (p - ref) ** 2 / 2, Kl.k3: (ref - p).exp() - (ref - p) - 1}[options.kl]
            weight = 1 / total if options.aggregation is Aggregation.token_mean else 1 / (total * len(kept))
            loss = loss + weight * (options.kl_beta * kl - gain)
    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_loop(options, seed):
    """Every combination of clip, beta, KL estimator and aggregation; a masked row, ragged lengths."""
    data = batch(seed)
    total = float(loss_total(data["mask"], options.aggregation))
    assert total == (5 if options.aggregation is Aggregation.sequence_mean else int(data["mask"].sum()))
    data["logprobs"].requires_grad_()
    loss = policy_loss(**data, options=options, total=total).loss
    expected = loop_loss(data, options, total)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, data["logprobs"])
    (expected_gradient,) = torch.autograd.grad(expected, data["logprobs"])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS[::5], ids=str)
def test_gradient_equals_finite_differences(options):
    data = batch(3)
    logprobs = data.pop("logprobs").requires_grad_()
    total = loss_total(data["mask"], options.aggregation)
    assert torch.autograd.gradcheck(lambda p: policy_loss(p, **data, options=options, total=total).loss, logprobs)


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_batch(aggregation, size):
    """Losses, gradients and logged sums of micro-batches, one of them wholly dead, add up to the whole batch's."""
    options = LossOptions(0.2, 0.3, 0.1, Kl.k3, aggregation)
    data = batch(4)
    total = loss_total(data["mask"], aggregation)
    data["logprobs"].requires_grad_()
    whole = policy_loss(**data, options=options, total=total)
    parts = [
        policy_loss(**{k: v[start : start + size] for k, v in data.items()}, options=options, total=total)
        for start in range(0, 6, size)
    ]
    summed = sum(part.loss for part in parts)
    torch.testing.assert_close(summed, whole.loss)
    gradients = [torch.autograd.grad(loss, data["logprobs"])[0] for loss in (summed, whole.loss)]
    torch.testing.assert_close(*gradients)
    for name, value in whole.sums.items():
        torch.testing.assert_close(sum(part.sums[name] for part in parts), value)
    assert max(part.drift_max for part in parts) == whole.drift_max


@pytest.mark.parametrize(
    "advantage, ratio, flows",
    [(1, 1.39, True), (1, 1.41, False), (1, 0.5, True), (-1, 0.91, True), (-1, 0.89, False), (-1, 2.0, True)],
)
def test_asymmetric_clip_boundaries(advantage, ratio, flows):
    """With clip_low 0.1 and clip_high 0.4 the gradient stops above 1.4 for A > 0 and below 0.9 for A < 0."""
    options = LossOptions(0.1, 0.4, 0.0, Kl.k3, Aggregation.token_mean)
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = policy_loss(logprobs, torch.zeros(1, 1), None, torch.tensor([float(advantage)]), mask, options, 1.0)
    result.loss.backward()
    assert logprobs.grad.item() == pytest.approx(-advantage * ratio if flows else 0.0)
    assert result.sums["ratio/clip_fraction"] == (0 if flows else 1)


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_on_policy_gradient_is_the_policy_gradient(aggregation):
    """Where behaviour equals policy the ratio is 1 and d loss / d logprob is -A over the token's share of the mean."""
    data = batch(5)
    data["behaviour"] = data["logprobs"].clone()
    data["logprobs"].requires_grad_()
    options = LossOptions(0.2, 0.2, 0.0, Kl.k3, aggregation)
    total = loss_total(data["mask"], aggregation)
    result = policy_loss(**data, options=options, total=total)
    result.loss.backward()
    lengths = data["mask"].sum(1, keepdim=True).clamp(min=1)
    share = lengths * 5 if aggregation is Aggregation.sequence_mean else data["mask"].sum()
    torch.testing.assert_close(data["logprobs"].grad, -data["advantages"][:, None] * data["mask"] / share)
    means = token_means(result.sums)
    assert means["ratio/mean"] == 1 and means["ratio/clip_fraction"] == 0 and means["drift/mean"] == 0


def test_logged_means_equal_a_loop():
    """Ratio, clip fraction, k3 KL whichever estimator trains, and drift, over unmasked tokens only."""
    data = batch(6)
    data["logprobs"].requires_grad_()
    options = LossOptions(0.1, 0.4, 0.1, Kl.k1, Aggregation.sequence_mean)
    result = policy_loss(**data, options=options, total=5.0)
    tokens = [(b, t) for b in range(6) for t in range(5) if data["mask"][b, t]]
    pick = lambda name: [data[name][b, t].item() for b, t in tokens]  # noqa: E731
    p, old, ref, a = pick("logprobs"), pick("behaviour"), pick("reference"), [data["advantages"][b] for b, _ in tokens]
    ratios = [math.exp(x - y) for x, y in zip(p, old, strict=True)]
    clipped = [(r > 1.4 and s > 0) or (r < 0.9 and s < 0) for r, s in zip(ratios, a, strict=True)]
    assert 0 < sum(clipped) < len(clipped)
    drifts = [abs(x - y) for x, y in zip(p, old, strict=True)]
    assert token_means(result.sums) == pytest.approx(
        {
            "ratio/mean": statistics.fmean(ratios),
            "ratio/clip_fraction": statistics.fmean(clipped),
            "kl/reference": statistics.fmean(math.exp(y - x) - (y - x) - 1 for x, y in zip(p, ref, strict=True)),
            "drift/mean": statistics.fmean(drifts),
        }
    )
    assert result.drift_max.item() == pytest.approx(max(drifts))
    assert not any(value.requires_grad for value in (*result.sums.values(), result.drift_max))


def test_masked_garbage_is_never_read():
    """inf and nan outside the mask, as padding yields them, change neither loss nor gradient nor sums."""
    options = LossOptions(0.2, 0.2, 0.1, Kl.k3, Aggregation.sequence_mean)
    clean, dirty = batch(7), batch(7)
    for name, garbage in (("logprobs", -math.inf), ("behaviour", math.nan), ("reference", math.inf)):
        dirty[name][~dirty["mask"]] = garbage
    results, gradients = [], []
    for data in (clean, dirty):
        data["logprobs"].requires_grad_()
        results.append(policy_loss(**data, options=options, total=5.0))
        gradients.append(torch.autograd.grad(results[-1].loss, data["logprobs"])[0])
    assert torch.equal(results[0].loss, results[1].loss) and torch.equal(*gradients)
    assert token_means(results[0].sums) == token_means(results[1].sums)


def test_a_mini_batch_of_dead_groups_has_zero_loss_and_gradient():
    data = batch(8)
    data["mask"][:] = False
    data["logprobs"].requires_grad_()
    options = LossOptions(0.2, 0.2, 0.1, Kl.k3, Aggregation.token_mean)
    loss = policy_loss(**data, options=options, total=loss_total(data["mask"], options.aggregation)).loss
    loss.backward()
    assert loss == 0 and not data["logprobs"].grad.any()


def test_without_a_reference_its_kl_is_unknown():
    data = batch(9)
    data["reference"] = None
    options = LossOptions(0.2, 0.2, 0.0, Kl.k3, Aggregation.token_mean)
    assert math.isnan(token_means(policy_loss(**data, options=options, total=1.0).sums)["kl/reference"])


def test_kl_estimates_meet_the_exact_kl():
    """Over an enumerable vocabulary E_p[k1] = E_p[k3] = KL(p || r), and the gradient of E_p[k2] is that of the KL.

    Token probabilities are held fixed as sampling does, so only the estimator's own gradient is seen.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    fixed = policy.detach().exp()
    for kind in (Kl.k1, Kl.k3):
        torch.testing.assert_close((fixed * kl_estimate(policy, reference, kind)).sum(), exact)
    gradients = [
        torch.autograd.grad(loss, logits, retain_graph=True)[0]
        for loss in (exact, (fixed * kl_estimate(policy, reference, Kl.k2)).sum())
    ]
    torch.testing.assert_close(*gradients)
    (k1_gradient,) = torch.autograd.grad((fixed * kl_estimate(policy, reference, Kl.k1)).sum(), logits)
    torch.testing.assert_close(k1_gradient, torch.zeros_like(k1_gradient))


def test_advantages_equal_the_statistics_module():
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    for divide in (True, False):
        result = group_advantages(rewards, divide_by_std=divide, std_epsilon=0.01, dead_std=0.0)
        for p, group in enumerate(rewards.tolist()):
            mean, std = statistics.fmean(group), statistics.stdev(group)
            assert result.std[p].item() == pytest.approx(std)
            scale = std + 0.01 if divide else 1.0
            assert result.advantages[p].tolist() == pytest.approx([(r - mean) / scale for r in group])
        assert result.live.all()


def test_dead_groups_are_those_without_spread():
    """Under the threshold, or with equal rewards even where the threshold is 0 and floats make std a rounding error."""
    equal, narrow, wide = [-0.1] * 4, [-1.0, -1.02, -1.0, -1.0], [-1.0, -2.0, -1.0, -1.0]
    rewards = torch.tensor([equal, narrow, wide, [-10.0] * 4])
    live = lambda dead_std: group_advantages(  # noqa: E731
        rewards, divide_by_std=True, std_epsilon=1e-4, dead_std=dead_std
    ).live.tolist()
    assert live(0.1) == [False, False, True, False]
    assert live(0.0) == [False, True, True, False]
    assert live(statistics.stdev(wide)) == [False, False, True, False]


def test_rewards_are_clamped_at_the_floor_and_counted():
    reward, clamped = clamp_rewards(torch.tensor([-0.5, -10.0, -10.5, -math.inf]), floor=-10.0)
    assert reward.tolist() == [-0.5, -10.0, -10.0, -10.0]
    assert clamped.tolist() == [False, False, True, True]
