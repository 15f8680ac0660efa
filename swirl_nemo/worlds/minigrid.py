"""The real MiniGrid (Chevalier-Boisvert et al. 2023, "Minigrid & Miniworld"; Python package minigrid): an agent on a
grid that turns and walks, carries balls, boxes and keys, and opens doors.

A state is the whole grid, a fact a line. A cell is a letter for its column and a digit for its row, from a0 at the top
left; `ahead` is the cell before the agent. What an action can change comes first, then what stays: goals, the
far corner of the outer wall, and the rows of inner wall or lava in a column that has some:

    agent b3
    facing east
    ahead c3
    door yellow d3 locked
    key yellow held
    goal g6
    corner h7
    wall d12456

An action is one to three of MiniGrid's moves, each of which must change something: "right forward pickup". Missions,
rewards and time are not shown, for nothing that a state shows depends on them: an episode goes on after its mission.
"""

import os
import re
from dataclasses import dataclass, field
from functools import cached_property, reduce
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import MISSING

from .base import Step, World, WorldConfig

if TYPE_CHECKING:
    from minigrid.core.grid import Grid
    from minigrid.core.world_object import WorldObj
    from minigrid.minigrid_env import MiniGridEnv

SEPARATOR = "\n"
MAX_MOVES = 3
MOVES = ("left", "right", "forward", "pickup", "drop", "toggle")  # in the order of minigrid.core.actions.Actions
HANDLING = MOVES[3:]
FACINGS = ("east", "south", "west", "north")
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
COLUMNS = "abcdefghijklmnop"
COLOURS = ("blue", "green", "grey", "purple", "red", "yellow")
PORTABLE = ("ball", "box", "key")
THINGS = ("door", *PORTABLE)
OWN = ("agent", "facing", "ahead")  # facts of the agent
STAYS = ("goal", "wall", "lava")
COLOUR, CELL = f"(?:{'|'.join(COLOURS)})", f"[{COLUMNS}][0-9]"
FACT = re.compile(
    rf"(?:agent|ahead) {CELL}|facing (?:{'|'.join(FACINGS)})|door {COLOUR} {CELL} (?:open|shut|locked)"
    rf"|(?:{'|'.join(PORTABLE)}) {COLOUR} (?:{CELL}|held|gone)|(?:goal|corner) {CELL}|(?:wall|lava) [{COLUMNS}][0-9]+"
)
# "MiniGrid-{task}-v0": up to ten rows, nothing that moves by itself, no box with a thing in it, and doors inside alone.
TASKS = (
    *("DoorKey-5x5", "DoorKey-6x6", "DoorKey-8x8", "Unlock", "UnlockPickup", "BlockedUnlockPickup"),
    *("Fetch-5x5-N2", "Fetch-6x6-N2", "Fetch-8x8-N3", "GoToObject-6x6-N2", "GoToObject-8x8-N2"),
    *("PutNear-6x6-N2", "PutNear-8x8-N3", "RedBlueDoors-6x6", "RedBlueDoors-8x8", "KeyCorridorS3R1", "KeyCorridorS3R2"),
    *("Empty-Random-5x5", "Empty-Random-6x6", "LavaGapS5", "LavaGapS6", "LavaGapS7", "SimpleCrossingS9N1"),
    *("SimpleCrossingS9N2", "LavaCrossingS9N1", "LavaCrossingS9N2"),
)


class Room(NamedTuple):
    """What all states of an episode share. `env` stands at whichever of them was loaded last."""

    env: "MiniGridEnv"
    things: tuple["WorldObj", ...]  # doors and what can be carried, in the order of their facts
    bare: tuple["WorldObj | None", ...]  # the grid without them, row by row
    frame: tuple[str, ...]  # the facts of `bare`
    planned: dict["State", str | None]  # what the gold policy does, in the states of its plans


@dataclass(frozen=True)
class State:
    room: Room = field(compare=False, repr=False)
    agent: tuple[int, int]
    facing: int
    values: tuple[str, ...]  # of the room's things: a cell, "held" or "gone"; of a door its cell and how it stands

    @cached_property
    def outcomes(self) -> dict["State", list[str]]:
        """Every other state that an action leads to, with all actions that do: the shortest first, then as in MOVES."""
        found: dict[State, list[str]] = {}
        ends: list[tuple[tuple[str, ...], State]] = [((), self)]
        for _ in range(MAX_MOVES):
            further = ((names, name, move(end, name)) for names, end in ends for name in MOVES)
            ends = [((*names, name), after) for names, name, after in further if after is not None]
            for names, after in ends:
                if after != self:
                    found.setdefault(after, []).append(" ".join(names))
        return found


def load(state: State) -> "MiniGridEnv":
    """The environment of the state's room, at that state."""
    env, things, bare = state.room[:3]
    env.agent_pos, env.agent_dir, env.carrying, env.step_count = state.agent, state.facing, None, 0
    env.grid.grid = list(bare)
    for thing, value in zip(things, state.values, strict=True):
        place, _, how = value.partition(" ")
        if place == "held":
            env.carrying = thing
        elif place != "gone":
            env.grid.set(*_position(place), thing)
        if how:
            thing.is_open, thing.is_locked = how == "open", how == "locked"
    return env


def _read(room: Room) -> State:
    env = room.env
    cells, values = env.grid.grid, []
    for thing in room.things:
        value = "held" if thing is env.carrying else "gone"
        if thing in cells:
            row, column = divmod(cells.index(thing), env.width)
            value = _cell(column, row)
        if thing.type == "door":
            value += " open" if thing.is_open else " locked" if thing.is_locked else " shut"
        values.append(value)
    return State(room, (int(env.agent_pos[0]), int(env.agent_pos[1])), int(env.agent_dir), tuple(values))


def _cell(x: int, y: int) -> str:
    return f"{COLUMNS[x]}{y}"


def _position(cell: str) -> tuple[int, int]:
    return COLUMNS.index(cell[0]), int(cell[1])


def _room(env: "MiniGridEnv", things: list["WorldObj"]) -> Room:
    env.gen_obs = dict  # the agent's own view, most of a step's time: states are of the whole grid
    bare = tuple(None if cell in things else cell for cell in env.grid.grid)
    return Room(env, tuple(things), bare, _frame(env.grid), {})


def _frame(grid: "Grid") -> tuple[str, ...]:
    def rows(kind: str, x: int, top: int) -> list[int]:
        cells = ((y, grid.get(x, y)) for y in range(top, grid.height - top))
        return [y for y, cell in cells if cell is not None and cell.type == kind]

    facts = [f"goal {_cell(x, y)}" for x in range(grid.width) for y in rows("goal", x, 0)]
    facts.append(f"corner {_cell(grid.width - 1, grid.height - 1)}")
    for kind in ("wall", "lava"):
        columns = [(COLUMNS[x], rows(kind, x, 1)) for x in range(1, grid.width - 1)]
        facts += [f"{kind} {letter}{''.join(map(str, inner))}" for letter, inner in columns if inner]
    return tuple(facts)


def render(state: State) -> str:
    x, y = state.agent
    right, down = STEPS[state.facing]
    facts = [f"agent {_cell(x, y)}", f"facing {FACINGS[state.facing]}", f"ahead {_cell(x + right, y + down)}"]
    facts += [f"{it.type} {it.color} {value}" for it, value in zip(state.room.things, state.values, strict=True)]
    return SEPARATOR.join([*facts, *state.room.frame])


def parse_state(text: str) -> State | None:
    """The state that `text` renders, in a room built anew, or None if it renders none."""
    lines = text.split(SEPARATOR)
    facts = [line.split(" ") for line in lines]
    once = [fact for fact in facts if fact[0] in (*OWN, "corner")]
    if not all(FACT.fullmatch(line) for line in lines) or [kind for kind, *_ in once] != [*OWN, "corner"]:
        return None
    spot, facing, _, corner = (value for _, value in once)
    spots = re.findall(f"[{COLUMNS}][0-9]+", text)  # of wall and lava several rows at once
    if corner[0] < "c" or corner[1] < "2" or any(it[0] > corner[0] or max(it[1:]) > corner[1] for it in spots):
        return None
    things = [fact for fact in facts if fact[0] in THINGS]
    room = _build(corner, [fact for fact in facts if fact[0] in STAYS], [(kind, colour) for kind, colour, *_ in things])
    state = State(room, _position(spot), FACINGS.index(facing), tuple(" ".join(value) for _, _, *value in things))
    grid = load(state).grid
    under = grid.get(*state.agent)
    sound = (under is None or under.can_overlap()) and not _burning(state)
    sound &= all(old is None or old is new for old, new in zip(room.bare, grid.grid, strict=True))
    # What is told twice, or in another order, is not read back as it was written.
    return state if sound and _read(room) == state and render(state) == text else None


def _build(corner: str, stays: list[list[str]], things: list[tuple[str, str]]) -> Room:
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
    from minigrid.core.mission import MissionSpace
    from minigrid.core.world_object import WorldObj
    from minigrid.minigrid_env import MiniGridEnv

    def make(kind: str, colour: str = "grey") -> "WorldObj":
        return WorldObj.decode(OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], 0)

    right, bottom = _position(corner)
    env = MiniGridEnv(MissionSpace(mission_func=lambda: ""), width=right + 1, height=bottom + 1)
    env.grid.wall_rect(0, 0, right + 1, bottom + 1)
    for kind, (column, *rows) in stays:
        for row in rows:
            env.grid.set(*_position(column + row), make(kind))
    return _room(env, [make(*thing) for thing in things])


def _burning(state: State) -> bool:
    under = state.room.bare[state.agent[1] * state.room.env.width + state.agent[0]]
    return under is not None and under.type == "lava"


def move(state: State, name: str) -> State | None:
    """The state after one of MOVES, or None if it changes nothing or ends in lava, where nothing follows."""
    load(state).step(MOVES.index(name))
    after = _read(state.room)
    return None if after == state or _burning(after) else after


def plan(state: State) -> list[str]:
    """The moves of a shortest way to fulfil the environment's mission; [] if there is none."""
    ways: dict[State, list[str]] = {state: []}
    for place in (queue := [state]):
        for index, name in enumerate((*MOVES, "done")):  # "done" changes nothing; missions that say "go to" ask for it
            reward = load(place).step(index)[1]
            if reward > 0:
                return ways[place] if name == "done" else [*ways[place], name]
            after = _read(state.room)
            if after not in ways and not _burning(after):
                ways[after] = [*ways[place], name]
                queue.append(after)
    return []


@dataclass
class MiniGridConfig(WorldConfig):
    tasks: list[str] = MISSING  # layouts, of TASKS
    moves: list[float] = MISSING  # probability of an action of one, two, three moves


class MiniGrid(World[MiniGridConfig]):
    name = "minigrid"
    settings = MiniGridConfig
    packages = ("minigrid",)
    combinations = (
        *(f"{verb} {kind} {colour}" for verb in ("pickup", "drop") for kind in PORTABLE for colour in COLOURS),
        *(f"toggle {kind} {colour}" for kind in ("box", "door") for colour in COLOURS),
    )

    def tasks(self) -> list[str]:
        return list(self.config.tasks)

    def check(self) -> None:
        config = self.config
        _import()
        if unknown := sorted(set(config.tasks) - set(TASKS)):
            raise ValueError(f"world.tasks: {unknown[0]} is not one of {', '.join(TASKS)}: choose from these")
        if not config.tasks:
            raise ValueError("world.tasks=[]: there is nothing to play: give a layout")
        moves = list(config.moves)
        if len(moves) != MAX_MOVES or min(moves) < 0 or not sum(moves):
            raise ValueError(
                f"world.moves={moves}: give {MAX_MOVES} weights, none negative, not all zero: "
                "how often an action has one move, two, three"
            )

    def reset(self, task: str, rng: Random) -> State:
        env = _import().make(f"MiniGrid-{task}-v0").unwrapped
        env.reset(seed=rng.getrandbits(31))
        things = [cell for cell in env.grid.grid if cell is not None and cell.type in THINGS]
        return _read(_room(env, sorted(things, key=lambda thing: (thing.type, thing.color))))

    def legal_actions(self, state: State) -> list[str]:
        return [action for actions in state.outcomes.values() for action in actions]

    def step(self, state: State, action: str) -> State:
        for after, actions in state.outcomes.items():
            if action in actions:
                return after
        raise ValueError(f"minigrid: {action!r} is not possible in {render(state)!r}: see legal_actions")

    def render(self, state: State) -> str:
        return render(state)

    def sample_action(self, state: State, rng: Random) -> str | None:
        """Of the actions with one outcome the first alone. What is done to things is drawn before the way to it, so
        that the many ways to walk do not crowd it out.
        """
        first = [actions[0].split() for actions in state.outcomes.values()]
        weights = {len(moves): self.config.moves[len(moves) - 1] for moves in first}
        if not any(weights.values()):
            return None
        size = rng.choices(list(weights), weights=list(weights.values()))[0]
        by_deed: dict[tuple[str, ...], list[str]] = {}
        for moves in first:
            if len(moves) == size:
                deed = tuple(name for name in moves if name in HANDLING)
                by_deed.setdefault(deed, []).append(" ".join(moves))
        return rng.choice(by_deed[rng.choice(sorted(by_deed))])

    def gold_action(self, state: State) -> str | None:
        """The next moves of a shortest plan, three at a time; None at its end."""
        planned = state.room.planned
        if state not in planned:
            place, moves = state, plan(state)
            for start in range(0, len(moves), MAX_MOVES):
                end = reduce(move, moves[start : start + MAX_MOVES], place)
                if end == place:  # for PutNear, a thing that is taken up and put down where it was is put near
                    break
                planned[place] = place.outcomes[end][0]
                place = end
            planned[place] = None
        return planned[state]

    @classmethod
    def actions_between(cls, x: str, y: str) -> list[str]:
        state = parse_state(x)
        found = {} if state is None else state.outcomes
        return next((actions for after, actions in found.items() if render(after) == y), [])

    @classmethod
    def combinations_in(cls, step: Step) -> set[str]:
        """Verbs with the things that they were done to, as their facts tell."""
        found = set()
        for old, new in zip(step.x.split(SEPARATOR), step.y.split(SEPARATOR), strict=True):
            if old != new and old.split(" ")[0] not in OWN:
                (kind, colour, before), after = old.split(" ")[:3], new.split(" ")[2]
                found |= {f"{verb} {kind} {colour}" for verb in _verbs(kind, before, after)}
        return found


def _verbs(kind: str, before: str, after: str) -> set[str]:
    """What was done to a thing that was here and is there."""
    verbs = {
        "pickup": kind != "door" and before != "held" and after != "gone",
        "drop": kind != "door" and after != "held" and (before == "held" or after != "gone"),
        "toggle": kind == "door" or after == "gone",
    }
    return {verb for verb, done in verbs.items() if done}


def _import():
    """Gymnasium with MiniGrid's environments. Raises ValueError, one line, where a package is missing."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on standard output
    try:
        import gymnasium
        import minigrid  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"world=minigrid: the Python package {error.name} is missing: install swirl-nemo[worlds]"
        ) from error
    return gymnasium
