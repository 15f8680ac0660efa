"""ScienceWorld: reading and trimming its descriptions, then the real simulator."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.settings import compose
from swirl_nemo.worlds.scienceworld import DOOR, DOOR_FACT, ScienceWorld, State, one_name, parse_state, trim

LOOK = """This room is called the kitchen. In it, you see:
\tthe agent
\ta substance called air
\ta cupboard. The cupboard door is closed.
\ta sink, which is turned off.  In the sink is: nothing.
\ta stove, which is turned off. On the stove is: nothing.
You also see:
\tA door to the hallway (that is open)
"""
INVENTORY = "In your inventory, you see:\n\tan orange\n"
KITCHEN = State(
    "kitchen",
    (
        "a cupboard. The cupboard door is closed.",
        "a sink, which is turned off. In the sink is: nothing.",
        "a stove, which is turned off. On the stove is: nothing.",
        "A door to the hallway (that is open)",
    ),
    ("carried: an orange",),
    moves=3,
)


def configure(out: Path, *overrides: str) -> CollectConfig:
    counts = ["world.labelled=6", "world.unlabelled=6", "world.validation=2", "world.test=4", "world.episode_steps=6"]
    return compose(
        ["world=scienceworld", f"out={out}", "world.tasks=[find-non-living-thing]", *counts, *overrides],
        "collect",
        CollectConfig,
    )


def test_descriptions_become_one_fact_a_thing():
    assert parse_state(LOOK, INVENTORY, moves=3) == KITCHEN


def test_a_trimmed_transition_keeps_what_changed_and_what_the_action_names():
    on = "a sink, which is turned on. In the sink is: nothing."
    after = State("kitchen", (KITCHEN.things[0], on, *KITCHEN.things[2:]), KITCHEN.carried, moves=4)
    step = trim(KITCHEN, "activate sink", after, context=0, rng=Random(0))
    assert step.x == f"place: kitchen\n{KITCHEN.things[1]}"
    assert step.y == f"place: kitchen\n{on}"
    # Things that the action names stay in sight where they did not change, and in both states.
    step = trim(KITCHEN, "pour orange into cupboard", after, context=0, rng=Random(0))
    assert step.x.split("\n") == ["place: kitchen", *KITCHEN.things[:2], "carried: an orange"]
    assert step.y.split("\n") == ["place: kitchen", KITCHEN.things[0], on, "carried: an orange"]


def test_context_adds_facts_that_stay_as_they_were():
    taken = State("kitchen", KITCHEN.things[1:], (*KITCHEN.carried, "carried: a cupboard"), moves=4)
    for seed in range(20):
        step = trim(KITCHEN, "pick up cupboard", taken, context=2, rng=Random(seed))
        x, y = (set(text.split("\n")) for text in (step.x, step.y))
        assert x - y == {KITCHEN.things[0]} and y - x == {"carried: a cupboard"}
        assert len(x) == 1 + 1 + 2


def test_after_a_change_of_place_only_what_is_carried_is_told():
    hall = State("hallway", ("a picture", "A door to the kitchen (that is open)"), KITCHEN.carried, moves=4)
    step = trim(KITCHEN, "go to hallway", hall, context=9, rng=Random(0))
    assert step.x.split("\n") == ["place: kitchen", *KITCHEN.things, *KITCHEN.carried]
    assert step.y == "place: hallway\ncarried: an orange"


def test_without_java_or_the_package_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"^world=scienceworld: there is no java on PATH: install Java 17 .*$"):
        collect(configure(tmp_path / "out"))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    with pytest.raises(ValueError, match=r"^world=scienceworld: the Python package scienceworld is missing: .*$"):
        collect(configure(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("open door", "open door to hallway"),
        ("close hallway door", "close door to hallway"),
        ("open door to hallway", "open door to hallway"),
        ("go to door", "go to hallway"),
        ("go to door to hallway", "go to hallway"),
        ("go to hallway door", "go to hallway"),
        ("go to hallway", "go to hallway"),
        ("open oven door", "open oven door"),  # leads nowhere
        ("mix door", "mix door"),
        ("open cupboard", "open cupboard"),
    ],
)
def test_a_door_has_one_name(said, named):
    assert one_name(said, KITCHEN) == named


def test_a_door_among_several_is_not_guessed():
    more = replace(KITCHEN, things=(*KITCHEN.things, "A door to the art studio (that is closed)"))
    assert one_name("open door", more) == "open door"
    assert one_name("open art studio door", more) == "open door to art studio"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install default-jre-headless")
    pytest.importorskip("scienceworld")
    world = ScienceWorld(configure(tmp_path_factory.mktemp("unused"), "world.simplifications=[]").world)
    process = world._env()._gateway.java_process
    yield world
    world.close()
    assert process.poll() is not None, "close must end the simulator"


@pytest.mark.slow
def test_the_simulator_steps_and_refuses(simulator):
    start = simulator.start("find-non-living-thing 1", gold=False, seed=0)
    assert start == simulator.start("find-non-living-thing 1", gold=False, seed=0)
    assert any(action.startswith("open ") for action in simulator.legal_actions(simulator._now))
    before = simulator._now
    closed = next(fact for fact in before.things if fact.startswith("A door to ") and "closed" in fact)
    place = closed.removeprefix("A door to ").split(" (")[0]
    after = simulator.step(before, f"open door to {place}")
    assert set(before.things) ^ set(after.things) == {closed, closed.replace("closed", "open")}
    with pytest.raises(ValueError, match="scienceworld: 'fly to moon' is not possible in the .*"):
        simulator.step(after, "fly to moon")


@pytest.mark.slow
def test_a_listed_action_that_the_simulator_does_not_understand_changes_nothing(simulator):
    """Two cups of paint of one colour, one of them in a cupboard: it lists names that it then does not know."""
    state = simulator.start("chemistry-mix-paint-secondary-color 1", gold=False, seed=0)
    for action in ("open door to hallway", "go to hallway", "open door to art studio", "go to art studio"):
        if action in simulator.legal_actions(state):
            state = simulator.step(state, action)
    assert state.room == "art studio"
    listed = [action for action in simulator.legal_actions(state) if re.match("move cup.* in cupboard$", action)]
    refused = (action for action in listed if simulator._env().server.step(action).startswith("No known action"))
    action = next(refused)
    before = simulator._observe()
    after = simulator.step(before, action)
    assert replace(after, moves=before.moves) == before


@pytest.mark.slow
def test_the_simulator_takes_the_one_name_of_every_door(simulator):
    """In a hallway of several doors, and in rooms of one; gone through there and back."""
    state, through, rng = simulator.start("find-non-living-thing 1", gold=False, seed=0), set(), Random(1)
    for _ in range(12):
        place = rng.choice([match[1] for fact in state.things if (match := DOOR_FACT.match(fact))])
        if f"A door to the {place} (that is closed)" in state.things:
            assert f"open door to {place}" in simulator.legal_actions(state)
            state = simulator.step(state, f"open door to {place}")
        assert f"A door to the {place} (that is open)" in state.things
        legal = simulator.legal_actions(state)
        assert {f"close door to {place}", f"go to {place}"} <= set(legal)
        assert not [name for name in legal if DOOR.fullmatch(name) and " door to " not in name]
        state = simulator.step(state, f"go to {place}")
        assert state.room == place
        through.add(place)
    assert len(through) > 2


@pytest.mark.slow
@pytest.mark.parametrize("gold", [0.0, 1.0])
def test_an_episode_is_fixed_by_its_generator(simulator, tmp_path, monkeypatch, gold):
    """Twice in one process, with other episodes in between; a task whose gold path varied unseeded."""
    config = configure(
        tmp_path, f"world.gold={gold}", "world.tasks=[chemistry-mix-paint-secondary-color]", "world.episode_steps=12"
    ).world
    monkeypatch.setattr(simulator, "config", config)
    task = "chemistry-mix-paint-secondary-color 3"
    first, other, again = (list(simulator.episode(task, Random(seed))) for seed in (1, 2, 1))
    assert first == again != other
    for step in first:
        assert max(len(step.x.split()), len(step.y.split())) <= config.max_words
        assert step.x.startswith("place: ") and step.y.startswith("place: ")


@pytest.mark.slow
def test_unknown_tasks_and_simplifications_are_one_line(simulator, tmp_path, monkeypatch):
    for key, value in (("tasks", "fly"), ("simplifications", "magic")):
        monkeypatch.setattr(simulator, "config", configure(tmp_path, f"world.{key}=[{value}]").world)
        with pytest.raises(ValueError, match=rf"^world\.{key}: {value} is not known: choose from .*$"):
            simulator.check()


@pytest.mark.slow
def test_collected_transitions_are_real_and_stand_on_one_side(simulator, tmp_path):
    """A fresh simulator each time: the same files, every row a change, no transition in two splits.

    Random actions alone: a gold path takes seconds to work out, and the test above has one.
    """
    folders = (tmp_path / "one", tmp_path / "two")
    for out in folders:
        assert collect(configure(out, "world.gold=0")) == {
            "test": 4,
            "validation": 2,
            "labelled": 6,
            "unlabelled": 6,
        }
    files = sorted(path.name for path in folders[0].iterdir() if path.is_file())
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in files)
    splits = ("test", "validation", "labelled", "unlabelled")
    rows = [json.loads(line) for split in splits for line in (folders[0] / f"{split}.jsonl").read_text().splitlines()]
    assert all(row["x"] != row["y"] for row in rows)
    assert len({(row["x"], row["y"]) for row in rows}) == len(rows)
