"""Kernels written for CPUs against torch's own: values, gradients, and products with packed weights. Pure torch.

And the norms that call Apex's, here a stand-in's (stand_ins/apex).
"""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from swirl_nemo.actor.norms import Norm, OffsetRMSNorm, RMSNorm
from swirl_nemo.products import Linear, packed_linear, product

SHAPES = [(1, 1, 8), (7, 1, 32), (160, 1, 24)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(output, inputs, drawn(*output.shape, seed=9))


@pytest.mark.parametrize("kind, offset", [(RMSNorm, 0), (OffsetRMSNorm, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_its_gradients_are_those_of_torch(shape, kind, offset):
    """In double precision torch's is exact enough to tell an error from rounding."""
    norm = kind(shape[-1], eps=1e-3, dtype=torch.float32)
    torch.nn.init.normal_(norm.weight)
    x = (drawn(*shape) * 3).requires_grad_()
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    exact = F.rms_norm(exact_x, shape[-1:], offset + exact_weight, 1e-3)
    output = norm(x)
    with torch.no_grad():
        assert torch.equal(norm(x), output), "decoding and training compute the same"
    found = (output, *gradients(output, x, norm.weight))
    expected = (exact, *torch.autograd.grad(exact, (exact_x, exact_weight), drawn(*shape, seed=9).double()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


def test_a_norm_in_bfloat16_is_computed_in_float32():
    norm = RMSNorm(64, eps=1e-6, dtype=torch.bfloat16)
    x = drawn(5, 64).bfloat16()
    torch.testing.assert_close(
        norm(x), F.rms_norm(x.float(), (64,), norm.weight.float(), 1e-6).bfloat16(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 65])
def test_products_are_those_of_torch(rows, dtype):
    values, weight = drawn(rows, 1, 24).to(dtype).requires_grad_(), drawn(40, 24, seed=1).to(dtype).requires_grad_()
    found, expected = Linear.apply(values, weight), F.linear(values, weight)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-1}
    torch.testing.assert_close(found, expected, **tolerance)
    upstream = drawn(*found.shape, seed=2).to(dtype)
    for one, other in zip(
        *(torch.autograd.grad(out, (values, weight), upstream) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, **tolerance)
    assert product(values, weight).shape == (rows, 1, 40)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 16])
def test_packed_weights_give_the_same_product(rows, biased):
    values, weight, residual = drawn(rows, 24), drawn(40, 24, seed=1), drawn(rows, 40, seed=2)
    bias = drawn(40, seed=3) if biased else None
    linear, kept = packed_linear(weight, bias), residual.clone()
    with torch.no_grad():
        torch.testing.assert_close(linear(values), F.linear(values, weight, bias), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            linear(values, residual), residual + F.linear(values, weight, bias), rtol=1e-5, atol=1e-5
        )
    assert torch.equal(residual, kept), "the residual is read, not written"


@pytest.fixture
def apex_norms(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "stand_ins")
    yield importlib.import_module("swirl_nemo.actor.apex_norms")
    for name in [name for name in sys.modules if name == "swirl_nemo.actor.apex_norms" or name.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("normalization", "offset"), [("RMSNorm", False), ("RMSNorm", True), ("LayerNorm", False)])
def test_apex_norms_are_ours_in_its_kernels(apex_norms, normalization, offset, dtype):
    """The same weights under the same names and tags, the same values and types."""
    config = SimpleNamespace(normalization=normalization, layernorm_zero_centered_gamma=offset, params_dtype=dtype)
    config.sequence_parallel = True
    ours, theirs = (kind(config, 24, 1e-3) for kind in (Norm, apex_norms.Norm))
    assert type(theirs).__module__ == "swirl_nemo.actor.apex_norms"
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    assert all(parameter.sequence_parallel for parameter in theirs.parameters())
    x = drawn(7, 1, 24).to(dtype).requires_grad_()
    found, expected = theirs(x), ours(x)
    tolerance = {"rtol": 1e-5, "atol": 2e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, **tolerance)
    for one, other in zip(gradients(found, x), gradients(expected, x), strict=True):
        torch.testing.assert_close(one, other, **tolerance)
