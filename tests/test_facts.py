"""States as facts: a difference gives back the state, whatever the texts, and whatever a model writes is a state."""

import itertools
from random import Random

import pytest

from swirl_nemo.data.facts import brief_difference, changed, difference, facts_of, same_state

SEPARATOR = "\n"


def test_a_difference_gives_back_the_facts_for_all_small_states():
    """Every pair of states of up to three facts out of four, repeated ones among them; two begin alike."""
    facts = ["a 1", "a 2", "b", "c"]
    states = ["\n".join(state) for count in range(1, 4) for state in itertools.product(facts, repeat=count)]
    for x, y in itertools.product(states, repeat=2):
        told = difference(x, y, SEPARATOR)
        made = changed(x, told, SEPARATOR)
        assert sorted(made.split("\n")) == sorted(y.split("\n")), (x, y, told, made)
        equal = sorted(x.split("\n")) == sorted(y.split("\n"))
        assert (told == "=") == same_state(x, y, SEPARATOR) == equal
        assert difference(x, made, SEPARATOR) == told or equal, (x, y)


BY_HAND = [
    ("a ; b ; c", "a ; b ; c", "="),
    ("a ; b ; c", "c ; a ; b", "="),
    ("a ; b 1 ; c", "a ; b 2 ; c", "b 2"),
    ("a ; b ; c", "a ; d ; c", "- b ; + d"),
    ("a 1 ; b ; c 1", "a 2 ; b ; c 2", "a 2 ; c 2"),
    ("a ; b", "c ; a ; b", "+ c"),
    ("a ; b ; c", "a ; c", "- b"),
    ("a ; b 1 ; c", "a ; b 2 ; e ; b 3 ; c", "b 2 ; + e ; + b 3"),
    ("a ; a", "a", "- a"),
    ("a ; b", "", "- a ; - b"),
    ("", "a", "+ a"),
    ("", "", "="),
    (" a ;  b ;", "a ; b", "="),
    ("a ; + b", "a ; + c", "- + b ; + + c"),
]
OTHERS = [
    (". ", "a. at 3.5. b.", "a. at 3.6. b.", "at 3.6"),
    ("\n", "a\nb 1\n", "a\nb 2", "b 2"),
    (",", "a, b", "b,a", "="),
]


@pytest.mark.parametrize("x, y, changes", BY_HAND)
def test_differences_by_hand(x, y, changes):
    assert difference(x, y, " ; ") == changes


@pytest.mark.parametrize("separator, x, y, changes", OTHERS)
def test_separators_of_other_worlds(separator, x, y, changes):
    assert difference(x, y, separator) == changes


def test_a_fact_takes_the_place_of_the_one_that_begins_most_like_it():
    x, y = "door red e1 shut\nkey red c2\nagent c1", "door blue e1 shut\ndoor red e1 open\nagent d1\nwall e2"
    told = difference(x, y, SEPARATOR)
    assert told.split("\n") == ["door red e1 open", "- key red c2", "agent d1", "+ door blue e1 shut", "+ wall e2"]
    assert changed(x, told, SEPARATOR) == "door red e1 open\nagent d1\ndoor blue e1 shut\nwall e2"


def test_where_the_first_words_would_mislead_one_went_and_one_came():
    x, y = "ticket 3 title a\nticket 3 open", "ticket 3 title a\nticket 3 closed"
    told = difference(x, y, SEPARATOR)
    assert told == "- ticket 3 open\n+ ticket 3 closed" and changed(x, told, SEPARATOR) == y
    assert changed(x, "ticket 3 closed", SEPARATOR) == "ticket 3 closed\nticket 3 open"


READ = {
    "=": "a 1\nb\nc",
    "": "a 1\nb\nc",
    "- x": "a 1\nb\nc",
    "- x\n+ d": "a 1\nb\nc\nd",
    "- b\n+ d": "a 1\nd\nc",
    "- b\n=\n+ d": "a 1\nc\nd",
    "- b\n- b": "a 1\nc",
    "d": "a 1\nb\nc\nd",
    "a 2": "a 2\nb\nc",
    "+ a 2": "a 1\nb\nc\na 2",
    "-\n+ d\n  \n": "a 1\nb\nc\n-\nd",
    "- a 1\n- b\n- c": "",
}


@pytest.mark.parametrize("written, state", READ.items())
def test_anything_that_a_model_writes_is_read_as_a_state(written, state):
    assert changed("a 1\nb\nc", written, SEPARATOR) == state


def test_noise_is_read_as_a_state_and_told_again():
    rng = Random(0)
    for _ in range(2000):
        x, noise = ("".join(rng.choice("ab+-= \n") for _ in range(rng.randrange(1, 30))) for _ in range(2))
        state = changed(x, noise, SEPARATOR)
        assert same_state(changed(x, difference(x, state, SEPARATOR), SEPARATOR), state, SEPARATOR), (x, noise)


def test_a_state_ending_in_its_separator_has_no_empty_fact():
    assert facts_of("a. b.", ". ") == ["a", "b"] and same_state("a. b.", "b. a", ". ")


def test_differences_are_defined_for_any_text():
    rng = Random(0)
    for _ in range(2000):
        x, y = ("".join(rng.choices("ab ;=+-{}\n\t.é", k=rng.randrange(30))) for _ in range(2))
        assert difference(x, y, " ; ").strip() and difference(x, x, " ; ") == "="


def test_a_brief_difference_is_the_same_where_facts_begin_alike_and_short_where_a_state_is_made_up():
    x = "lamp off ; cup here ; door shut"
    assert brief_difference(x, "lamp on ; cup here ; door open", " ; ") == "lamp on ; door open"
    assert difference(x, "p ; q", " ; ") == "- lamp off ; - cup here ; - door shut ; + p ; + q"
    assert brief_difference(x, "p ; q", " ; ") == "p ; q ; - door shut"
    assert brief_difference(x, x, " ; ") == "="
    assert brief_difference(" ; ".join(["c"] + ["a"] * 249), " ; ".join(["b"] + ["a"] * 249), " ; ") == "b"
