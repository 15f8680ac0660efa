"""Which annotations a phase trains on, worked out by hand."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from swirl_nemo import annotation
from swirl_nemo.annotation import Annotated, select, uncertain_first
from swirl_nemo.data.transition import Transition
from swirl_nemo.prior import Prior
from swirl_nemo.roles import FWM, IDM


def annotated(name: str, idm: float, fwm: float, prior: float = 0.0) -> Annotated:
    return Annotated(Transition(id=name, x="x", z="z", y="y", world="w", episode="e", t=0), idm, fwm, prior)


ROWS = [
    *(annotated("a", -0.01, -9.0), annotated("b", -0.02, -0.02)),
    *(annotated("c", -3.0, -0.01), annotated("d", -0.5, -2.0)),
]


def chosen(rows: list[Transition]) -> str:
    return "".join(row.id for row in rows)


@pytest.mark.parametrize(
    ("plausible", "confident", "kept"),
    [(None, None, "abcd"), (-2.0, None, "bcd"), (None, -0.02, "ab"), (-4.0, -1.0, "bd")],
)
def test_annotations_pass_both_floors(plausible, confident, kept):
    phase = SimpleNamespace(plausibility_floor=plausible, confidence_floor=confident)
    assert chosen(select(ROWS, IDM, phase, None)) == kept


@pytest.mark.parametrize(("role", "order"), [(FWM, "adbc"), (IDM, "acdb")])
def test_what_the_trained_role_knows_comes_last(role, order):
    """The IDM does not know what it is sure of where the FWM disagrees: that is what it has to learn."""
    assert chosen(uncertain_first(ROWS, role, -0.05)) == order
    assert chosen(uncertain_first(ROWS, role, None)) == "abcd"


def test_the_prior_is_a_part_of_what_is_plausible():
    """b and c are of a form that no label has: neither is believed in, nor does the IDM know them."""
    rows = [replace(row, prior=-5.0 * (row.transition.id in "bc")) for row in ROWS]
    phase = SimpleNamespace(plausibility_floor=-4.0, confidence_floor=None)
    assert chosen(select(ROWS, IDM, phase, None)) == "bcd" and chosen(select(rows, IDM, phase, None)) == "d"
    assert chosen(uncertain_first(rows, IDM, -0.05)) == "abcd"
    assert chosen(uncertain_first(rows, FWM, -0.05)) == "adbc"  # it knows what it says, whoever says it


def test_annotations_are_read_as_they_were_written(tmp_path):
    rows = [annotated("a", -0.5, -1.0, -5.0), annotated("b", 0.0, -2.5)]
    files = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    annotation.write(rows, *files)
    assert annotation.read(*files) == rows


def test_nothing_left_is_one_line():
    phase = SimpleNamespace(plausibility_floor=0.0, confidence_floor=None)
    with pytest.raises(ValueError, match=r"phase\.fwm: none of 4 annotations passes") as error:
        select(ROWS, FWM, phase, None)
    assert "\n" not in str(error.value)


LIKELIEST = {"p": "open", "q": "go"}
SAMPLED = {"p": ["shut", "open", "open shut"], "q": ["go", "go", "wait"]}
IDM_SAYS = {"open": -0.5, "shut": -1.0, "open shut": -6.0, "go": -0.25, "wait": -1.5}
FWM_SAYS = {"open": -8.0, "shut": -2.0, "open shut": -0.0, "go": -3.0, "wait": -2.0}


class Speaker:
    """An IDM that says what is written above; prompts are ids of transitions, a completion is its text."""

    def infer(self, prompts, distribution, group, max_length, uniforms, batch):
        said = [([LIKELIEST[p]] if uniforms is None else SAMPLED[p])[:group] for p in prompts]
        completions = [text for of_one in said for text in of_one]
        assert uniforms is None or uniforms.shape == (len(completions), max_length)
        logprobs = torch.tensor([[IDM_SAYS[text]] for text in completions])
        return SimpleNamespace(completions=completions, logprobs=logprobs)


@pytest.mark.parametrize(
    ("greedy", "candidates", "new_form", "best"),
    [
        (True, 1, 0.0, ["open", "go"]),
        (True, 4, 0.0, ["shut", "go"]),
        (False, 1, 0.0, ["shut", "go"]),
        (False, 3, 0.0, ["shut", "go"]),
        (True, 4, -0.2, ["shut", "go"]),
        (True, 4, -1.0, ["shut", "wait"]),
        (True, 4, -6.0, ["open", "wait"]),
        (False, 1, -6.0, ["shut", "go"]),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_candidate_that_both_models_believe_in_is_taken(monkeypatch, greedy, candidates, new_form, best, batch):
    """`open` is the IDM's own first, `open shut` tells the FWM most: `shut` is what both find likely, and where no
    label has its form, `open` and `wait` are what is left."""
    session = SimpleNamespace(
        cfg=SimpleNamespace(
            annotate=SimpleNamespace(greedy=greedy, candidates=candidates),
            data=SimpleNamespace(idm=SimpleNamespace(max_length=5)),
            parallel=SimpleNamespace(rollout_batch=8),
        ),
        sets=SimpleNamespace(wear=lambda name: nullcontext()),
        set_of=lambda role: role.name,
        actor=Speaker(),
        prompt=lambda role, row: row.id,
        prompter=SimpleNamespace(decode=lambda text: text),
        policy_distribution=lambda role: None,
        device="cpu",
        batches=lambda count: [range(count)[start : start + batch] for start in range(0, count, batch)],
        gather=lambda items: items,
        prior=Prior(["open", "wait"], new_form),
    )
    scored = []

    def of_the_fwm(session, role, rows, groups):
        ends = list(accumulate(groups))
        assert all(len({row.id for row in rows[end - size : end]}) == 1 for size, end in zip(groups, ends, strict=True))
        scored.extend((row.id, row.z) for row in rows)
        return [FWM_SAYS[row.z] for row in rows]

    monkeypatch.setattr(annotation, "target_logprobs", of_the_fwm)
    found = annotation.annotate(session, [annotated(name, 0, 0).transition for name in "pq"], (1,))
    assert [a.transition.z for a in found] == best and [a.transition.id for a in found] == ["p", "q"]
    says = [(IDM_SAYS[z], FWM_SAYS[z], new_form * (z in ("shut", "go"))) for z in best]
    assert [(a.idm_logprob, a.fwm_logprob, a.prior) for a in found] == says
    assert len(scored) == len(set(scored)), "an action that was said twice is scored once"
