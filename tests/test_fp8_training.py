"""Emulated FP8 in Megatron's layers: against transformers' Llama with rounded linear layers, between layouts, in weight
sets and in a run that stops and goes on. Runs: workers/fp8.py.

Between layouts scales are alike as long as nothing but rounding of float32 came before them. Then one activation falls
on the other side of a rounding boundary, which moves it by a sixteenth, and figures differ by what FP8 costs anyway.

Not shown here: Transformer Engine, and any kernel of a GPU.
"""

import json
from pathlib import Path

import pytest
import torch
from workers import reference
from workers.fp8 import LAYOUTS

from swirl_nemo.fp8 import GRADIENT, INPUT, LARGEST, WEIGHT
from swirl_nemo.records import first_difference, read_lines
from swirl_nemo.roles import IDM

pytestmark = pytest.mark.megatron

LINEARS = {
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_proj": ("o_proj",),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
    "mlp.linear_fc2": ("down_proj",),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    from workers.layouts import run_module

    folder = tmp_path_factory.mktemp("fp8")
    run_module("workers.fp8", folder)
    return folder


@pytest.fixture(scope="module")
def seen(work) -> dict[str, dict]:
    return {name: torch.load(work / f"{name}.pt") for name in LAYOUTS}


class Rounded(torch.nn.Module):
    """A linear layer of transformers' in e4m3, its scales shared with those that Megatron fuses with it."""

    def __init__(self, linear: torch.nn.Linear, shared: dict):
        super().__init__()
        self.weight, self.shared = linear.weight, shared
        shared["weights"] = max(shared.get("weights", 0.0), linear.weight.abs().max().item())

    def forward(self, values):
        self.shared["inputs"] = max(self.shared.get("inputs", 0.0), values.abs().max().item())
        inputs, weights = self.shared.get("scales", (1.0, 1.0))
        return torch.nn.functional.linear(e4m3(values, inputs), e4m3(self.weight, weights))


def e4m3(values: torch.Tensor, scale: float) -> torch.Tensor:
    return (values * scale).to(torch.float8_e4m3fn).float() / scale


def test_log_probs_are_those_of_transformers_llama_with_rounded_layers(work, seen):
    """After one pass at scale 1, with the scales that its amaxes give; layers 0 and 3 are not rounded. The error that
    is left is under a tenth of what FP8 changes."""
    model, prompter = reference.llama(work, "idm"), reference.prompter(work)
    pairs = [(prompter.prompt(IDM, row), prompter.target(IDM, row)) for row in reference.labelled(work)[:6]]
    shared = {}
    for number in (1, 2):
        for name, parts in LINEARS.items():
            block = model.model.layers[number].self_attn if "attention" in name else model.model.layers[number].mlp
            state = shared[number + 1, name] = {}
            for part in parts:
                setattr(block, part, Rounded(getattr(block, part), state))

    def logprobs() -> torch.Tensor:
        with torch.no_grad():
            return torch.tensor([reference.token_logprobs(model, *pair).sum() for pair in pairs])

    first = logprobs()
    count = sum(len(target) for _, target in pairs)
    assert seen["single"]["steps"][0]["loss"] == pytest.approx(-first.sum().item() / count, rel=1e-4)
    for place, state in shared.items():
        state["scales"] = (448 / state["inputs"], 448 / state["weights"])
        found = seen["single"]["scales"][0][place]
        assert (found[INPUT], found[WEIGHT]) == pytest.approx(state["scales"], rel=1e-4)
    found, plain = (torch.tensor(seen["single"][precision][0]) for precision in ("training", "dtype"))
    assert (found - logprobs()).norm() < 0.1 * (found - plain).norm()
    assert (found - plain).abs().max() > 0.05


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "single"])
def test_scales_and_losses_are_alike(seen, layout):
    """Weights' amaxes are those of the whole matrix, whatever a rank holds of it. Megatron divides the gradient by the
    data-parallel ranks after the backward pass, so under DP2 it is twice as large in it, and its scale half."""
    actual, expected = seen[layout], seen["single"]
    assert actual["scales"][0].keys() == expected["scales"][0].keys() == {(n, name) for n in (2, 3) for name in LINEARS}
    larger = 2 if layout == "DP2" else 1
    for place, values in expected["scales"][0].items():
        found = actual["scales"][0][place]
        assert found[WEIGHT] == values[WEIGHT]
        assert found[INPUT] == pytest.approx(values[INPUT], rel=1e-4)
        assert larger * found[GRADIENT] == pytest.approx(values[GRADIENT], rel=1e-2)
    for step, (one, other) in enumerate(zip(actual["steps"], expected["steps"], strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5 if step == 0 else 2e-2)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.1)


def test_scales_are_those_of_the_configured_history(seen):
    """After three passes on weights that change: the maximum of three, which is not that of the last alone."""
    for layout in seen.values():
        states = torch.tensor(list(layout["states"].values()))
        scale, history = states[:, 0], states[:, 1:]
        assert history.shape[1] == 4  # of which one is for the pass to come
        largest = torch.tensor(LARGEST)
        torch.testing.assert_close(scale, largest / history.amax(1))
        assert not torch.allclose(scale, largest / history[:, -1])


def test_layers_get_rows_in_sixteens_and_keep_their_bias(seen):
    """Each rank's own under sequence parallelism, as Transformer Engine's kernels want them."""
    for layout in seen.values():
        assert layout["rows"] and all(rows % 16 == 0 for rows in layout["rows"])
        assert layout["of nothing"]


def test_scoring_and_sampling_leave_the_scales(seen):
    assert all(layout["after scoring"] == layout["scales"][2] for layout in seen.values())


def test_a_set_wears_its_own_scales(seen):
    """The other set, which was never trained, has those of the beginning; training it leaves the first one's."""
    for layout in seen.values():
        trained = layout["scales"][2]
        assert all(scale == [1.0, 1.0, 1.0] for scale in layout["other set"].values())
        assert layout["worn"] == layout["come back"] == trained
        assert all(1.0 not in scale for scale in layout["trained in between"].values())


def test_ranks_with_other_numbers_of_live_groups_do_not_wait_for_each_other(seen):
    """Each pass reduces amaxes over data-parallel ranks: one that has fewer micro-batches gets empty ones."""
    assert seen["DP2"]["half dead"]["group/dead_fraction"] == 0.5
    assert seen["DP2"]["half dead"]["grad_norm"] == pytest.approx(seen["single"]["half dead"]["grad_norm"], rel=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_precision_of_scoring_is_that_of_sampling(seen, layout):
    """Behaviour log-probs are those of the same pass of scoring; without FP8 the two precisions differ."""
    apart = []
    for precision in ("training", "dtype"):
        for row in seen[layout][f"rollout {precision}"]:
            assert row["behaviour"] == pytest.approx(row["forced"], abs=1e-2)
        apart += [row["forced"] for row in seen[layout][f"rollout {precision}"]]
    assert apart[: len(apart) // 2] != apart[len(apart) // 2 :]
    assert seen[layout]["half dead"]["drift/max"] > 0.01, "sampled without FP8, trained with it"


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(work):
    whole, stopped = (work / "runs" / name / "metrics.jsonl" for name in ("whole", "stopped"))
    stop = json.loads((work / "runs" / "stopped" / "stops.jsonl").read_text())
    assert (stop["last line"]["phase"], stop["last line"]["step"], stop["finished"]) == ("idm", 1, False)
    assert first_difference(whole, stopped) is None
    lines = read_lines(whole)
    assert lines[-1]["eval"] and any("drift/max" in line for line in lines)
