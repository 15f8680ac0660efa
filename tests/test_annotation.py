"""Which annotations a phase trains on, worked out by hand."""

from contextlib import nullcontext
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from swirl_nemo import annotation
from swirl_nemo.annotation import Annotated, select, uncertain_first
from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM


def annotated(name: str, idm: float, fwm: float) -> Annotated:
    return Annotated(Transition(id=name, x="x", z="z", y="y", world="w", episode="e", t=0), idm, fwm)


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
    ("greedy", "candidates", "best"),
    [(True, 1, ["open", "go"]), (True, 4, ["shut", "go"]), (False, 1, ["shut", "go"]), (False, 3, ["shut", "go"])],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_candidate_that_both_models_believe_in_is_taken(monkeypatch, greedy, candidates, best, batch):
    """`open` is the IDM's own first, `open shut` tells the FWM most: `shut` is what both find likely."""
    session = SimpleNamespace(
        cfg=SimpleNamespace(
            eval=SimpleNamespace(batch=batch),
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
        share=lambda items: items,
        gather=lambda items: items,
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
    assert all((a.idm_logprob, a.fwm_logprob) == (IDM_SAYS[z], FWM_SAYS[z]) for a, z in zip(found, best, strict=True))
    assert len(scored) == len(set(scored)), "an action that was said twice is scored once"
