"""Held-out metrics against scikit-learn, and against figures worked out by hand."""

import random

import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from swirl_nemo.evaluation.metrics import exact_match, right_action, token_f1


def numbered(text: str) -> set[str]:
    """Tokens with their occurrence's number: multiset overlap becomes the overlap of sets, which sklearn scores."""
    tokens = text.split()
    return {f"{token}#{tokens[:i].count(token)}" for i, token in enumerate(tokens)}


def test_token_f1_equals_sklearn():
    """200 random pairs over four words, so that repeats are common."""
    draw = random.Random(0)
    sentence = lambda: " ".join(draw.choices("abcd", k=draw.randint(1, 7)))  # noqa: E731
    for _ in range(200):
        prediction, target = sentence(), sentence()
        bags = MultiLabelBinarizer().fit_transform([numbered(target), numbered(prediction)])
        expected = f1_score(bags[0], bags[1], zero_division=0)
        assert token_f1(prediction, target) == pytest.approx(expected), (prediction, target)


@pytest.mark.parametrize(
    "prediction, target, expected",
    [
        ("", "", 1),
        ("", "a", 0),
        ("a", "", 0),
        ("a a b", "a b b", 2 / 3),
        ("a", "a a a", 1 / 2),
        ("b a", "a  b", 1),
        ("A", "a", 0),
    ],
)
def test_token_f1_by_hand(prediction, target, expected):
    """a a b / a b b share {a, b}: precision and recall 2/3. a / a a a: precision 1, recall 1/3. Order is not read."""
    assert token_f1(prediction, target) == pytest.approx(expected)


def test_every_action_that_leads_from_x_to_y_is_right():
    """From 2 to 4 in a world on integers: +2, *2 and "set 4" are right, whichever was taken; to the letter."""
    effects = {"+2": 4, "*2": 4, "+3": 5, "set 4": 4, "set 5": 5}
    leading = [action for action, result in effects.items() if result == 4]
    assert {action for action in effects if right_action(action, "+2", leading)} == {"+2", "*2", "set 4"}
    assert not right_action("+2 ", "+2", leading)


@pytest.mark.parametrize("leading", [None, []])
def test_the_gold_action_alone_is_right_where_the_world_cannot_tell(leading):
    assert right_action("+2", "+2", leading) and not right_action("*2", "+2", leading)


def test_exact_match_is_to_the_letter():
    assert exact_match("the cup", "the cup")
    assert not exact_match("the cup", "the  cup") and not exact_match("", "the cup")
