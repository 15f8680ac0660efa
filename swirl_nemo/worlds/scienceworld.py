"""Transitions of the real ScienceWorld simulator (Wang et al. 2022, "ScienceWorld: Is your agent smarter than a 5th
grader?"; Python package scienceworld, which runs on Java).

An episode follows a task's gold path or acts at random. The simulator's room descriptions are too long for a small
model and mostly beside the point, so a transition shows what its action can change: the things that it names or
changed, and a few others of the room, which the models must leave alone.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from omegaconf import MISSING

from .base import Step, World, WorldConfig

if TYPE_CHECKING:
    from scienceworld import ScienceWorldEnv

SEPARATOR = "\n"
# The simulator walks over sets in the order of their objects' identity hashes; equal hashes leave the order of
# insertion, without which two runs differ.
JVM_OPTIONS = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2"
SCENERY = ("the agent", "a substance called air")  # seen in every room
OBSERVING = {"look", "examine", "inventory", "task", "wait", "wait1", "focus", "reset"}  # verbs that change no thing
DOOR_FACT = re.compile(r"A door to the (.+?) \(")
DOOR = re.compile(r"(open|close|go to) (?:door to (.+)|(.+) door|door)")
FUNCTION_WORDS = {"a", "an", "the", "to", "in", "on", "into", "of", "with", "is", "containing", "inventory"}


@dataclass(frozen=True)
class State:
    """What the agent can see. `moves` is the simulator's clock: it stands at one state at a time."""

    room: str
    things: tuple[str, ...]
    carried: tuple[str, ...]
    moves: int


def parse_state(look: str, inventory: str, moves: int) -> State:
    """The state that the simulator's answers to "look around" and "inventory" describe, one fact a line of them."""
    room = re.search(r"called the (.+?)\.", look)
    assert room, f"not a room's description: {look!r}"
    things = tuple(fact for fact in _listed(look) if fact not in SCENERY)
    return State(room[1], things, tuple(f"carried: {thing}" for thing in _listed(inventory)), moves)


def _listed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("\t")]


def _text(room: str, facts: list[str]) -> str:
    return SEPARATOR.join([f"place: {room}", *facts])


def trim(before: State, action: str, after: State, context: int, rng: Random) -> Step:
    """The transition as text, cut down to facts that changed, facts that share a word with the action, and `context`
    others. After a change of place the things of neither room are told, for nobody could foresee the new ones.
    """
    stays = before.room == after.room
    facts = [*before.things, *before.carried]
    next_facts = [*(after.things if stays else ()), *after.carried]
    lost = () if stays else before.things
    words = _words(action)
    kept = (set(facts) ^ set(next_facts)) - set(lost) | {fact for fact in facts if words & _words(fact)}
    others = [fact for fact in facts if fact not in kept]
    kept |= set(rng.sample(others, min(context, len(others))))
    x, y = (
        _text(state.room, [fact for fact in told if fact in kept])
        for state, told in ((before, facts), (after, next_facts))
    )
    return Step(x, action, y)


def one_name(action: str, state: State) -> str:
    """Doors by the place that they lead to: "open door to kitchen", "close door to kitchen", "go to kitchen".

    The simulator has "door", "door to kitchen" and "kitchen door", whichever is shortest and clear among all that is
    in the room, and gold paths have others: which one was used, nobody can tell from the states. It takes any.
    """
    match = DOOR.fullmatch(action)
    if match is None:
        return action
    places = [door[1] for fact in state.things if (door := DOOR_FACT.match(fact))]
    named = match[2] or match[3] or (places[0] if len(places) == 1 else None)
    if named not in places:
        return action
    return f"go to {named}" if match[1] == "go to" else f"{match[1]} door to {named}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - FUNCTION_WORDS


@dataclass
class ScienceWorldConfig(WorldConfig):
    tasks: list[str] = MISSING
    variations: int = MISSING  # of each task, from its first
    simplifications: list[str] = MISSING  # of the simulator, such as openDoors
    context_facts: int = MISSING  # of a room, shown beside those that the action names or changes
    max_words: int = MISSING  # steps whose state is longer are left out


class ScienceWorld(World[ScienceWorldConfig]):
    name = "scienceworld"
    settings = ScienceWorldConfig
    packages = ("scienceworld",)

    def __init__(self, config: ScienceWorldConfig):
        super().__init__(config)
        self._running: ScienceWorldEnv | None = None
        self._now: State | None = None

    def tasks(self) -> list[str]:
        """Tasks with their variation, such as "boil 3"."""
        env = self._env()
        most = {task: min(self.config.variations, env.get_max_variations(task)) for task in self.config.tasks}
        return [f"{task} {variation}" for task, count in most.items() for variation in range(count)]

    def reset(self, task: str, rng: Random) -> State:
        return self.start(task, False, rng.getrandbits(31))

    def start(self, task: str, gold: bool, seed: int) -> State:
        """The first state of a task's variation. `gold`: also have its gold path worked out, which takes seconds."""
        env = self._env()
        name, variation = task.split()
        # The simulator draws from Scala's global generator, which nothing else seeds.
        generator = getattr(getattr(env._gateway.jvm.scala.util, "Random$"), "MODULE$")
        generator.setSeed(seed)
        env.load(name, int(variation), ",".join(self.config.simplifications), generateGoldPath=gold)
        generator.setSeed(seed)
        env.server.reset()
        return self._observe()

    def legal_actions(self, state: State) -> list[str]:
        """Sorted; without the verbs that only observe. Some still change nothing, as the simulator lists them."""
        assert state is self._now, "the simulator stands at another state"
        listed = self._env().get_valid_action_object_combinations_with_templates()
        names = {one_name(entry["action"], state) for entry in listed}
        return sorted(action for action in names if action.split()[0] not in OBSERVING)

    def step(self, state: State, action: str) -> State:
        assert state is self._now, "the simulator stands at another state"
        answer, after = self._send(action)
        # The simulator also lists names that it does not understand: they change nothing
        if answer.startswith("No known action") and action not in self.legal_actions(after):
            raise ValueError(f"scienceworld: {action!r} is not possible in the {state.room}: see legal_actions")
        return after

    def render(self, state: State) -> str:
        return _text(state.room, [*state.things, *state.carried])

    def shown(self, state: State, action: str) -> str:
        """What `trim` would show of a state whose facts stay, but for the change that nobody knows yet."""
        facts, words = [*state.things, *state.carried], _words(action)
        named = {fact for fact in facts if words & _words(fact)}
        others = [fact for fact in facts if fact not in named]
        named |= set(Random(action).sample(others, min(self.config.context_facts, len(others))))
        return _text(state.room, [fact for fact in facts if fact in named])

    def check(self) -> None:
        config = self.config
        env = self._env()
        known = {"tasks": env.get_task_names(), "simplifications": ["easy", *env.get_possible_simplifications()]}
        for key, names in known.items():
            if unknown := sorted(set(getattr(config, key)) - set(names)):
                raise ValueError(f"world.{key}: {unknown[0]} is not known: choose from {', '.join(names)}")
        if not config.tasks or config.variations < 1:
            raise ValueError("world.tasks, world.variations: there is nothing to play: give a task and a variation")

    def episode(self, task: str, rng: Random) -> Iterator[Step]:
        config = self.config
        gold = rng.random() < config.gold
        state = self.start(task, gold, rng.getrandbits(31))
        path = self._env().get_gold_action_sequence() if gold else [None] * config.episode_steps
        for planned in path[: config.episode_steps]:
            action = one_name(planned, state) if planned else self.sample_action(state, rng)
            _, after = self._send(action)  # gold paths hold actions that fail: they change nothing
            step = trim(state, action, after, config.context_facts, rng)
            # A number answers the simulator's question which of several things was meant; it is no action by itself.
            if not action.isdigit() and max(len(step.x.split()), len(step.y.split())) <= config.max_words:
                yield step
            state = after

    def close(self) -> None:
        if self._running is not None:
            process = self._running._gateway.java_process
            self._running.close()
            process.wait(timeout=30)
            self._running = self._now = None

    def sample_action(self, state: State, rng: Random) -> str:
        """Verbs are drawn first: most of what can be done is pouring one thing into another."""
        actions = self.legal_actions(state)
        verb = rng.choice(sorted({action.split()[0] for action in actions}))
        return rng.choice([action for action in actions if action.split()[0] == verb])

    def _send(self, action: str) -> tuple[str, State]:
        """The simulator's answer, and the state after it."""
        return self._env().server.step(action), self._observe()

    def _observe(self) -> State:
        env = self._env()
        self._now = parse_state(env.look(), env.inventory(), env.get_num_moves())
        return self._now

    def _env(self) -> "ScienceWorldEnv":
        if self._running is None:
            self._running = _launch()
        return self._running


def _launch() -> "ScienceWorldEnv":
    """Starts the simulator. Raises ValueError, one line, where Java or the package is missing."""
    if shutil.which("java") is None:
        raise ValueError("world=scienceworld: there is no java on PATH: install Java 17 (Debian: default-jre-headless)")
    try:
        from scienceworld import ScienceWorldEnv
    except ImportError as error:
        raise ValueError(
            f"world=scienceworld: the Python package {error.name} is missing: install swirl-nemo[worlds]"
        ) from error
    inherited = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{inherited or ''} {JVM_OPTIONS}".strip()
    try:
        return ScienceWorldEnv("", envStepLimit=10**6)
    finally:
        if inherited is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = inherited
