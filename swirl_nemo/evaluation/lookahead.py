"""How far the FWM sees: rolled forward on its own predictions, and as the model that a planner asks.

Both are of the FWM that the session holds. The planner is greedy: of a few legal actions it takes the one whose
predicted next state has most facts in common with the goal. Its success stands between that of a picker that draws at
random and of one that asks the simulator itself.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from ..data.images.characters import readable
from ..data.transition import Transition
from ..data.transitions import TransitionFile
from ..roles import FWM
from ..session import Session
from ..worlds import World, find
from .held_out import greedy
from .metrics import token_f1

DEPTH = 3  # steps from a problem's first state to its goal, and as many for the planner
CANDIDATES = 8  # actions to choose from at each step: the one that led to the goal, and others by chance


def figures(session: Session) -> tuple[dict, list[dict]]:
    """{"horizon": ..., "planning": ...}, as far as `eval` asks for them; and rows for samples.jsonl."""
    cfg, found, samples = session.cfg, {}, []
    if cfg.eval.horizon:
        found["horizon"], samples = horizon(session, cfg.data.test_episodes, cfg.eval.horizon, cfg.data.history)
    if cfg.eval.plans:
        found["planning"] = planning(session, cfg.data.collection, cfg.eval.plans)
    return found, samples[: cfg.eval.samples]


def horizon(session: Session, path: str, length: int, history: int = 0) -> tuple[list[dict[str, float]], list[dict]]:
    """Figures after k = 1, ..., `length` recorded actions: of states predicted from predicted states, and, as
    "unmoved", of the first state left as it is. Over stretches of `path`, a file of whole episodes, in which no step is
    missing. Of `history` states before, those that were predicted take the place of those that were. And all
    predictions, stretch by stretch, as samples.jsonl has them.

    Raises ValueError where the file has no stretch so long.
    """
    stretches = consecutive(TransitionFile(path, None, history), length)
    if not stretches:
        raise ValueError(f"eval.horizon={length}: {path} has no {length} steps in a row: lower eval.horizon")
    mine = [stretches[i] for i in session.share(range(len(stretches)))]
    states, pasts, found = [stretch[0].x for stretch in mine], [stretch[0].history for stretch in mine], []
    rolled: list[list[dict]] = [[] for _ in mine]
    for k in range(length):
        session.between_batches()
        seen = [replace(s[k], x=x, history=past) for s, x, past in zip(mine, states, pasts, strict=True)]
        pasts = [(*row.history, row.x)[-history:] if history else () for row in seen]
        states = predicted(session, seen)
        for rows, row, state in zip(rolled, seen, states, strict=True):
            rows.append(_sample(session, row, state))
        scored = [
            (session.prompter.same_state(state, s[k].y), token_f1(state, s[k].y), token_f1(s[0].x, s[k].y))
            for s, state in zip(mine, states, strict=True)
        ]
        exact, f1, unmoved = (sum(values) / len(stretches) for values in zip(*session.gather(scored), strict=True))
        found.append({"k": k + 1, "exact_match": exact, "token_f1": f1, "unmoved/token_f1": unmoved})
    return found, [row for rows in session.gather(rolled) for row in rows]


def _sample(session: Session, row: Transition, state: str) -> dict:
    """A prediction from `row`, whose x was itself predicted but in the first step."""
    prompt = session.prompter.decode(session.prompter.prompt(FWM, row))
    shown = {"x": row.x, "z": row.z, "y": row.y, "prompt": prompt, "prediction": state, "target": row.y}
    shown = {name: readable(text) for name, text in shown.items()}
    return {"role": FWM.name, **shown, "correct": session.prompter.same_state(state, row.y)}


def consecutive(rows: Sequence[Transition], length: int) -> list[list[Transition]]:
    """Stretches of `length` rows, none of them in two, each row's state the one before's next state."""
    stretches: list[list[Transition]] = [[]]
    for row in rows:
        follows = stretches[-1] and (stretches[-1][-1].episode, stretches[-1][-1].y) == (row.episode, row.x)
        if len(stretches[-1]) == length:
            stretches.append([])
        elif not follows:
            stretches[-1] = []
        stretches[-1].append(row)
    return [stretch for stretch in stretches if len(stretch) == length]


def predicted(session: Session, rows: list[Transition]) -> list[str]:
    """The FWM's likeliest next state of each row's x and z."""
    size, states = session.cfg.eval.batch, []
    with session.sets.wear(session.set_of(FWM)):
        for start in range(0, len(rows), size):
            states += greedy(session, FWM, rows[start : start + size])
    return states


# planning


@dataclass
class Problem:
    """From the first state of (task, seed) to the state `goal`; `way`: actions that lead there; `taken`: so far."""

    task: str
    seed: str
    way: list[str]
    goal: str
    taken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """What a picker sees: the state with all its facts, and for each action what of it the models are shown."""

    problem: Problem
    state: str
    actions: list[str]
    shown: list[str]


Picker = Callable[[list[Choice]], list[int]]
# By collection, count and separator: no model changes them. In a functools.cache the callback would keep its session
_YARDSTICKS: dict[tuple[str, int, str], dict[str, float]] = {}


def planning(session: Session, collection: str, count: int) -> dict[str, float]:
    """Shares of `count` problems in which each picker reaches the goal within DEPTH steps. `collection`: collect.json
    of the data, which has the world's settings. Every rank does all of it."""
    separator = session.cfg.data.fact_separator
    with _posed(collection, count) as (world, found):

        def by_the_fwm(choices: list[Choice]) -> list[int]:
            return closest(choices, _imagined(session, world.name, choices, separator), separator)

        reached = success(world, found, by_the_fwm, session.between_batches)
    key = (collection, count, separator)
    if key not in _YARDSTICKS:
        _YARDSTICKS[key] = yardsticks(*key, session.between_batches)
    return {"fwm": reached} | _YARDSTICKS[key]


def yardsticks(collection: str, count: int, separator: str, before_step: Callable[[], None]) -> dict[str, float]:
    """The same of a picker by chance and of one that tries each action in the simulator."""
    with _posed(collection, count) as (world, found):
        fresh = [replace(problem, taken=[]) for problem in found]

        def by_trying(choices: list[Choice]) -> list[int]:
            return closest(choices, [_true(world, choice) for choice in choices], separator)

        by_chance = success(world, fresh, lambda choices: [0] * len(choices), before_step)  # they were shuffled
        return {"random": by_chance, "oracle": success(world, found, by_trying, before_step)}


@contextmanager
def _posed(collection: str, count: int) -> Iterator[tuple[World, list[Problem]]]:
    """The world of a collect.json, and problems of its tasks."""
    description = json.loads(Path(collection).read_text())
    kind = find(description["world"])
    with closing(kind(kind.settings(**description["settings"]))) as world:
        tasks = [task for task in world.tasks() if task not in description["held_out_tasks"]]
        yield world, problems(world, tasks, count)


def problems(world: World, tasks: Sequence[str], count: int) -> list[Problem]:
    """Goals that DEPTH actions of the world's own behaviour lead to, none of them where it started."""
    found: list[Problem] = []
    for number in range(20 * count):
        seed = f"plan/{number}"
        rng = Random(f"{seed}/way")
        task = rng.choice(tasks)
        state = world.reset(task, Random(seed))
        first, way = world.render(state), []
        while len(way) < DEPTH and (action := world.sample_action(state, rng)) is not None:
            state = world.step(state, action)
            way.append(action)
        if len(way) == DEPTH and world.render(state) != first:
            found.append(Problem(task, seed, way, world.render(state)))
        if len(found) == count:
            return found
    raise ValueError(f"eval.plans={count}: {world.name} gave only {len(found)} problems: lower eval.plans")


def success(world: World, every: list[Problem], picker: Picker, before_step: Callable[[], None]) -> float:
    """The share of problems solved. The simulator is brought to where a problem stands by doing all again."""
    open_problems = every
    for _ in range(DEPTH):
        before_step()
        choices = [choice for problem in open_problems if (choice := _choice(world, problem))]
        for choice, pick in zip(choices, picker(choices), strict=True):
            choice.problem.taken.append(choice.actions[pick])
        open_problems = [c.problem for c in choices if world.render(_stand(world, c.problem)) != c.problem.goal]
    solved = [problem for problem in every if world.render(_stand(world, problem)) == problem.goal]
    return len(solved) / len(every)


def closest(choices: list[Choice], outcomes: list[list[str]], separator: str) -> list[int]:
    """For each choice the action whose outcome has most facts in common with the goal (F1); the first of equals."""
    picks = []
    for choice, states in zip(choices, outcomes, strict=True):
        likeness = [common_facts(state, choice.problem.goal, separator) for state in states]
        picks.append(max(range(len(states)), key=likeness.__getitem__))
    return picks


def common_facts(one: str, other: str, separator: str) -> float:
    ours, theirs = Counter(one.split(separator)), Counter(other.split(separator))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _stand(world: World, problem: Problem, *further: str):
    state = world.reset(problem.task, Random(problem.seed))
    for action in (*problem.taken, *further):
        state = world.step(state, action)
    return state


def _choice(world: World, problem: Problem) -> Choice | None:
    """None where nothing can be done any more."""
    state, step = _stand(world, problem), len(problem.taken)
    legal = world.legal_actions(state)
    rng = Random(f"{problem.seed}/choice/{step}")
    actions = rng.sample(legal, min(CANDIDATES, len(legal)))
    if problem.taken == problem.way[:step] and problem.way[step] not in actions:
        actions[-1:] = [problem.way[step]]
    rng.shuffle(actions)
    if not actions:
        return None
    return Choice(problem, world.render(state), actions, [world.shown(state, action) for action in actions])


def _true(world: World, choice: Choice) -> list[str]:
    return [world.render(_stand(world, choice.problem, action)) for action in choice.actions]


def _imagined(session: Session, name: str, choices: list[Choice], separator: str) -> list[list[str]]:
    """What the FWM makes of each action: facts that it was not shown stay as they are."""
    rows = [
        Transition(f"{c.problem.seed}/{action}", shown, action, "", name, c.problem.seed, len(c.problem.taken))
        for c in choices
        for action, shown in zip(c.actions, c.shown, strict=True)
    ]
    states = iter(predicted(session, rows))
    outcomes = []
    for choice in choices:
        hidden = [set(choice.state.split(separator)) - set(shown.split(separator)) for shown in choice.shown]
        outcomes.append([separator.join([next(states), *sorted(facts)]) for facts in hidden])
    return outcomes
