"""FP8 by emulation against torch's own FP8 product and against Transformer Engine's update, written out element by
element."""

import math

import pytest
import torch
import torch.distributed as dist

from swirl_nemo.config import AmaxAlgorithm
from swirl_nemo.fp8 import BACKWARD, FORMATS, FORWARD, GRADIENT, INPUT, WEIGHT, DelayedScaling, rounded, updated

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def alone():
    """A process group of one: the update of scales is a collective."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def nearest(value: float, mantissa: int, least: int, largest: float) -> float:
    """`value` in a binary format of `mantissa` bits behind the point and smallest normal 2^least; ties to even."""
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value))), least)
    unit = 2.0 ** (exponent - mantissa)
    return math.copysign(min(round(abs(value) / unit) * unit, largest), value)


@pytest.mark.parametrize(
    "kind, form", [(INPUT, (3, -6, 448.0)), (WEIGHT, (3, -6, 448.0)), (GRADIENT, (2, -14, 57344.0))]
)
def test_rounding_is_that_of_the_formats_definition(kind, form):
    """Normal and subnormal numbers, ties, and saturation, from Micikevicius et al. 2022, table 1; scales are powers of
    two, so that dividing by them is exact."""
    special = torch.tensor([0.0, 1.0625, 1.125, -1e9])
    values = torch.cat([drawn(300) * 2.0 ** torch.linspace(-20, 20, 300).round(), special])
    for scale in (0.25, 1.0, 64.0):
        expected = [nearest(value * scale, *form) / scale for value in values.tolist()]
        assert rounded(values, torch.tensor(scale), kind).tolist() == expected
    assert rounded(torch.tensor([math.nan]), torch.tensor(1.0), kind).isnan().all()


def test_the_product_and_its_gradients_are_those_of_torchs_fp8_product(alone):
    """torch._scaled_mm multiplies float8 tensors themselves; the second pass uses the scales of the first."""
    scaling = DelayedScaling(4, AmaxAlgorithm.max, "cpu")
    place, product = scaling.add(), torch.nn.functional.linear
    values, weight, upstream = drawn(32, 48) * 3, drawn(64, 48, seed=1) / 9, drawn(32, 64, seed=2) * 1e-6
    for expected_scales in (torch.ones(3), torch.tensor([448.0, 448.0, 57344.0]) / _amaxes(values, weight, upstream)):
        torch.testing.assert_close(scaling.scale[place], expected_scales)
        scale_x, scale_w, scale_g = scaling.scale[place].clone()
        values.requires_grad_(), weight.requires_grad_()
        output = scaling.linear(place, product, values, weight)
        scaling.update(FORWARD, alone)
        found = torch.autograd.grad(output, (values, weight), upstream)
        scaling.update(BACKWARD, alone)
        x, w, g = (cast(part, s, kind) for kind, (part, s) in enumerate(
            ((values, scale_x), (weight, scale_w), (upstream, scale_g))))  # fmt: skip
        for one, other in (
            (output, fp8_product(x, w, scale_x, scale_w)),
            (found[0], fp8_product(g, w.t().contiguous(), scale_g, scale_w)),
            (found[1], fp8_product(g.t().contiguous(), x.t().contiguous(), scale_g, scale_x)),
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
    exact = torch.nn.functional.linear(values, weight)
    error = (output - exact).norm() / exact.norm()
    assert 0.01 < error < 0.05, "three bits behind the point, no less and no more"


def _amaxes(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor.detach().abs().max() for tensor in tensors])


def cast(values: torch.Tensor, scale: torch.Tensor, kind: int) -> torch.Tensor:
    return (values.detach() * scale).to(FORMATS[kind])


def fp8_product(one, other, scale_one, scale_other) -> torch.Tensor:
    """one [m, k] times other [n, k] transposed, both float8."""
    scales = {"scale_a": 1 / scale_one, "scale_b": 1 / scale_other}
    return torch._scaled_mm(one, other.t(), out_dtype=torch.float32, **scales)


@pytest.mark.parametrize("algorithm", list(AmaxAlgorithm))
@pytest.mark.parametrize("length", [1, 3])
def test_scales_follow_transformer_engines_update(algorithm, length):
    """Against kernel_bulk of delayed_scaling.cu (v2.0) on plain numbers: a spike leaves the maximum after `length`
    passes that saw something; zero, infinite and tiny amaxes."""
    largest = 448.0
    scale, history = torch.ones(1, 1), torch.zeros(1, length, 1)
    expected_scale, expected = 1.0, [0.0] * length
    for amax in (2.0, 100.0, 3.0, 0.0, 5.0, 0.0, 0.0, 0.0, 1e-39, 7.0, 7.0, 7.0, math.inf, 8.0, 9.0, 9.0, 9.0):
        history[0, 0, 0] = expected[0] = amax
        scale, history = updated(scale, history, algorithm, torch.tensor([largest]))
        used = 0.0
        if amax != 0:
            used = max(expected) if algorithm is AmaxAlgorithm.max else amax
            expected = [0.0, *expected[2:], amax][:length]
        if 0 < used < math.inf:
            expected_scale = min(largest / used, torch.finfo(torch.float32).max)
        assert scale.item() == pytest.approx(expected_scale)
        assert torch.equal(history.flatten(), torch.tensor(expected))
    assert scale.item() == pytest.approx(largest / 9)


def test_an_amax_is_that_of_what_is_a_number(alone):
    """The kernels' fmaxf passes over nan and keeps infinity, which leaves the scale; atomicMax keeps the larger of two
    calls before an update."""
    for values, expected in (([2.0, math.nan, -7.0], 448 / 7), ([math.nan] * 3, 4480.0), ([2.0, -math.inf, 1.0], 1.0)):
        scaling = DelayedScaling(3, AmaxAlgorithm.max, "cpu")
        place = scaling.add()
        for inputs in (values, [0.1] * 3):
            scaling.linear(place, torch.nn.functional.linear, torch.tensor([inputs]), torch.ones(2, 3))
        scaling.update(FORWARD, alone)
        assert scaling.scale[place].tolist() == pytest.approx([expected, 448.0, 1.0])


def test_scoring_leaves_scales_and_history(alone):
    scaling = DelayedScaling(3, AmaxAlgorithm.max, "cpu")
    place = scaling.add()
    values, weight = drawn(4, 16), drawn(8, 16, seed=1)
    scaling.linear(place, torch.nn.functional.linear, values, weight)
    scaling.update(FORWARD, alone)
    before = scaling.state(place)
    with torch.no_grad():
        scaling.linear(place, torch.nn.functional.linear, 50 * values, weight)
    assert torch.equal(before, scaling.state(place)) and before[0, INPUT] != 1


def test_packed_weights_give_the_same_product():
    """What sampling multiplies with; bias and residual are added unrounded."""
    scaling = DelayedScaling(3, AmaxAlgorithm.max, "cpu")
    scaling.load(scaling.add(), torch.tensor([[3.0, 50.0, 1.0]]))
    values, weight, bias, residual = drawn(4, 16), drawn(8, 16, seed=1), drawn(8, seed=2), drawn(4, 8, seed=3)
    with torch.no_grad():
        expected = scaling.linear(0, torch.nn.functional.linear, values, weight)
    torch.testing.assert_close(scaling.packed(0, weight, None)(values), expected)
    torch.testing.assert_close(scaling.packed(0, weight, bias)(values, residual), residual + (expected + bias))


def test_state_is_kept_and_its_history_cut_or_filled_up():
    scaling = DelayedScaling(4, AmaxAlgorithm.max, "cpu")
    first, second = scaling.add(), scaling.add()
    state = torch.arange(15.0).view(5, 3)
    scaling.load(second, state)
    assert torch.equal(scaling.state(second), state)
    scaling.load(second, None)
    assert torch.equal(scaling.state(second), scaling.state(first))
    shorter = DelayedScaling(2, AmaxAlgorithm.max, "cpu")
    shorter.load(shorter.add(), state)
    assert torch.equal(shorter.state(0), state[:3])
    scaling.load(second, state[:3])
    assert torch.equal(scaling.state(second)[:3], state[:3]) and not scaling.state(second)[3:].any()
