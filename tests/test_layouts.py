"""Training under every layout: the same losses, gradient norms and weights, and those of torch's AdamW on transformers.

A layout is a real process group on gloo (workers/layouts.py). What runs there is in workers/rooms.py: three supervised
steps; three GRPO steps of the FWM with replay, M-step, reference and dead groups; GRPO steps of the IDM with two
optimizer steps a rollout; and steps whose groups are half or all dead. Embeddings are untied, or tied where the name
says so.

Not shown here: CUDA kernels, NCCL, overlap of communication and computation, and bfloat16 under parallelism.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from workers import reference
from workers.layouts import FULL, PADDED, TIED, UNTIED
from workers.rooms import CLIP, SFT_LR

from swirl_nemo.roles import IDM
from swirl_nemo.settings import compose

pytestmark = pytest.mark.megatron

RELATIVE = 1e-5
LAYOUTS = [*UNTIED, *TIED]


def single(name: str) -> str:
    """The layout of one process that trains the same models."""
    return "tied single" if name in TIED else "single"


def assert_alike(actual: dict, expected: dict) -> None:
    """Every figure within 1e-5, relative where it is over 1. Drift is rounding itself: nothing to compare."""
    assert actual.keys() == expected.keys()
    for key in expected:
        if key.startswith("drift"):
            continue
        assert math.isnan(actual[key]) == math.isnan(expected[key]), key
        if not math.isnan(expected[key]):
            assert actual[key] == pytest.approx(expected[key], rel=RELATIVE, abs=RELATIVE), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_supervised_steps_are_alike(layouts, layout):
    actual, expected = layouts[layout]["supervised"], layouts[single(layout)]["supervised"]
    for one, other in zip(actual["steps"], expected["steps"], strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grpo_steps_are_alike(layouts, layout):
    """Also that the steps were worth comparing: live and dead groups, a policy that moved, a norm that was clipped."""
    for actual, expected in zip(layouts[layout]["fwm"], layouts[single(layout)]["fwm"], strict=True):
        assert_alike(actual, expected)
        assert layout in TIED or 0 < expected["group/dead_fraction"] < 1
        assert expected["grad_norm"] > CLIP
    assert layouts[layout]["fwm"][2]["kl/reference"] > 0.1


@pytest.mark.parametrize("layout", UNTIED)
def test_several_optimizer_steps_a_rollout_are_alike(layouts, layout):
    """A mini-batch holds the same groups in every layout; the second step of a rollout is off policy and clips."""
    for actual, expected in zip(layouts[layout]["idm"], layouts["single"]["idm"], strict=True):
        assert_alike(actual, expected)
        assert expected["ratio/clip_fraction"] > 0.1


@pytest.mark.parametrize("layout", FULL)
def test_dead_groups_are_alike(layouts, layout):
    """Of two groups one is dead, which under DP2 leaves a rank without a row; with none alive the weights stay."""
    expected = layouts["single"]["half dead"]
    assert_alike(layouts[layout]["half dead"], expected)
    assert expected["group/dead_fraction"] == 0.5
    assert expected["grad_norm"] > 0.1
    assert layouts[layout]["all dead"]["grad_norm"] == 0
    assert layouts[layout]["all dead"]["same weights"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_behaviour_and_training_log_probs_differ_by_rounding(layouts, layout):
    steps = [*layouts[layout]["fwm"], *layouts[layout].get("idm", [])]
    assert all(step["drift/max"] < 1e-4 for step in steps)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Whole tensors of a Megatron distributed checkpoint, by torch's own reader: no layout, no Megatron."""
    stored = dcp.FileSystemReader(folder / "model_weights").read_metadata().state_dict_metadata
    tensors = {name: torch.empty(item.size) for name, item in stored.items() if hasattr(item, "size")}
    dcp.load(tensors, checkpoint_id=folder / "model_weights", no_dist=True)
    return tensors


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in PADDED])
def test_weights_after_three_steps_are_alike(work, layout):
    """What the steps changed is compared: every tensor's change within 1e-5 of its own size, and none is small."""
    start = read(work / ("tied" if layout in TIED else "fwm"))
    actual, expected = read(work / "trained" / layout), read(work / "trained" / single(layout))
    assert actual.keys() == expected.keys() == start.keys()
    for name, weight in expected.items():
        change = (weight - start[name]).norm()
        assert change > 0.003 * start[name].norm(), name
        assert (actual[name] - weight).norm() < RELATIVE * change, name


def test_reduction_overlaps_where_it_is_asked_to(layouts):
    assert [name for name in LAYOUTS if layouts[name]["overlaps"]] == ["DP2 overlap"]


@pytest.mark.parametrize("layout", ["single", "tied single"])
def test_supervised_steps_are_those_of_torch_and_transformers(work, layouts, layout):
    """Loss on the completion alone, gradient, clipping and AdamW, against transformers' Llama and torch's optimizer."""
    model, optimizer = reference.llama(work, "tied" if layout in TIED else "idm"), compose([]).optimizer
    prompter, rows = reference.prompter(work), reference.labelled(work)[:6]
    pairs = [(prompter.prompt(IDM, row), prompter.target(IDM, row)) for row in rows]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=SFT_LR,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=1e-4,
    )
    count = sum(len(target) for _, target in pairs)
    for step in layouts[layout]["supervised"]["steps"]:
        adam.zero_grad()
        loss = -sum(reference.token_logprobs(model, *pair).sum() for pair in pairs) / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        assert step["loss"] == pytest.approx(loss.item(), rel=RELATIVE)
        assert step["grad_norm"] == pytest.approx(norm.item(), rel=RELATIVE)
    after = [reference.token_logprobs(model, *pair).sum().item() for pair in pairs]
    assert layouts[layout]["supervised"]["logprobs"] == pytest.approx(after, rel=RELATIVE)


@pytest.mark.parametrize("layout", [*FULL, "bf16"])
def test_the_optimizers_own_weights_follow_a_change_of_policy(layouts, layout):
    """After `become`, a step at learning rate 0 leaves every bit: with those of the last policy it would not."""
    assert layouts[layout]["masters"]["follow"]
