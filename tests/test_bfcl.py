"""BFCL's APIs: transitions written by hand, its file system against folders on disk, and what a collection promises."""

import json
import shutil
import sys
from collections import defaultdict
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from collected import assert_learnable, digests, splits

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.settings import compose
from swirl_nemo.worlds.bfcl import APIS, MAX_FACTS, SOURCE, Bfcl, State, cases, names

SMALL = {"labelled": 40, "unlabelled": 200, "validation": 20, "test": 40, "test_tasks": 20}
CAR = {
    **{"fuelLevel": 10, "engineState": "stopped", "acTemperature": 22.0, "fanSpeed": 50, "acMode": "auto"},
    **{"parkingBrakeStatus": "released", "headLightStatus": "off", "destination": "Rivermist"},
    "doorStatus": {"driver": "unlocked", "passenger": "locked", "rear_left": "locked", "rear_right": "locked"},
}
POSTS = {
    **{"username": "alice", "password": "secret", "authenticated": True, "following_list": ["bob"], "tweet_counter": 2},
    "tweets": {1: {"id": 1, "username": "bob", "content": "error", "tags": [], "mentions": []}},
}
TICKETS = {
    **{"current_user": "john", "ticket_counter": 2},
    "ticket_queue": [{"id": 1, "title": "error", "priority": 3, "created_by": "bob", "status": "Open"}],
}


def folder(**contents) -> dict:
    return {"type": "directory", "contents": contents}


DISK = {
    "root": {"root": folder(archive=folder(archives=folder()), **{"data.txt": {"type": "file", "content": "error"}})}
}


def configure(out: Path, *overrides: str) -> CollectConfig:
    counts = [f"world.{split}={rows}" for split, rows in SMALL.items()]
    return compose(["world=bfcl", f"out={out}", *counts, *overrides], "collect", CollectConfig)


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("bfcl_eval", reason="needs bfcl-eval, installed with --no-deps")
    return Bfcl(configure(Path("unused")).world)


def start(api: str, scenario: dict) -> State:
    tool = getattr(import_module(f"{SOURCE}.{APIS[api].module}"), api)()
    tool._load_scenario(json.loads(json.dumps(scenario)))
    return State(api, tool, names())


def play(world: Bfcl, state: State, actions: list[str]) -> State:
    for action in actions:
        state = world.step(state, action)
    return state


@pytest.mark.parametrize(
    ("api", "scenario", "actions", "old", "new"),
    [
        ("GorillaFileSystem", DISK, ["cd archive"], "in /\n", "in archive\n"),
        ("GorillaFileSystem", DISK, ["cd archive", "cd archives", "cd .."], "in /\n", "in archive\n"),
        ("GorillaFileSystem", DISK, ["mv data.txt archive"], "file data.txt", "file archive data.txt"),
        ("GorillaFileSystem", DISK, ["mv data.txt goals.txt"], "file data.txt", "file goals.txt"),
        ("GorillaFileSystem", DISK, ["echo final data.txt"], "data.txt error", "data.txt final"),
        ("GorillaFileSystem", DISK, ["cp data.txt goals.txt", "rm data.txt"], "file data.txt", "file goals.txt"),
        ("VehicleControlAPI", CAR, ["lockDoors False driver"], "driver unlocked", "driver locked"),
        ("VehicleControlAPI", CAR, ["fillFuelTank 20"], "fuel 10", "fuel 30"),
        ("VehicleControlAPI", CAR, ["pressBrakePedal 0.5"], "pedal 0", "pedal 500"),
        ("VehicleControlAPI", CAR, ["adjustClimateControl 18 30 cool"], "climate 22 50 auto", "climate 18 30 cool"),
        ("VehicleControlAPI", CAR, ["set_navigation Oakendale"], "to Rivermist", "to Oakendale"),
        ("TicketAPI", TICKETS, ["close_ticket 1"], "Open", "Closed"),
        ("TicketAPI", TICKETS, ["resolve_ticket 1 final"], "Open", "Resolved final"),
        ("TicketAPI", TICKETS, ["edit_ticket 1 priority 5"], "priority 3", "priority 5"),
        ("TicketAPI", TICKETS, ["edit_ticket 1 title final"], "error by bob", "final by bob"),
        ("TicketAPI", TICKETS, ["logout", "ticket_login bob"], "user john", "user bob"),
        ("TwitterAPI", POSTS, ["unfollow_user bob"], "follows bob\n", ""),
        ("TwitterAPI", POSTS, ["mention 1 @john"], "bob error", "bob error @john"),
        ("TwitterAPI", POSTS, ["comment 1 final"], "bob error", "bob error\ncomment 1 final"),
    ],
)
def test_calls_change_what_they_say(world, api, scenario, actions, old, new):
    state = start(api, scenario)
    before = state.text
    assert before.count(old) == 1
    assert play(world, state, actions).text == before.replace(old, new)
    assert state.text == "\n".join(APIS[api].facts(state.tool)) == before, "step must leave the state as it is"


@pytest.mark.parametrize(
    ("api", "scenario", "action"),
    [
        ("GorillaFileSystem", DISK, "cd .."),  # at the top
        ("GorillaFileSystem", DISK, "rmdir archive"),  # not empty
        ("GorillaFileSystem", DISK, "rm archive"),  # holds a folder
        ("GorillaFileSystem", DISK, "mv archive project"),  # so its inner one would be lost
        ("GorillaFileSystem", DISK, "touch data.txt"),
        ("GorillaFileSystem", DISK, "echo error data.txt"),  # it says so already
        ("VehicleControlAPI", CAR, "startEngine START"),  # a door is open
        ("VehicleControlAPI", CAR | {"fuelLevel": 45}, "fillFuelTank 10"),
        ("VehicleControlAPI", CAR, "releaseBrakePedal"),
        ("TicketAPI", TICKETS, "close_ticket 2"),
        ("TicketAPI", TICKETS | {"current_user": None}, "create_ticket error 1"),
        ("TwitterAPI", POSTS | {"authenticated": False}, "post_tweet final"),
        ("TwitterAPI", POSTS, "follow_user bob"),
        ("TwitterAPI", POSTS, ""),
    ],
)
def test_what_fails_or_changes_nothing_is_refused(world, api, scenario, action):
    state = start(api, scenario)
    assert action not in world.legal_actions(state)
    with pytest.raises(ValueError, match="^bfcl: .* is not possible in .*: see legal_actions$"):
        world.step(state, action)


def test_the_engine_starts_with_doors_locked_and_the_pedal_down(world):
    state = play(world, start("VehicleControlAPI", CAR), ["lockDoors False driver", "pressBrakePedal 0.5"])
    assert "startEngine START" not in world.legal_actions(state)
    assert "engine running" in play(world, state, ["pressBrakePedal 1", "startEngine START"]).text


def test_posts_share_no_list_of_mentions(world):
    """`post_tweet` has lists as defaults, which posts of one object share: each call has a copy of its own."""
    for _ in range(2):
        state = play(world, start("TwitterAPI", POSTS), ["post_tweet final", "post_tweet error", "mention 2 @john"])
        assert "tweet 2 alice final @john\ntweet 3 alice error" in state.text and state.text.count("@") == 1


def on_disk(here: Path, action: str) -> Path:
    """The same call, with the standard library; returns the folder that one is in."""
    verb, *words = action.split()
    if verb == "cd":
        return here.parent if words == [".."] else here / words[0]
    if verb in ("mv", "cp"):
        shutil.move(here / words[0], here / words[1]) if verb == "mv" else shutil.copy(here / words[0], here / words[1])
    elif verb == "echo":
        (here / words[1]).write_text(words[0])
    else:
        act = {"mkdir": Path.mkdir, "touch": Path.touch, "rmdir": Path.rmdir}
        act["rm"] = lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink()
        act[verb](here / words[0])
    return here


def test_its_file_system_is_one(world, tmp_path):
    """Folders on disk, from the facts of the first state, through random episodes."""
    verbs = set()
    for episode in range(12):
        top = here = tmp_path / str(episode)
        top.mkdir()
        steps = list(world.episode("GorillaFileSystem 0", Random(episode)))
        for kind, *words in (line.split() for line in steps[0].x.split("\n")[1:]):
            top.joinpath(*words).mkdir() if kind == "dir" else top.joinpath(*words[:-1]).write_text(words[-1])
        for step in steps:
            here = on_disk(here, step.z)
            verbs.add(step.z.split()[0])
            place, *facts = step.y.split("\n")
            assert place == "in " + ("/" if here == top else " ".join(here.relative_to(top).parts))
            found = {path: path.is_dir() or path.read_text() or "empty" for path in top.rglob("*")}
            told = {" ".join(path.relative_to(top).parts): content for path, content in found.items()}
            assert set(facts) == {
                f"dir {p}" if content is True else f"file {p} {content}" for p, content in told.items()
            }
    assert verbs == {"cd", "mkdir", "touch", "rmdir", "rm", "mv", "cp", "echo"}


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
def test_equal_texts_have_equal_futures(world, api):
    """Whatever calls led to a text: nothing that it does not show decides what follows."""
    state = world.reset(next(task for task in world.tasks() if task.startswith(api)), Random(0))
    known: dict[str, dict[str, str]] = {}
    met = 0
    for after in [state, *state.outcomes.values()]:
        futures = {action: end.text for action, end in after.outcomes.items()}
        assert len({after.text, *futures.values()}) == len(futures) + 1, "two calls lead to one state"
        assert known.setdefault(after.text, futures) == futures
        for back in after.outcomes.values():
            if back.text == state.text:
                met += 1
                assert {action: end.text for action, end in back.outcomes.items()} == known[back.text]
    assert met, "no call was taken back"


def test_an_episode_is_fixed_by_its_generator(world):
    tasks = world.tasks()
    assert len(tasks) == len(set(tasks)) > 100 and {task.split()[0] for task in tasks} == set(APIS)
    for index, task in enumerate(tasks[::24]):
        first, other, again = (list(world.episode(task, Random(seed))) for seed in (index, -1 - index, index))
        assert first == again != other
        assert all(one.y == other.x for one, other in pairwise(first))
    assert cases() == json.loads(json.dumps(cases())), "an episode changed the cases"


@pytest.fixture(scope="module")
def collected(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bfcl")
    collect(configure(out))
    return out


@pytest.mark.slow
def test_collected_rows_can_be_learnt_from(collected):
    every = [row for rows in splits(collected, SMALL).values() for row in rows]
    assert_learnable(collected, every, {"x": 128, "z": 25, "y": 128}, new=0.8)
    causes = defaultdict(set)
    for row in every:
        causes[row["x"], row["y"]].add(row["z"])
        assert row["y"].count("\n") < MAX_FACTS
    assert all(len(found) == 1 for found in causes.values())


@pytest.mark.slow
def test_other_processes_write_the_same_bytes(collected, tmp_path):
    collect(configure(tmp_path / "again", "processes=1"))
    assert digests(tmp_path / "again") == digests(collected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world.apis=[TravelAPI]", r"world\.apis: TravelAPI is not known: choose from GorillaFileSystem, .*"),
        ("world.apis=[]", r"world\.apis=\[\]: there is nothing to play: give an API"),
        ("world.held_out_tasks=999", r"world\.held_out_tasks=999: bfcl can hold out \d+ tasks: .*"),
    ],
)
def test_settings_that_cannot_be_met_are_one_line(world, tmp_path, override, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        collect(configure(tmp_path / "out", override))
    assert not (tmp_path / "out").exists()


def test_without_the_package_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    cases.cache_clear()
    with pytest.raises(ValueError, match="^world=bfcl: the Python package bfcl-eval is missing: pip install .*$"):
        collect(configure(tmp_path / "out"))
