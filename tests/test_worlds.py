"""The household world against an enumeration of its own actions and rules written out by hand; what `collect` promises,
read back from the files that it wrote."""

import json
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from random import Random

import pytest
from collected import digests, read

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.settings import compose
from swirl_nemo.worlds.household import MAX_COMMANDS, OBJECTS, SEPARATOR, Household, parse_state

START = "you hall . cup table . book shelf . key hand . ball chest . door open . fridge shut . chest open . lamp on"


SMALL = [f"world.{split}={rows}" for split, rows in {"labelled": 60, "unlabelled": 300, "validation": 20}.items()]
SMALL += ["world.test=50", "world.test_combinations=20"]


def configure(out: Path, *overrides: str) -> CollectConfig:
    return compose(["world=household", f"out={out}", *SMALL, *overrides], "collect", CollectConfig)


HOUSEHOLD = Household(configure(Path("unused")).world)


def states(count: int, seed: int):
    return (HOUSEHOLD.reset("household", Random(f"{seed}/{index}")) for index in range(count))


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("household")
    collect(configure(out))
    return out


@pytest.mark.parametrize(
    ("action", "changes"),
    [
        ("go to kitchen", {"you": "kitchen"}),
        ("move book to hand", {"book": "hand"}),
        ("move key to bench", {"key": "bench"}),
        ("move book to bench", {"book": "bench"}),  # straight from the shelf of the same room
        ("set lamp off", {"lamp": "off"}),
        ("set door shut and set lamp off", {"door": "shut", "lamp": "off"}),
        ("go to bedroom and move key to bench", {"you": "bedroom", "key": "bench"}),
        ("move key to bench and go to bedroom", {"you": "bedroom", "key": "bench"}),  # in any order
        (
            "go to kitchen and set lamp off and move book to hand",
            {"you": "kitchen", "lamp": "off", "book": "hand"},
        ),
    ],
)
def test_an_action_changes_the_facts_that_it_names_and_no_other(action, changes):
    before = parse_state(START)
    after = HOUSEHOLD.step(before, action)
    assert after == {**before, **changes}
    assert HOUSEHOLD.render(before) == START, "step must leave the given state as it is"


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ({}, "move cup to hand"),  # it is in another room
        ({}, "move book to bed"),  # the bed is
        ({}, "set lamp on"),  # it is on
        ({}, "move book to shelf"),  # it lies there
        ({}, "set fridge open"),  # not from the hall
        ({}, "move book to hand and move book to bench"),  # one subject twice
        ({}, "go to bedroom and move ball to hand and set lamp off"),  # the ball is in the kitchen
        ({"door": "shut"}, "go to kitchen"),
        ({"you": "bedroom"}, "go to kitchen"),  # the hall lies between
        ({"you": "kitchen", "cup": "chest"}, "move cup to fridge"),  # shut
        (
            {"you": "kitchen", "cup": "chest"},
            "set fridge open and move cup to fridge",
        ),  # it is shut when both are begun
        ({}, "go to bedroom and move key to chest"),  # so is the chest out of reach
        ({"ball": "bench"}, "move book to hand and move ball to hand"),  # two hands, one of them full
        ({"you": "kitchen", "chest": "shut"}, "move ball to hand"),  # out of reach in there
        ({"cup": "hand"}, "move book to hand"),  # two hands
        ({"cup": "hand"}, "move book to bench"),  # and none to carry it over with
        ({}, "move lamp to shelf"),
        ({}, "go to kitchen and"),
        ({}, ""),
    ],
)
def test_what_cannot_be_done_is_refused_and_leads_nowhere(state, action):
    before = {**parse_state(START), **state}
    assert action not in HOUSEHOLD.legal_actions(before)
    with pytest.raises(ValueError, match="household: .* is not possible"):
        HOUSEHOLD.step(before, action)


def test_actions_between_two_states_are_those_that_the_enumeration_finds():
    """Every legal action of a state, carried out, against the inverse computed from x and y alone."""
    several = 0
    for state in states(8, seed=1):
        x = HOUSEHOLD.render(state)
        leading: dict[str, set[str]] = {}
        for action in HOUSEHOLD.legal_actions(state):
            leading.setdefault(HOUSEHOLD.render(HOUSEHOLD.step(state, action)), set()).add(action)
        for y, actions in leading.items():
            found = HOUSEHOLD.actions_between(x, y)
            assert len(found) == len(set(found)) and set(found) == actions
        several += sum(len(actions) > 1 for actions in leading.values())
        far = [y for y in map(HOUSEHOLD.render, states(50, seed=2)) if y not in leading]
        assert far and all(HOUSEHOLD.actions_between(x, y) == [] for y in far)
    assert several, "no pair with several actions was met"


def test_of_several_orders_the_one_of_the_facts_comes_first():
    after = START.replace("door open", "door shut").replace("lamp on", "lamp off")
    expected = ["set door shut and set lamp off", "set lamp off and set door shut"]
    assert HOUSEHOLD.actions_between(START, after) == expected
    # The fridge cannot be opened from where the agent was.
    assert HOUSEHOLD.actions_between(START, after.replace("fridge shut", "fridge open")) == []


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "cup",
        START + " .",
        START.replace("cup table", "cup moon"),
        START.replace("cup table . ", ""),
        START.replace("cup table . book shelf", "book shelf . cup table"),
        START.replace("cup table", "cup  table"),
        START.replace("lamp on", "lamp on off"),
    ],
)
def test_malformed_states_have_no_action_between_them(broken):
    after = START.replace("lamp on", "lamp off")
    assert HOUSEHOLD.actions_between(START, after) == ["set lamp off"]
    assert HOUSEHOLD.actions_between(broken, after) == HOUSEHOLD.actions_between(START, broken) == []


def test_first_states_obey_the_rules_and_depend_on_the_generator_alone():
    for state in states(300, seed=3):
        assert parse_state(HOUSEHOLD.render(state)) == state
        assert sum(state[thing] == "hand" for thing in OBJECTS) <= 2
    assert list(states(5, seed=3)) == list(states(5, seed=3)) != list(states(5, seed=4))


def test_steps_of_an_episode_follow_each_other_and_are_legal():
    for episode in range(20):
        steps = list(HOUSEHOLD.episode("household", Random(episode)))
        assert len(steps) == HOUSEHOLD.config.episode_steps
        assert all(one.y == other.x for one, other in zip(steps, islice(steps, 1, None), strict=False))
        for step in steps:
            assert HOUSEHOLD.render(HOUSEHOLD.step(parse_state(step.x), step.z)) == step.y
            assert HOUSEHOLD.actions_between(step.x, step.y)[0] == step.z


def test_every_change_is_named_in_the_action_and_nothing_else_is(collected):
    sizes = set()
    for row in read(collected / "test.jsonl"):
        facts = zip(row["x"].split(SEPARATOR), row["y"].split(SEPARATOR), strict=True)
        changed = [new.split() for old, new in facts if old != new]
        commands = row["z"].split(" and ")
        sizes.add(len(commands))
        assert len(changed) == len(commands)
        for subject, value in changed:
            naming = [command for command in commands if {subject, value} - {"you"} <= set(command.split())]
            assert len(naming) == 1, f"{row['z']!r} does not name {subject} {value}"
    assert sizes == set(range(1, MAX_COMMANDS + 1))


def test_tokenizer_reads_back_what_it_writes(collected):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(collected / "tokenizer", local_files_only=True)
    assert len(tokenizer) < 80
    for row in read(collected / "test.jsonl"):
        for text in (row["x"], row["z"], row["y"], ""):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in tokens and len(tokens) <= 40
            assert tokenizer.decode(tokens) == text
    rng = Random(0)
    for _ in range(200):
        tokens = rng.choices(range(len(tokenizer)), k=rng.randrange(30))
        assert tokenizer.encode(tokenizer.decode(tokens), add_special_tokens=False) == tokens


def test_the_shipped_prompts_and_lengths_fit_the_rows(collected):
    from swirl_nemo.data.prompts import Prompter, load_tokenizer
    from swirl_nemo.data.transitions import TransitionFile
    from swirl_nemo.roles import ROLES

    data = compose(["data=household"]).data
    prompter = Prompter(load_tokenizer(collected / "tokenizer"), data, seed=0)
    for transition in TransitionFile(collected / "test.jsonl", limit=None):
        for name, role in ROLES.items():
            assert len(prompter.target(role, transition)) <= getattr(data, name).max_length
            assert prompter._tokenizer.unk_token_id not in prompter.prompt(role, transition)


def test_splits_have_their_counts_and_share_no_episode_no_state_and_no_transition(collected):
    counts = {"test": 50, "validation": 20, "test_combinations": 20, "labelled": 60, "unlabelled": 300}
    rows = {split: read(collected / f"{split}.jsonl") for split in counts}
    assert {split: len(split_rows) for split, split_rows in rows.items()} == counts
    for one, other in combinations(rows.values(), 2):
        assert {row["episode"] for row in one}.isdisjoint(row["episode"] for row in other)
        assert {row[f] for row in one for f in ("x", "y")}.isdisjoint(row[f] for row in other for f in ("x", "y"))
    every = [row for split_rows in rows.values() for row in split_rows]
    assert all(list(row) == ["id", "x", "z", "y", "world", "episode", "t"] for row in every)
    assert len({row["id"] for row in every}) == len({(row["x"], row["y"]) for row in every}) == len(every)
    description = json.loads((collected / "collect.json").read_text())
    assert description["rows"] == counts and set(description["in_two_splits"].values()) == {0}
    assert sum(description["words"]["x"].values()) == len(every)


def test_actions_of_unlabelled_rows_are_kept_apart(collected):
    rows, hidden = read(collected / "unlabelled.jsonl"), read(collected / "unlabelled_actions.jsonl")
    assert all(row["z"] is None for row in rows)
    assert [row["id"] for row in rows] == [row["id"] for row in hidden]
    for row, action in zip(rows, hidden, strict=True):
        assert action["z"] in HOUSEHOLD.actions_between(row["x"], row["y"])


def test_held_out_combinations_are_never_labelled_and_always_in_their_test(collected):
    description = json.loads((collected / "collect.json").read_text())
    held_out = {tuple(pair.split()) for pair in description["held_out_combinations"]}
    assert len(held_out) == 4

    def pairs(action: str) -> set[tuple[str, str]]:
        words = [command.split() for command in action.split(" and ")]
        return {(command[1], command[3]) for command in words if command[0] == "move" and command[3] != "hand"}

    assert not any(pairs(row["z"]) & held_out for row in read(collected / "labelled.jsonl"))
    assert all(pairs(row["z"]) & held_out for row in read(collected / "test_combinations.jsonl"))
    met = set().union(*(pairs(row["z"]) for row in read(collected / "unlabelled_actions.jsonl")))
    assert held_out <= met, "what is never labelled must be there to learn from without labels"


def test_the_same_seed_writes_the_same_bytes_and_more_labels_leave_the_held_out_splits(collected, tmp_path):
    collect(configure(tmp_path / "again"))
    collect(configure(tmp_path / "more", "world.labelled=90"))
    collect(configure(tmp_path / "other", "seed=1"))
    assert digests(tmp_path / "again") == digests(collected)
    for split in ("test", "validation", "test_combinations"):
        assert (tmp_path / "more" / f"{split}.jsonl").read_bytes() == (collected / f"{split}.jsonl").read_bytes()
        assert (tmp_path / "other" / f"{split}.jsonl").read_bytes() != (collected / f"{split}.jsonl").read_bytes()


def test_labels_of_a_pool_have_verbs_by_turns_and_leave_the_held_out_splits(collected, tmp_path):
    verbs = {}
    for pool in (0, 1, 4):
        out = tmp_path / str(pool)
        collect(configure(out, f"world.label_pool={pool}"))
        verbs[pool] = Counter(row["z"].split()[0] for row in read(out / "labelled.jsonl"))
        assert digests(out, "test.jsonl", "validation.jsonl") == digests(collected, "test.jsonl", "validation.jsonl")
    assert all(counts.total() == 60 for counts in verbs.values()) and verbs[0] == verbs[1]
    assert set(verbs[4].values()) == {20} != set(verbs[1].values()), "go, move, set"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world.label_pool=-1", r"world\.label_pool=-1: .*: set it to 0 or more"),
        ("world.labelled=-1", r"world\.labelled=-1: .*: set it to 0 or more"),
        ("world.episode_steps=0", r"world\.episode_steps=0: .*: set it to 1 or more"),
        (
            "world.held_out_combinations=99",
            r"world\.held_out_combinations=99: household can hold out 24 comb.*",
        ),
        ("world.held_out_tasks=1", r"world\.held_out_tasks=1: household can hold out 0 tasks: ask for at most as many"),
        ("world.held_out_combinations=0", r"world\.test_combinations=20: none of the combinations is held out: .*"),
        ("world.max_episodes=3", r"world\.max_episodes=3: they gave \d+ of 50 test rows: raise .*"),
        ("world.changes=[1,1]", r"world\.changes=\[1.0, 1.0\]: give 3 weights, .*"),
        ("world.changes=[0,0,0]", r"world\.changes=\[0.0, 0.0, 0.0\]: give 3 weights, .*"),
        ("world.name=moon", r"world\.name=moon: there is no such world: choose one of .*household.*"),
    ],
)
def test_settings_that_cannot_be_met_are_one_line_and_write_nothing(tmp_path, override, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        collect(configure(tmp_path / "out", override))
    assert not [path for path in tmp_path.rglob("*.*") if path.name != "episodes.jsonl"]


def test_a_mistyped_key_or_type_is_refused():
    for override in ("world.labeled=3", "world.labelled=many", "sead=1", "world=moon"):
        with pytest.raises(ValueError, match="^[^\n]*$"):
            compose(["world=household", override], "collect", CollectConfig)
