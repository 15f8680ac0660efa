"""Tools of the Berkeley Function-Calling Leaderboard (Patil et al. 2025; Python package bfcl-eval): the executable
APIs of its multi-turn cases, called one call at a time.

An episode is about one API of one case. It starts from that case's state, cut down and renamed with names of all
cases; a state is what the API's object holds, a fact a line, and an action a call, as its name and arguments:

    in archive
    dir archive
    file archive notes.txt report
    file log.txt empty

    mv notes.txt summary.txt

Every call is carried out by the API itself. One that fails or changes no fact is not legal, and of several that lead to
the same state only the first is, since states could not tell them apart.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple

from omegaconf import MISSING

from .base import World, WorldConfig

SEPARATOR = "\n"
SOURCE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
MAX_FACTS = 14
CITIES = ("Autumnville", "Maplecrest", "Oakendale", "Rivermist", "Silverpine", "Stonebrook", "Willowbend")
UNSEEN = ("password",)  # arguments that are always the same, and not written
Call = tuple[str, dict[str, Any]]  # a method and its arguments


class Names(NamedTuple):
    """The most frequent names of all cases."""

    folders: list[str]
    files: list[str]
    words: list[str]
    people: list[str]


def _tree(case: dict, rng: Random, names: Names, depth: int = 0) -> dict:
    """The folders and files of a case, renamed, at most two of each in a folder and two levels deep; or one more."""
    here: dict[str, dict] = {}
    folders = [item["contents"] for item in case.values() if item["type"] == "directory"]
    if depth < 2:
        for name in rng.sample(names.folders, min(2 - depth, len(folders) + rng.randrange(2))):
            inner = folders.pop(0) if folders else {}
            here[name] = {"type": "directory", "contents": _tree(inner, rng, names, depth + 1)}
    count = sum(item["type"] == "file" for item in case.values()) + rng.randrange(2)
    for name in rng.sample(names.files, min(2, count)):
        here[name] = {"type": "file", "content": rng.choice(names.words)}
    return here


def _file_scenario(case: dict, rng: Random, names: Names) -> dict:
    top = next(iter(case["root"].values()), {"contents": {}})
    return {"root": {"root": {"type": "directory", "contents": _tree(top["contents"], rng, names)}}}


def _is_folder(item: Any) -> bool:
    return hasattr(item, "contents")


def _file_facts(api: Any) -> Iterator[str]:
    """Paths as words, since a name must look alike wherever it stands; a content is one word."""

    def below(folder: Any, path: str) -> Iterator[str]:
        for name, item in sorted(folder.contents.items()):
            yield f"dir {path}{name}" if _is_folder(item) else f"file {path}{name} {item.content or 'empty'}"
            if _is_folder(item):
                yield from below(item, f"{path}{name} ")

    here = api.pwd()["current_working_directory"].removeprefix("/root")
    yield f"in{here.replace('/', ' ')}" if here else "in /"
    yield from below(api.root, "")


def _file_calls(api: Any, names: Names) -> Iterator[Call]:
    """Folders that hold folders stay where they are: the API's `mv` leaves the inner ones with their former parent."""
    here = api._current_dir.contents
    folders = [name for name, item in here.items() if _is_folder(item)]
    movable = [name for name in here if not any(map(_is_folder, getattr(here[name], "contents", {}).values()))]
    for folder in [".."] * bool(api._current_dir.parent) + folders:
        yield "cd", {"folder": folder}
    yield from (("mkdir", {"dir_name": name}) for name in names.folders)
    yield from (("touch", {"file_name": name}) for name in names.files)
    yield from (("rmdir", {"dir_name": name}) for name in folders)
    yield from (("rm", {"file_name": name}) for name in movable)
    for name in movable:
        if name in folders:
            yield from (("mv", {"source": name, "destination": new}) for new in names.folders if new not in here)
            continue
        yield from (("echo", {"content": word, "file_name": name}) for word in names.words)
        places = [new for new in names.files if new not in here]
        places += [folder for folder in folders if name not in here[folder].contents]
        yield from ((verb, {"source": name, "destination": new}) for verb in ("mv", "cp") for new in places)


def _vehicle_scenario(case: dict, rng: Random, names: Names) -> dict:
    """The case's climate and parking brake; the rest is drawn."""
    how = rng.choice([["locked"], ["locked", "unlocked"]])  # with one unlocked the engine does not start
    doors = {door: rng.choice(how) for door in ("driver", "passenger", "rear_left", "rear_right")}
    return case | {
        "fuelLevel": rng.randint(0, 40),
        "engineState": rng.choice(["running", "stopped"]),
        "doorStatus": doors,
        "headLightStatus": rng.choice(["on", "off"]),
        "destination": rng.choice(CITIES),
    }


def _vehicle_facts(api: Any) -> Iterator[str]:
    yield f"engine {api.engine_state}"
    yield f"fuel {api.fuelLevel:g}"
    yield from (f"door {door} {status}" for door, status in api.doorStatus.items())
    yield f"pedal {api._brakePedalForce:g}"
    yield f"parking {api.parkingBrakeStatus}"
    yield f"lights {api.headLightStatus}"
    yield f"climate {api.acTemperature:g} {api.fanSpeed} {api.acMode}"
    yield f"to {api.destination}"


def _vehicle_calls(api: Any, names: Names) -> Iterator[Call]:
    """No cruise control, whose speed is kept nowhere."""
    yield "startEngine", {"ignitionMode": "START"}
    yield from (("fillFuelTank", {"fuelAmount": gallons}) for gallons in (5, 10, 20))
    yield from (
        ("lockDoors", {"unlock": unlock, "door": [door]}) for door in api.doorStatus for unlock in (True, False)
    )
    yield from (("pressBrakePedal", {"pedalPosition": position}) for position in (0.5, 1))
    yield "releaseBrakePedal", {}
    yield from (("activateParkingBrake", {"mode": mode}) for mode in ("engage", "release"))
    yield from (("setHeadlights", {"mode": mode}) for mode in ("on", "off"))
    for mode in ("auto", "cool", "heat", "defrost"):
        for degrees, speed in ((18, 30), (20, 50), (22, 70), (25, 30), (25, 50)):
            yield "adjustClimateControl", {"temperature": degrees, "fanSpeed": speed, "mode": mode}
    yield from (("set_navigation", {"destination": city}) for city in CITIES)


def _ticket_scenario(case: dict, rng: Random, names: Names) -> dict:
    count = min(3, len(case.get("ticket_queue", ())) + rng.randrange(3))
    first = rng.randint(1, 5)
    queue = [
        {"id": first + index, "title": rng.choice(names.words), "status": rng.choice(["Open", "Closed"])}
        | {"priority": rng.randint(1, 5), "created_by": rng.choice(names.people)}
        for index in range(count)
    ]
    user = rng.choice(names.people) if case.get("current_user") or rng.random() < 0.5 else None
    return {"ticket_queue": queue, "ticket_counter": first + count, "current_user": user}


def _ticket_facts(api: Any) -> Iterator[str]:
    yield f"user {api.current_user or 'none'}"
    yield f"next {api.ticket_counter}"
    for it in api.ticket_queue:
        yield f"ticket {it['id']} title {it['title']} by {it['created_by']}"
        yield f"ticket {it['id']} priority {it['priority']}"
        yield f"ticket {it['id']} {it['status']}" + (f" {it['resolution']}" if "resolution" in it else "")


def _ticket_calls(api: Any, names: Names) -> Iterator[Call]:
    yield "logout", {}
    yield from (("ticket_login", {"username": name, "password": "secret"}) for name in names.people)
    yield from (
        ("create_ticket", {"title": word, "priority": priority}) for word in names.words for priority in range(1, 6)
    )
    for number in [ticket["id"] for ticket in api.ticket_queue]:
        yield "close_ticket", {"ticket_id": number}
        yield from (("resolve_ticket", {"ticket_id": number, "resolution": word}) for word in names.words)
        yield from (("edit_ticket", {"ticket_id": number, "updates": {"priority": new}}) for new in range(1, 6))
        yield from (("edit_ticket", {"ticket_id": number, "updates": {"title": word}}) for word in names.words)


def _post_scenario(case: dict, rng: Random, names: Names) -> dict:
    user, *others = rng.sample(names.people, 4)
    first = rng.randint(0, 5)
    count = min(3, len(case.get("tweets", ())) + rng.randrange(2))
    tweets = {
        first + index: {"id": first + index, "username": rng.choice([user, *others])}
        | {"content": rng.choice(names.words), "tags": [], "mentions": []}
        for index in range(count)
    }
    return {
        "username": user,
        "password": "secret",
        "authenticated": rng.random() < 0.7,
        "tweets": tweets,
        "following_list": others[: rng.randrange(3)],
        "tweet_counter": first + count,
    }


def _post_facts(api: Any) -> Iterator[str]:
    yield f"user {api.username} {'in' if api.authenticated else 'out'}"
    yield f"next {api.tweet_counter}"
    yield from (f"follows {name}" for name in api.following_list)
    for number, tweet in api.tweets.items():
        yield " ".join([f"tweet {number} {tweet['username']} {tweet['content']}", *tweet["mentions"]])
        yield from (f"comment {number} {comment['content']}" for comment in api.comments.get(number, ()))
    yield from (f"retweeted {number}" for number in api.retweets.get(api.username, ()))


def _post_calls(api: Any, names: Names) -> Iterator[Call]:
    yield "authenticate_twitter", {"username": api.username, "password": "secret"}
    yield from (("post_tweet", {"content": word}) for word in names.words)
    yield from (("follow_user", {"username_to_follow": name}) for name in names.people if name != api.username)
    yield from (("unfollow_user", {"username_to_unfollow": name}) for name in api.following_list)
    for number in api.tweets:
        yield "retweet", {"tweet_id": number}
        yield from (("comment", {"tweet_id": number, "comment_content": word}) for word in names.words)
        yield from (("mention", {"tweet_id": number, "mentioned_usernames": [f"@{name}"]}) for name in names.people)


class Api(NamedTuple):
    """An API's module, and how a first state is made of a case, told as facts, and called."""

    module: str
    scenario: Callable[[dict, Random, Names], dict]
    facts: Callable[[Any], Iterator[str]]
    calls: Callable[[Any, Names], Iterator[Call]]


APIS = {
    "GorillaFileSystem": Api("gorilla_file_system", _file_scenario, _file_facts, _file_calls),
    "VehicleControlAPI": Api("vehicle_control", _vehicle_scenario, _vehicle_facts, _vehicle_calls),
    "TicketAPI": Api("ticket_api", _ticket_scenario, _ticket_facts, _ticket_calls),
    "TwitterAPI": Api("posting_api", _post_scenario, _post_facts, _post_calls),
}


@dataclass(frozen=True)
class State:
    api: str
    tool: Any  # the API's object
    names: Names

    @cached_property
    def text(self) -> str:
        return SEPARATOR.join(APIS[self.api].facts(self.tool))

    @cached_property
    def outcomes(self) -> dict[str, "State"]:
        """Every legal call, as text, with the state that it leads to."""
        found: dict[str, State] = {}
        texts = {self.text}
        for method, arguments in APIS[self.api].calls(self.tool, self.names):
            after = State(self.api, deepcopy(self.tool), self.names)
            getattr(after.tool, method)(**arguments)  # a call that fails answers with an error, and changes nothing
            if after.text in texts or after.text.count(SEPARATOR) >= MAX_FACTS:
                continue
            texts.add(after.text)
            found[_written(method, arguments)] = after
        return found


def _written(method: str, arguments: dict[str, Any]) -> str:
    words = [method]
    for key, value in arguments.items():
        if isinstance(value, dict):
            words += [str(word) for pair in value.items() for word in pair]
        elif key not in UNSEEN:
            words.append(str(value[0] if isinstance(value, list) else value))
    return " ".join(words)


@dataclass
class BfclConfig(WorldConfig):
    apis: list[str] = MISSING  # of APIS


class Bfcl(World[BfclConfig]):
    name = "bfcl"
    settings = BfclConfig
    packages = ("bfcl-eval",)

    def tasks(self) -> list[str]:
        """An API and the number of a case, such as "TicketAPI 57"."""
        return [f"{api} {number}" for api in self.config.apis for number, case in enumerate(cases()) if api in case]

    def check(self) -> None:
        if unknown := sorted(set(self.config.apis) - set(APIS)):
            raise ValueError(f"world.apis: {unknown[0]} is not known: choose from {', '.join(APIS)}")
        if not self.config.apis:
            raise ValueError("world.apis=[]: there is nothing to play: give an API")
        cases()

    def reset(self, task: str, rng: Random) -> State:
        api, number = task.split()
        tool = getattr(import_module(f"{SOURCE}.{APIS[api].module}"), api)()
        tool._load_scenario(APIS[api].scenario(cases()[int(number)][api], rng, names()))
        return State(api, tool, names())

    def legal_actions(self, state: State) -> list[str]:
        return list(state.outcomes)

    def step(self, state: State, action: str) -> State:
        if action not in state.outcomes:
            raise ValueError(f"bfcl: {action!r} is not possible in {state.text!r}: see legal_actions")
        return state.outcomes[action]

    def render(self, state: State) -> str:
        return state.text

    def sample_action(self, state: State, rng: Random) -> str | None:
        """Methods are drawn first: most calls are one method with different words."""
        by_method: dict[str, list[str]] = {}
        for action in state.outcomes:
            by_method.setdefault(action.split()[0], []).append(action)
        return rng.choice(by_method[rng.choice(sorted(by_method))]) if by_method else None


@cache
def cases() -> list[dict]:
    """Of each multi-turn case the states that its APIs start from. Raises ValueError where the package is missing."""
    try:
        path = files("bfcl_eval") / "data" / "BFCL_v4_multi_turn_base.json"
    except ImportError as error:
        raise ValueError(
            "world=bfcl: the Python package bfcl-eval is missing: pip install --no-deps bfcl-eval==2026.3.23"
        ) from error
    return [json.loads(line)["initial_config"] for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def names() -> Names:
    """The most frequent names of all cases, in lower case."""
    text = json.dumps(cases()).lower()
    sentences = " ".join(re.findall(r'"content": "([^"]*)"', text.replace(r"\n", " ")))
    return Names(
        folders=_frequent(r'"([a-z]{3,9})": {"type": "directory"', text, 6),
        files=_frequent(r'"([a-z]{3,8}\.[a-z]{2,4})": {"type": "file"', text, 8),
        words=_frequent(r"\b[a-z]{5,8}\b", sentences, 8),
        people=_frequent(r'"([a-z]{3,8})": "usr', text, 6),
    )


def _frequent(pattern: str, text: str, count: int) -> list[str]:
    found = Counter(re.findall(pattern, text))
    return sorted(found, key=lambda name: (-found[name], name))[:count]
