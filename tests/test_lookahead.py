"""Rolling forward and planning with the world's own dynamics in the model's place: what they give is known then."""

import json
import weakref
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest

from swirl_nemo.collection import CollectConfig
from swirl_nemo.data.transition import Transition
from swirl_nemo.evaluation import lookahead
from swirl_nemo.settings import compose
from swirl_nemo.worlds.household import SEPARATOR, Household, parse_state

HOUSEHOLD = Household(compose(["world=household"], "collect", CollectConfig).world)
PROMPTS = SimpleNamespace(
    prompt=lambda role, row: f"{row.x} > {row.z}",
    decode=lambda tokens: tokens,
    same_state=lambda one, other: one == other,
)
ALONE = SimpleNamespace(  # one process, which nobody asks to stop
    share=lambda items: items, gather=lambda items: items, between_batches=lambda: None, prompter=PROMPTS
)


def episode(seed: int, steps: int) -> list[Transition]:
    state, rng, rows = HOUSEHOLD.reset("household", Random(seed)), Random(f"{seed}/actions"), []
    for t in range(steps):
        action = HOUSEHOLD.sample_action(state, rng)
        after = HOUSEHOLD.step(state, action)
        x, y = HOUSEHOLD.render(state), HOUSEHOLD.render(after)
        rows.append(Transition(f"{seed}:{t}", x, action, y, "household", str(seed), t))
        state = after
    return rows


def perfect(session, rows: list[Transition]) -> list[str]:
    return [HOUSEHOLD.render(HOUSEHOLD.step(parse_state(row.x), row.z)) for row in rows]


def lazy(session, rows: list[Transition]) -> list[str]:
    return [row.x for row in rows]


def test_stretches_have_no_gap_and_no_row_twice():
    one, two = episode(1, 7), episode(2, 5)
    rows = [*one, *two[:2], *two[3:]]  # a step is missing in the second
    found = [[row.id for row in stretch] for stretch in lookahead.consecutive(rows, 3)]
    assert found == [["1:0", "1:1", "1:2"], ["1:3", "1:4", "1:5"]]
    assert [[row.id for row in s] for s in lookahead.consecutive(rows, 2)][-2:] == [["2:0", "2:1"], ["2:3", "2:4"]]
    joined = [replace(row, episode="1") for row in (one[0], *two)]  # of one name, but not each other's next state
    assert [s[0].id for s in lookahead.consecutive(joined, 5)] == ["2:0"]
    parted = [one[0], replace(one[1], episode="2")]  # each other's next state, but of two episodes
    assert lookahead.consecutive(parted, 2) == []


def test_a_perfect_model_stays_right_and_a_lazy_one_stays_where_it_was(tmp_path, monkeypatch):
    path = tmp_path / "episodes.jsonl"
    rows = [row for seed in range(6) for row in episode(seed, 4)]
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    monkeypatch.setattr(lookahead, "predicted", perfect)
    right, samples = lookahead.horizon(ALONE, str(path), 4)
    assert [(row["x"], row["z"], row["prediction"]) for row in samples] == [(r.x, r.z, r.y) for r in rows]
    assert [(step["k"], step["exact_match"], step["token_f1"]) for step in right] == [(k, 1, 1) for k in (1, 2, 3, 4)]
    monkeypatch.setattr(lookahead, "predicted", lazy)
    left, samples = lookahead.horizon(ALONE, str(path), 4)
    assert not any(row["correct"] for row in samples[::4])
    assert all(step["token_f1"] == step["unmoved/token_f1"] < 1 for step in left)
    assert left[0]["exact_match"] == 0
    with pytest.raises(ValueError, match=r"^eval.horizon=5: .* has no 5 steps in a row: lower eval.horizon$"):
        lookahead.horizon(ALONE, str(path), 5)


def test_an_error_is_carried_on(tmp_path, monkeypatch):
    """The second prediction starts from the first, not from the recorded state."""
    path, rows = tmp_path / "episodes.jsonl", episode(3, 2)
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    seen = []
    monkeypatch.setattr(lookahead, "predicted", lambda session, part: seen.extend(part) or [f"<{part[0].x}>"])
    lookahead.horizon(ALONE, str(path), 2)
    assert [(row.x, row.z) for row in seen] == [(rows[0].x, rows[0].z), (f"<{rows[0].x}>", rows[1].z)]


def test_it_can_be_stopped_before_each_step_forward(tmp_path, monkeypatch):
    path, looks, done = tmp_path / "episodes.jsonl", iter([None, None, SystemExit(0)]), []
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in episode(3, 4)))
    monkeypatch.setattr(lookahead, "predicted", lambda session, part: done.append(part[0].z) or ["y"])

    def look() -> None:
        if asked := next(looks):
            raise asked

    with pytest.raises(SystemExit):
        lookahead.horizon(SimpleNamespace(**vars(ALONE) | {"between_batches": look}), str(path), 4)
    assert done == [row.z for row in episode(3, 4)[:2]]


def test_predictions_become_history(tmp_path, monkeypatch):
    """What was predicted takes the place of what was, the latest last, and no more of it than is asked for."""
    path, rows = tmp_path / "episodes.jsonl", episode(4, 4)
    first = vars(rows[0]) | {"history": ["a", "b", "c"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, *map(vars, rows[1:]))))
    seen = []
    monkeypatch.setattr(lookahead, "predicted", lambda session, part: seen.extend(part) or [f"p{len(seen)}"])
    for count, expected in {
        0: [(), (), (), ()],
        1: [("c",), (rows[0].x,), ("p1",), ("p2",)],
        2: [("b", "c"), ("c", rows[0].x), (rows[0].x, "p1"), ("p1", "p2")],
    }.items():
        seen.clear()
        lookahead.horizon(ALONE, str(path), 4, count)
        assert [row.history for row in seen] == expected


def test_a_problems_way_leads_to_its_goal():
    for problem in lookahead.problems(HOUSEHOLD, ["household"], 20):
        state = HOUSEHOLD.reset(problem.task, Random(problem.seed))
        assert HOUSEHOLD.render(state) != problem.goal and len(problem.way) == lookahead.DEPTH
        for action in problem.way:
            state = HOUSEHOLD.step(state, action)
        assert HOUSEHOLD.render(state) == problem.goal


class Ways:
    """States are numbers: on "line" they go up, on "circle" they are back after three steps, "short" ends after two."""

    name = "ways"
    reset = staticmethod(lambda task, rng: (task, 0))
    render = staticmethod(lambda state: str(state[1] % (3 if state[0] == "circle" else 100)))
    sample_action = staticmethod(lambda state, rng: None if state == ("short", 2) else "on")
    step = staticmethod(lambda state, action: (state[0], state[1] + 1))


def test_a_way_that_ends_early_or_where_it_began_is_no_problem():
    found = lookahead.problems(Ways, ["circle", "short", "line"], 5)
    assert [(problem.task, problem.way, problem.goal) for problem in found] == [("line", ["on"] * 3, "3")] * 5
    with pytest.raises(ValueError, match=r"^eval.plans=2: ways gave only 0 problems: lower eval.plans$"):
        lookahead.problems(Ways, ["circle", "short"], 2)


def nothing():
    """What is asked before each step, where nobody wants it to stop."""


def follow(choices: list[lookahead.Choice]) -> list[int]:
    return [c.actions.index(c.problem.way[len(c.problem.taken)]) for c in choices]


def test_who_follows_the_way_arrives_and_who_does_not_is_counted_as_lost():
    problems = lookahead.problems(HOUSEHOLD, ["household"], 10)
    assert lookahead.success(HOUSEHOLD, problems, follow, nothing) == 1
    astray = [replace(problem, taken=[]) for problem in problems]
    reached = lookahead.success(HOUSEHOLD, astray, stray, nothing)
    ends = [lookahead._stand(HOUSEHOLD, problem) for problem in astray]
    goals = [HOUSEHOLD.render(end) == problem.goal for end, problem in zip(ends, astray, strict=True)]
    assert reached == sum(goals) / 10 < 1


def stray(choices: list[lookahead.Choice]) -> list[int]:
    steps = [c.problem.way[len(c.problem.taken)] for c in choices]
    return [int(c.actions[0] == step) % len(c.actions) for c, step in zip(choices, steps, strict=True)]


def test_a_perfect_model_plans_as_the_oracle_does_and_better_than_chance(tmp_path, monkeypatch):
    description = tmp_path / "collect.json"
    settings = vars(HOUSEHOLD.config)
    description.write_text(json.dumps({"world": "household", "settings": settings, "held_out_tasks": []}))
    data, looks = SimpleNamespace(fact_separator=SEPARATOR), []
    session = SimpleNamespace(cfg=SimpleNamespace(data=data), between_batches=lambda: looks.append("look"))
    monkeypatch.setattr(lookahead, "predicted", perfect)
    shares = lookahead.planning(session, str(description), 30)
    assert len(looks) == 3 * lookahead.DEPTH  # each picker can be stopped before each of its steps
    assert shares["fwm"] == shares["oracle"] > 0.3 + shares["random"]
    monkeypatch.setattr(lookahead, "predicted", lazy)
    again = lookahead.planning(session, str(description), 30)
    assert again["fwm"] < shares["oracle"] == again["oracle"]
    assert len(looks) == 4 * lookahead.DEPTH  # chance and the simulator are tried once
    seen = weakref.ref(session.between_batches)
    del session
    assert seen() is None  # and keep nothing of the session alive


def test_likeness_counts_facts():
    assert lookahead.common_facts("a\nb", "a\nb", "\n") == 1
    assert lookahead.common_facts("a\nb", "a\nc\nd", "\n") == pytest.approx(0.4)
    assert lookahead.common_facts("a\na", "a\nb", "\n") == 0.5


def test_facts_that_were_not_shown_stay_as_they_are(monkeypatch):
    """Of a trimmed state the model predicts a part; the rest is the state's own."""
    problem = lookahead.Problem("t", "s", [], "a 1\nb 2\nc 3")
    choice = lookahead.Choice(problem, "a 0\nb 2\nc 3", ["set a", "set b"], ["a 0", "b 2"])
    session = SimpleNamespace(cfg=None)
    monkeypatch.setattr(lookahead, "predicted", lambda session, rows: [row.x.replace("0", "1") for row in rows])
    (outcomes,) = lookahead._imagined(session, "w", [choice], "\n")
    assert [sorted(text.split("\n")) for text in outcomes] == [["a 1", "b 2", "c 3"], ["a 0", "b 2", "c 3"]]
    assert lookahead.closest([choice], [outcomes], "\n") == [0]
