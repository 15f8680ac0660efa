"""docs/runs/memory.json: what the real actor takes, against closed forms, torch's allocator and a second look.

What `swirl plan` computes is held against the same record elsewhere. Not shown here: what CUDA kernels use inside.
"""

import json
from dataclasses import asdict, replace

import pytest
import torch
from workers.layouts import TESTS
from workers.memory import AGAIN, CASES, Case, Live, Shape, allocator_peak, peak

RECORD = json.loads((TESTS.parent / "docs" / "runs" / "memory.json").read_text())


def width(case: Case) -> int:
    """Bytes of a weight and of an activation."""
    return 2 if "precision=bf16" in case.options else 4


def vocabulary(shape: Shape) -> int:
    return -(-(shape.words + 12) // 128) * 128 * shape.hidden


def parameters(case: Case) -> int:
    """Of all ranks' copies, by hand: layers without biases; norms are whole on every tensor-parallel rank; tied
    embeddings are on the first stage and on the last."""
    shape = case.shape
    attention = 2 * shape.hidden * shape.hidden // shape.heads * (shape.heads + shape.kv_heads)
    split = shape.layers * (attention + 3 * shape.hidden * shape.ffn) + vocabulary(shape) * (
        1 if shape.tied and case.pipeline == 1 else 2
    )
    norms = (2 * shape.layers + 1) * shape.hidden
    return (split + norms * case.tensor) * case.data


def total(record: dict, key: str) -> int:
    return sum(rank[key] for rank in record["ranks"])


def test_peaks_are_counted_to_the_byte():
    """Megabytes made, freed and kept by hand; views and what was there before count for nothing."""
    before = torch.ones(2**18)

    def call() -> None:
        first = before.view(512, 512) + 1
        second = first @ first.t()
        del first
        second.mul_(2)
        second.exp().sum()

    call()
    assert peak(call) == 2 * 2**20 + 4 == allocator_peak(call)
    with Live() as live:
        call()
        kept = before * 2
    assert live.bytes == kept.untyped_storage().nbytes() == 2**20


@pytest.mark.parametrize("name", CASES)
def test_what_stands_is_what_closed_forms_say(name):
    """Weights; gradients in float32; Adam's moments and, of bf16 weights, float32 ones, divided by data-parallel ranks;
    host copies; keys and values; the files. And the record is of the case as it is now."""
    case, record = CASES[name], RECORD[name]
    shape = case.shape
    assert json.loads(json.dumps(asdict(case))).items() <= record.items()
    assert len(record["ranks"]) == case.tensor * case.pipeline * case.data
    count = total(record, "parameters")
    assert count == parameters(case)
    assert total(record, "weights") == pytest.approx(width(case) * count, rel=1e-3)  # buffers are padded
    assert total(record, "gradients") == pytest.approx(4 * count, rel=1e-3)
    optimizer = (8 if width(case) == 4 else 12) * count // case.data
    assert total(record, "optimizer") == pytest.approx(optimizer, rel=1e-3)
    assert all(rank["host"] == rank["host_sets"] * width(case) * rank["parameters"] for rank in record["ranks"])
    tokens = case.prompts * (case.prompt_len + case.group * case.completion_len)
    keys = 2 * tokens * shape.layers * shape.kv_heads * shape.hidden // shape.heads * width(case)
    assert sum(rank["rollout"]["cache"] for rank in record["ranks"]) == keys
    assert record["checkpoint"]["optimizer"] == pytest.approx(
        12 * parameters(replace(case, tensor=1, pipeline=1, data=1)), rel=0.02
    )


@pytest.mark.parametrize("name", CASES)
def test_peaks_are_those_of_torchs_allocator(name):
    """But for what kernels and gloo use inside, and for a second gradient of tied embeddings (workers/memory.py)."""
    shape = CASES[name].shape
    extra = vocabulary(shape) * 4 if shape.tied else 0
    for rank in RECORD[name]["ranks"]:
        assert -extra <= rank["train"]["allocator"] - rank["train"]["peak"] < 0.15 * rank["train"]["peak"]


@pytest.mark.megatron
def test_the_record_can_be_made_again(work, layouts):
    again = json.loads((work / "memory.json").read_text())[AGAIN]
    for rank, recorded in zip(again["ranks"], RECORD[AGAIN]["ranks"], strict=True):
        exact = {"train": {"peak": recorded["train"]["peak"]}}  # the allocator's figure hangs on what ran before
        assert rank | {"train": {"peak": rank["train"]["peak"]}} == recorded | exact
