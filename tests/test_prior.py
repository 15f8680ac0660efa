"""What labels say of actions before a state is seen, and where it counts; by hand."""

import json
from types import SimpleNamespace

import pytest
import torch

from swirl_nemo.prior import Prior, form
from swirl_nemo.reward import rewards
from swirl_nemo.roles import FWM, IDM
from swirl_nemo.session import Session

PRIOR = Prior(["mkdir archive", "mv a b", "logout"], -5.0)


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ("mkdir workspace", 0.0),
        ("mkdir  workspace", 0.0),  # the same words
        ("mkdir archive workspace", -5.0),
        ("mkdir", -5.0),
        ("mv c d", 0.0),
        ("mv mkdir", -5.0),  # both are labelled, but no `mv` with one more word
        ("logout", 0.0),
        ("retweet 3", -5.0),
        ("", -5.0),
    ],
)
def test_an_action_looks_like_a_labelled_one_or_costs_the_prior(action, wanted):
    assert PRIOR(action) == wanted


def test_without_a_prior_all_actions_are_alike():
    assert Prior([], 0.0)("anything at all") == 0.0


def test_a_session_has_the_prior_of_the_labels_that_it_trains_on(tmp_path):
    row = {"x": "a", "y": "b", "world": "w", "episode": "e", "t": 0}
    labelled = tmp_path / "labelled.jsonl"
    actions = ("mkdir archive", "logout", "mv a b")
    labelled.write_text("".join(json.dumps(row | {"id": z, "z": z}) + "\n" for z in actions))

    def prior(new_form: float, path: str):
        data, alternation = SimpleNamespace(labelled=path, max_labels=2), SimpleNamespace(new_form=new_form)
        return Session.prior.func(SimpleNamespace(cfg=SimpleNamespace(data=data, alternation=alternation)))

    assert [prior(-3.0, str(labelled))(action) for action in ("mkdir b", "logout", "mv c d")] == [0, 0, -3]
    assert prior(0.0, "no such file")("mv c d") == 0  # which asks for no label


def test_a_form_is_the_first_word_and_the_number_of_words():
    assert form("use thermometer on water") == ("use", 4) and form(" ") == ("", 0)


def test_phase_two_is_rewarded_with_the_elbo_per_token_of_the_next_state():
    """(log P(y|x,z) + log p(z)) / tokens of y; Phase I's completions are states, of which the prior says nothing."""
    session = SimpleNamespace(prior=PRIOR)
    logprobs = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, -0.5, -0.5], [-4.0, 0.0, 0.0]])
    sequences = SimpleNamespace(completion_lengths=torch.tensor([2, 3, 1]))
    texts = ["mkdir workspace", "mkdir archive workspace", "logout"]
    assert rewards(session, IDM, texts, logprobs, sequences).tolist() == pytest.approx([-1.5, -7 / 3, -4.0])
    assert rewards(session, FWM, texts, logprobs, sequences).tolist() == pytest.approx([-1.5, -2 / 3, -4.0])
