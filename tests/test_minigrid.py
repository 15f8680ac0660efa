"""MiniGrid: states written by hand, every sequence of moves carried out in MiniGrid's own environments, and what a
collection of it promises."""

import json
import sys
from collections import defaultdict
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from collected import assert_learnable, digests, splits

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.settings import compose
from swirl_nemo.worlds import Step
from swirl_nemo.worlds.minigrid import MOVES, TASKS, MiniGrid, load, parse_state

START = "agent b3\nfacing south\nahead b4\ndoor yellow d3 locked\nkey yellow b4\ngoal g6\ncorner h7\nwall d12456"
SMALL = {"labelled": 40, "unlabelled": 160, "validation": 20, "test": 40, "test_combinations": 5, "test_tasks": 20}
LAYOUTS = ["Fetch-6x6-N2", "DoorKey-5x5", "KeyCorridorS3R1", "RedBlueDoors-6x6", "GoToObject-6x6-N2"]


def configure(out: Path, *overrides: str) -> CollectConfig:
    counts = [f"world.{split}={rows}" for split, rows in SMALL.items()]
    counts += [f"world.tasks=[{','.join(LAYOUTS)}]", "world.held_out_tasks=1", "world.held_out_combinations=12"]
    return compose(["world=minigrid", f"out={out}", *counts, *overrides], "collect", CollectConfig)


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("minigrid", reason="needs swirl-nemo[worlds]")
    return MiniGrid(configure(Path("unused")).world)


def seen(env) -> tuple:
    """All that MiniGrid itself tells of where it stands."""
    carried = env.carrying and (env.carrying.type, env.carrying.color)
    return env.grid.encode().tobytes(), tuple(map(int, env.agent_pos)), int(env.agent_dir), carried


def wander(world: MiniGrid, task: str, seed: int, steps: int):
    """A state some steps into an episode, and its environment, played by hand alone."""
    rng = Random(f"{task}/{seed}")
    state = world.reset(task, rng)
    for _ in range(steps):
        state = world.step(state, world.sample_action(state, rng))
    return state, deepcopy(load(state))


@pytest.mark.parametrize(
    ("x", "action", "y"),
    [
        (START, "right", START.replace("south\nahead b4", "west\nahead a3")),
        (START, "left left", START.replace("south\nahead b4", "north\nahead b2")),
        (START, "pickup", START.replace("yellow b4", "yellow held")),
        (START, "left forward left", START.replace("b3\nfacing south\nahead b4", "c3\nfacing north\nahead c2")),
        (
            START,
            "pickup forward",
            START.replace("b3\nfacing south\nahead b4", "b4\nfacing south\nahead b5").replace(
                "yellow b4", "yellow held"
            ),
        ),
        (
            START,
            "pickup left drop",
            START.replace("south\nahead b4", "east\nahead c3").replace("yellow b4", "yellow c3"),
        ),
        (
            START.replace("b3\nfacing south\nahead b4", "c3\nfacing east\nahead d3").replace(
                "yellow b4", "yellow held"
            ),
            "toggle forward forward",
            START.replace("b3\nfacing south\nahead b4", "e3\nfacing east\nahead f3")
            .replace("yellow b4", "yellow held")
            .replace("locked", "open"),
        ),
        (
            START.replace("b3\nfacing south\nahead b4", "c3\nfacing east\nahead d3").replace("locked", "open"),
            "toggle",
            START.replace("b3\nfacing south\nahead b4", "c3\nfacing east\nahead d3").replace("locked", "shut"),
        ),
        (
            "agent b1\nfacing east\nahead c1\nbox red c1\ncorner e4",
            "toggle forward",
            "agent c1\nfacing east\nahead d1\nbox red gone\ncorner e4",
        ),
        (
            "agent b1\nfacing east\nahead c1\nball red c1\nball red held\ncorner e4",
            "right drop left",
            "agent b1\nfacing east\nahead c1\nball red c1\nball red b2\ncorner e4",
        ),
    ],
)
def test_moves_do_what_minigrid_says(world, x, action, y):
    state = parse_state(x)
    assert world.render(world.step(state, action)) == y
    assert world.render(state) == x and action in world.actions_between(x, y)


@pytest.mark.parametrize(
    ("change", "action"),
    [
        (("", ""), "forward"),  # the key is in the way
        (("south\nahead b4", "west\nahead a3"), "forward"),  # the wall is
        (("south\nahead b4", "west\nahead a3"), "pickup"),
        (("south\nahead b4", "east\nahead c3"), "toggle"),
        (("b3\nfacing south\nahead b4", "c3\nfacing east\nahead d3"), "toggle"),  # locked, and no key
        (("b3\nfacing south\nahead b4", "c3\nfacing east\nahead d3"), "forward"),
        (("yellow b4", "blue held"), "pickup"),  # one hand
        (("", ""), "drop"),
        (("yellow b4", "yellow held"), "toggle"),
        (("", ""), "pickup pickup"),
        (("", ""), "left right"),  # nothing has changed in the end
        (("", ""), "left left left left"),
        (("", ""), "done"),
        (("", ""), "left  left"),
        (("", ""), ""),
        (("wall", "lava b5\nwall"), "pickup forward forward"),
    ],
)
def test_what_changes_nothing_or_ends_in_lava_is_refused(world, change, action):
    x = START.replace(*change) if change[0] else START
    if "lava" in x:  # frames tell of walls first
        x = START + "\nlava b5"
    state = parse_state(x)
    assert state is not None and action not in world.legal_actions(state)
    with pytest.raises(ValueError, match="^minigrid: .* is not possible in .*: see legal_actions$"):
        world.step(state, action)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "agent b3\nfacing south\nahead b4",
        START + "\n",
        START + "\ncorner h7",
        START.replace("b3\nfacing south\nahead b4", "b3\nfacing down\nahead b4"),
        START.replace("b3\nfacing south\nahead b4", "b3\nfacing south"),
        START.replace("b3\nfacing south\nahead b4", "b3\nfacing south\nahead c3"),  # not the cell before it
        START.replace("b3\nfacing south\nahead b4", "d2\nfacing south\nahead d3"),  # in a wall
        START.replace("b3\nfacing south\nahead b4", "d3\nfacing south\nahead d4"),  # in a locked door
        START.replace("b3\nfacing south\nahead b4", "b4\nfacing south\nahead b5"),  # on a key
        START.replace("b3\nfacing south\nahead b4", "i3\nfacing south\nahead i4"),
        START.replace("yellow b4", "yellow b8"),
        START.replace("yellow b4", "pink b4"),
        START.replace("yellow b4", "yellow d3"),  # where the door is
        START.replace("yellow d3", "yellow a3").replace("d12456", "d123456"),  # in the outer wall
        START.replace("d12456", "d12345"),
        START.replace("d12456", "d21456"),
        START.replace("d12456", "d124568"),
        START.replace("goal g6\ncorner h7", "corner h7\ngoal g6"),
        START.replace("key yellow b4", "key yellow held\nball red held"),
        START.replace("corner h7", "corner b1"),
        "agent b1\nfacing east\nahead c1\ncorner e4\nlava b1",
    ],
)
def test_malformed_states_have_no_action_between_them(world, broken):
    after = START.replace("south\nahead b4", "west\nahead a3")
    detours = {"left left left", "left right right", "right left right", "right right left", "pickup drop right"}
    found = world.actions_between(START, after)
    assert found[0] == "right" and set(found) == {"right", *detours} and len(found) == 6
    assert parse_state(broken) is None and world.actions_between(broken, after) == []
    assert world.actions_between(START, broken) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_texts_are_read_back_into_the_grid_that_they_were_made_of(world, task):
    texts: dict[str, tuple] = {}
    for seed in range(3):
        state, env = wander(world, task, seed, steps=3)
        text = world.render(state)
        assert parse_state(text) == state and seen(load(parse_state(text))) == seen(env)
        assert texts.setdefault(text, seen(env)) == seen(env)
        assert max(len(line.split()) for line in text.split("\n")) <= 4 and env.grid.height <= 10
        things = [line.split()[:2] for line in text.split("\n")[1:] if line.startswith(("ball", "box", "door", "key"))]
        assert things == sorted(things), "a thing's fact has no fixed place"
        assert not any(cell is not None and cell.contains for cell in env.grid.grid), "a box hides something"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["DoorKey-6x6", "Fetch-5x5-N2", "GoToObject-6x6-N2", "KeyCorridorS3R2", "LavaGapS5"])
def test_actions_between_are_all_that_minigrid_itself_finds(world, task):
    """Every sequence of up to three moves, in copies of the layout's own environment, which `load` never touches."""
    for seed in range(2):
        state, env = wander(world, task, seed, steps=4)
        leading: dict[tuple, set[str]] = defaultdict(set)
        for names, after in sequences(env):
            if after != seen(env):
                leading[after].add(" ".join(names))
        found = {seen(load(after)): actions for after, actions in state.outcomes.items()}
        assert {after: set(actions) for after, actions in found.items()} == leading
        assert sum(map(len, found.values())) == len(world.legal_actions(state))
        for after, actions in state.outcomes.items():
            assert world.actions_between(world.render(state), world.render(after)) == actions


def sequences(env, names: tuple[str, ...] = ()):
    """Up to three moves that each have an effect and do not end in lava, with what is seen after them."""
    for index, name in enumerate(MOVES if len(names) < 3 else ()):
        after = deepcopy(env)
        after.step(index)
        under = after.grid.get(*after.agent_pos)
        if seen(after) != seen(env) and (under is None or under.type != "lava"):
            yield (*names, name), seen(after)
            yield from sequences(after, (*names, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        "DoorKey-5x5",
        "UnlockPickup",
        "Fetch-6x6-N2",
        "GoToObject-6x6-N2",
        "RedBlueDoors-6x6",
        "KeyCorridorS3R1",
        "LavaGapS6",
    ],
)
def test_the_gold_policy_fulfils_the_mission(world, task):
    """Its moves, one by one, in an environment of MiniGrid's that was started with the same seed."""
    import gymnasium

    state = world.reset(task, Random(7))
    env = gymnasium.make(f"MiniGrid-{task}-v0", max_steps=1000).unwrapped
    env.reset(seed=Random(7).getrandbits(31))
    rewards = []
    while (action := world.gold_action(state)) is not None:
        assert action in world.legal_actions(state)
        state = world.step(state, action)
        for name in action.split():
            rewards.append(env.step(MOVES.index(name))[1])
        assert seen(env) == seen(load(state))
    reward = max([*rewards[-1:], env.step(6)[1]])
    assert reward > 0 and not any(rewards[:-1]), "the last move, or saying done, is what is rewarded"


def test_an_episode_is_fixed_by_its_generator(world):
    def played(task: str, seed: int) -> list[Step]:
        return list(world.episode(task, Random(seed)))

    first, other, again = played("Fetch-6x6-N2", 1), played("DoorKey-5x5", 1), played("Fetch-6x6-N2", 1)
    assert first == again != other
    for seed in range(10):
        steps = played(LAYOUTS[seed % len(LAYOUTS)], seed)
        assert steps and all(one.y == other.x for one, other in pairwise(steps))


def test_combinations_are_verbs_with_what_they_were_done_to(world):
    def named(old: str, new: str) -> set[str]:
        return world.combinations_in(Step(START, "", START.replace(old, new)))

    assert named("south\nahead b4", "west\nahead a3") == set()
    assert named("yellow b4", "yellow held") == {"pickup key yellow"}
    assert named("yellow b4", "yellow c3") == {"pickup key yellow", "drop key yellow"}
    assert named("locked", "open") == {"toggle door yellow"}
    held = START.replace("yellow b4", "yellow held")
    assert world.combinations_in(Step(held, "", START)) == {"drop key yellow"}
    box = "agent b1\nfacing east\nahead c1\nbox red c1\ncorner e4"
    assert world.combinations_in(Step(box, "", box.replace("c1", "gone"))) == {"toggle box red"}
    assert len(set(world.combinations)) == len(world.combinations) == 48


@pytest.fixture(scope="module")
def collected(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("minigrid")
    collect(configure(out))
    return out


@pytest.mark.slow
def test_collected_rows_can_be_learnt_from(world, collected):
    rows = splits(collected, SMALL)
    every = [row for split_rows in rows.values() for row in split_rows]
    assert_learnable(collected, every, {"x": 80, "z": 6, "y": 80}, new=0.7)
    for row in every:
        assert world.actions_between(row["x"], row["y"])[0] == row["z"], "of several, the first is the one to learn"
    assert {name for row in every for name in row["z"].split()} == set(MOVES)
    held_out = set(json.loads((collected / "collect.json").read_text())["held_out_combinations"])
    steps = {split: [Step(row["x"], row["z"], row["y"]) for row in rows[split]] for split in rows}
    assert not any(world.combinations_in(step) & held_out for step in steps["labelled"])
    assert all(world.combinations_in(step) & held_out for step in steps["test_combinations"])


@pytest.mark.slow
def test_other_processes_write_the_same_bytes(collected, tmp_path):
    collect(configure(tmp_path / "again", "processes=1"))
    assert digests(tmp_path / "again") == digests(collected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world.tasks=[GoToDoor-5x5]", r"world\.tasks: GoToDoor-5x5 is not one of DoorKey-5x5, .*: choose from these"),
        ("world.tasks=[]", r"world\.tasks=\[\]: there is nothing to play: give a layout"),
        ("world.moves=[1,1]", r"world\.moves=\[1.0, 1.0\]: give 3 weights, .*"),
        ("world.moves=[0,0,0]", r"world\.moves=\[0.0, 0.0, 0.0\]: give 3 weights, .*"),
        ("world.held_out_tasks=5", r"world\.held_out_tasks=5: minigrid can hold out 4 tasks: .*"),
    ],
)
def test_settings_that_cannot_be_met_are_one_line(world, tmp_path, override, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        collect(configure(tmp_path / "out", override))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["gymnasium", "minigrid"])
def test_without_a_package_there_is_one_line(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, "gymnasium", None if package == "gymnasium" else sys)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^world=minigrid: the Python package {package} is missing: install swirl-nemo\[worlds\]$"
    with pytest.raises(ValueError, match=message):
        collect(configure(tmp_path / "out"))
