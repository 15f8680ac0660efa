"""The built-in world: three rooms, things to carry, doors and lids and switches, and an agent with two hands.

A state is a list of facts, each a subject and its value, always in the same order, so that one command changes one
fact at one place of the text:

    you hall . cup table . book shelf . key hand . ball chest . door open . fridge shut . chest open . lamp on

An action is one to three commands joined by "and", each on a subject of its own: it names every fact that it changes
(ALGORITHM.md, last section, on why). They are carried out at once, each must be possible in the state that the action
finds, and their order says nothing: states could not show it, so no model could learn it from them. So one, two or six
actions lead from x to y. The behaviour policy names the commands in the order of the facts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random

from omegaconf import MISSING

from .base import Step, World, WorldConfig

SEPARATOR = " . "
HANDS = 2
MAX_COMMANDS = 3
ROOMS = ("kitchen", "hall", "bedroom")
PLACES = {  # place: room
    "fridge": "kitchen",
    "chest": "kitchen",
    "shelf": "hall",
    "bench": "hall",
    "bed": "bedroom",
    "table": "bedroom",
}
OBJECTS = ("cup", "book", "key", "ball")
CONTAINERS = ("fridge", "chest")
# Subject: rooms in reach. The two lids share a room: one alone is told by the room, whatever name an action gives it.
OPENINGS = {"door": ("kitchen", "hall"), "fridge": ("kitchen",), "chest": ("kitchen",)}
SWITCHES = {"lamp": ("hall",)}
DEVICES = OPENINGS | SWITCHES

VALUES: dict[str, tuple[str, ...]] = {
    "you": ROOMS,
    **dict.fromkeys(OBJECTS, ("hand", *PLACES)),
    **dict.fromkeys(OPENINGS, ("open", "shut")),
    **dict.fromkeys(SWITCHES, ("on", "off")),
}

State = dict[str, str]  # subject: value, in the order of VALUES
Command = tuple[str, str]  # the subject and its new value


def command_text(command: Command) -> str:
    """A verb for each kind of subject, and no word that the change itself does not fix: a choice between "in" and "on"
    leaves no trace in the states, so no reward made of them could teach it."""
    subject, value = command
    if subject == "you":
        return f"go to {value}"
    return f"set {subject} {value}" if subject in DEVICES else f"move {subject} to {value}"


COMMANDS: dict[str, Command] = {
    command_text((subject, value)): (subject, value) for subject, values in VALUES.items() for value in values
}


def parse_state(text: str) -> State | None:
    """The state that `text` renders, or None if it renders none."""
    facts = [tuple(fact.split(" ")) for fact in text.split(SEPARATOR)]
    if len(facts) != len(VALUES) or any(len(fact) != 2 for fact in facts):
        return None
    state = dict(facts)
    well_formed = list(state) == list(VALUES) and all(state[subject] in VALUES[subject] for subject in state)
    return state if well_formed else None


def parse_action(text: str) -> list[Command] | None:
    """The commands that `text` joins, or None if it is no action: an unknown command, four of them, a subject twice."""
    parts = text.split(" and ")
    if len(parts) > MAX_COMMANDS or any(part not in COMMANDS for part in parts):
        return None
    commands = [COMMANDS[part] for part in parts]
    return commands if len({subject for subject, _ in commands}) == len(commands) else None


def action_text(commands: list[Command]) -> str:
    return " and ".join(command_text(command) for command in commands)


def _in_reach(state: State, place: str) -> bool:
    return PLACES[place] == state["you"] and (place not in CONTAINERS or state[place] == "open")


def possible(state: State, command: Command) -> bool:
    """Whether the agent can carry out the command here and now, and it changes something."""
    subject, value = command
    if state[subject] == value:
        return False
    if subject == "you":
        passage = {state["you"], value}
        return "hall" in passage and ("kitchen" not in passage or state["door"] == "open")
    if subject in DEVICES:
        return state["you"] in DEVICES[subject]
    at_hand = state[subject] == "hand" or (_in_reach(state, state[subject]) and _held(state) < HANDS)
    return at_hand and (value == "hand" or _in_reach(state, value))


def carry_out(state: State, commands: list[Command]) -> State | None:
    """The state after the commands, given at once, or None if one is not possible or they take more than hands hold."""
    if not all(possible(state, command) for command in commands):
        return None
    after = state | dict(commands)
    return after if _held(after) <= HANDS else None


def _held(state: State) -> int:
    return sum(state[thing] == "hand" for thing in OBJECTS)


def _in_order_of_facts(commands: list[Command]) -> list[Command]:
    return sorted(commands, key=lambda command: list(VALUES).index(command[0]))


def _further(state: State, commands: list[Command]) -> list[Command]:
    """Commands that can be given together with `commands`."""
    subjects = {subject for subject, _ in commands}
    return [
        command
        for command in COMMANDS.values()
        if command[0] not in subjects and carry_out(state, [*commands, command]) is not None
    ]


@dataclass
class HouseholdConfig(WorldConfig):
    changes: list[float] = MISSING  # probability of an action of one, two, three commands


class Household(World[HouseholdConfig]):
    name = "household"
    settings = HouseholdConfig
    combinations = tuple(f"{thing} {place}" for thing in OBJECTS for place in PLACES)

    def reset(self, task: str, rng: Random) -> State:
        state = {subject: rng.choice(values) for subject, values in VALUES.items()}
        for thing in [thing for thing in OBJECTS if state[thing] == "hand"][HANDS:]:
            state[thing] = rng.choice(list(PLACES))
        return state

    def legal_actions(self, state: State) -> list[str]:
        actions, ends = [], [[]]
        for _ in range(MAX_COMMANDS):
            ends = [[*commands, command] for commands in ends for command in _further(state, commands)]
            actions += ends
        return [action_text(commands) for commands in actions]

    def step(self, state: State, action: str) -> State:
        commands = parse_action(action)
        after = commands and carry_out(state, commands)
        if not after:
            raise ValueError(f"household: {action!r} is not possible in {self.render(state)!r}: see legal_actions")
        return after

    def render(self, state: State) -> str:
        return SEPARATOR.join(f"{subject} {value}" for subject, value in state.items())

    @classmethod
    def actions_between(cls, x: str, y: str) -> list[str]:
        before, after = parse_state(x), parse_state(y)
        if before is None or after is None:
            return []
        commands = [(subject, value) for subject, value in after.items() if before[subject] != value]
        if not 1 <= len(commands) <= MAX_COMMANDS or carry_out(before, commands) is None:
            return []
        return [action_text(order) for order in permutations(commands)]

    @classmethod
    def combinations_in(cls, step: Step) -> set[str]:
        commands = parse_action(step.z) or []
        return {f"{subject} {value}" for subject, value in commands} & set(cls.combinations)

    def check(self) -> None:
        changes = list(self.config.changes)
        if len(changes) != MAX_COMMANDS or min(changes) < 0 or not sum(changes):
            raise ValueError(
                f"world.changes={changes}: give {MAX_COMMANDS} weights, none negative, not all zero: "
                "how often an action has one command, two, three"
            )

    def episode(self, task: str, rng: Random) -> Iterator[Step]:
        """Facts are drawn before values, so that the many places do not crowd out doors and switches."""
        state = self.reset(task, rng)
        for _ in range(self.config.episode_steps):
            size = rng.choices(range(1, MAX_COMMANDS + 1), weights=self.config.changes)[0]
            commands: list[Command] = []
            while len(commands) < size and (candidates := _further(state, commands)):
                subject = rng.choice(sorted({subject for subject, _ in candidates}))
                commands.append(rng.choice([command for command in candidates if command[0] == subject]))
            after = carry_out(state, commands)
            yield Step(self.render(state), action_text(_in_order_of_facts(commands)), self.render(after))
            state = after

    @classmethod
    def words(cls) -> list[str]:
        texts = [*COMMANDS, *VALUES, *(value for values in VALUES.values() for value in values), SEPARATOR, "and"]
        return list(dict.fromkeys(word for text in texts for word in text.split()))
