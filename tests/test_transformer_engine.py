"""Transformer Engine's kernels in Megatron's layers, as far as a stand-in for it can tell (stand_ins/): beside local
layers, and FP8 beside its emulation, over training, scoring, rollouts, weight sets and checkpoints.

Shown: that Megatron's and this project's classes are put together rightly, and that whatever the kernels, the model is
the same one. Not shown: Transformer Engine itself, and any kernel of a GPU; bfloat16; recomputation with FP8.
Runs: workers/kernels.py.
"""

import subprocess
import sys

import pytest
import torch
from workers.kernels import CASES, LOADED
from workers.layouts import TESTS

pytestmark = pytest.mark.megatron

LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("kernels")
    # Not workers.layouts.run_module: Megatron looks for Transformer Engine when it is imported
    with (folder / "log").open("w") as log:
        done = subprocess.run([sys.executable, "-m", "workers.kernels", folder], cwd=TESTS, stdout=log, stderr=log)
    assert done.returncode == 0, (folder / "log").read_text()[-6000:]
    return {name: torch.load(folder / f"{name}.pt") for name in CASES}


def test_names_and_shapes_of_weights_are_those_of_local_layers(seen):
    """What a checkpoint holds, extra states included, in any of the cases."""
    assert all(case["keys"] == seen["local"]["keys"] for case in seen.values())


def test_training_scores_and_rollouts_are_those_of_local_layers(seen):
    """With prefixes that rows share, of lengths of their own, at tensor parallel 2 with sequence parallelism."""
    found, expected = seen["TE TP2 SP"], seen["local"]
    for one, other in zip(found["steps"], expected["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for one, other in zip(found["dtype"], expected["dtype"], strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    for one, other in zip(found["rollout dtype"], expected["rollout dtype"], strict=True):
        assert one["completion"] == other["completion"]
        for name in ("behaviour", "forced"):
            assert one[name] == pytest.approx(other["behaviour"], abs=1e-3)


@pytest.mark.parametrize("name", LOADED)
def test_a_checkpoint_of_one_is_read_by_the_other(seen, name):
    saved, loaded = seen[LOADED[name]], seen[name]
    assert loaded["loaded dtype"] == pytest.approx(saved["saved dtype"], abs=1e-3)
    if name == "emulated":
        assert loaded["loaded states"] == saved["states"][-1]
        assert loaded["loaded training"] == pytest.approx(saved["saved training"], abs=2e-3)


def test_one_without_scales_leaves_none_of_those_before(seen):
    assert seen["FP8"]["states"][-1] != seen["FP8"]["loaded states"] == seen["FP8"]["other set"]


# FP8


def test_fp8_is_what_its_emulation_is(seen):
    """The same losses, gradients and scales, with layers 0 and 3 left out. A step of two micro-batches casts weights
    once, its emulation twice, with scales that have moved on in between.

    In the second backward pass a gradient may lie so near the border between two FP8 numbers that rounding in float32
    decides, which differs between processors: the loss and the scales before it are still the same.
    """
    found, expected = seen["FP8"], seen["emulated"]
    assert set(found["states"][0]) == set(expected["states"][0]) == {(n, name) for n in (2, 3) for name in LINEARS}
    for step in (0, 1):
        assert found["steps"][step]["loss"] == pytest.approx(expected["steps"][step]["loss"], rel=1e-5)
        assert found["steps"][step]["grad_norm"] == pytest.approx(
            expected["steps"][step]["grad_norm"], rel=(1e-5, 1e-3)[step]
        )
        for place, state in found["states"][step].items():
            assert torch.tensor(state).allclose(torch.tensor(expected["states"][step][place]), rtol=1e-3)
    assert found["steps"][2]["loss"] == pytest.approx(expected["steps"][2]["loss"], rel=2e-2)
    assert found["untrained"] == pytest.approx(expected["untrained"], abs=1e-3)
    assert found["steps"][0]["loss"] != pytest.approx(seen["local"]["steps"][0]["loss"], rel=1e-5)


def test_scoring_without_fp8_has_none_and_with_it_leaves_scales(seen):
    """Both ways after each step; the last figures are of weights that some micro-batches had cast before.

    After the second step weights may differ by a rounding (above), which FP8 makes as large as itself: its scores are
    then compared with those without it, of the same weights. Those of the weights before are a fifth lower or more.
    """
    found, expected = seen["FP8"], seen["emulated"]
    for precision in ("dtype", "training"):
        assert found[precision][0] == pytest.approx(expected[precision][0], abs=2e-3)
    assert found["dtype"][1] == pytest.approx(expected["dtype"][1], rel=1e-3)
    for scores in (found, expected):
        assert scores["training"][1] == pytest.approx(scores["dtype"][1], rel=2e-2)
        assert scores["training"][1] != pytest.approx(scores["dtype"][1], abs=1e-2)
    assert found["dtype"][0] == pytest.approx(seen["local"]["dtype"][0], abs=1e-3)
    assert found["training"][0] != pytest.approx(found["dtype"][0], abs=1e-2)
    assert found["after scoring"] == found["states"][2]


def test_sampling_is_never_in_fp8(seen):
    """Its log-probs are those of scoring without FP8; with it they are off by what FP8 does."""
    for plain, training in zip(seen["FP8"]["rollout dtype"], seen["FP8"]["rollout training"], strict=True):
        assert plain["completion"] == training["completion"] and plain["behaviour"] == training["behaviour"]
        assert plain["behaviour"] == pytest.approx(plain["forced"], abs=1e-3)
        assert training["behaviour"] != pytest.approx(training["forced"], abs=1e-3)


def test_a_set_wears_its_own_scales(seen):
    for name in ("FP8", "emulated"):
        case = seen[name]
        assert all(state[0] == [1, 1, 1] and not torch.tensor(state[1:]).any() for state in case["other set"].values())
        assert case["worn"] == case["come back"] == case["states"][2] != case["other set"]
