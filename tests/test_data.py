"""The data room without tokenizers: transitions files, reading order, batches."""

import json
import random
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from swirl_nemo.data.batch import check_length
from swirl_nemo.data.order import Order
from swirl_nemo.data.transition import Transition
from swirl_nemo.data.transitions import TransitionFile, with_actions

ROW = {"id": "a", "x": "door is shut", "z": "open door", "y": "door is öpen", "world": "w", "episode": "e", "t": 0}
STATES = {"id": "s", "states": ["s0", "s1", "s2"], "world": "w", "episode": "e"}


@pytest.fixture
def written(tmp_path):
    """Writes a file of rows (JSON objects, or lines as they are) and returns its path."""

    def write(*rows: dict | str, end: str = "\n") -> Path:
        path = tmp_path / "transitions.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + end, encoding="utf-8")
        return path

    return write


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


def naively_read(path: Path) -> list[Transition]:
    """The whole file at once, as the format's description reads."""
    transitions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "states" not in row:
            transitions.append(Transition(**row))
            continue
        for t, (x, y) in enumerate(pairwise(row["states"])):
            transitions.append(Transition(f"{row['id']}:{t}", x, None, y, row["world"], row["episode"], t))
    return transitions


def test_rows_and_sequences_read_as_the_format_says(written):
    path = written(ROW, STATES, {**ROW, "id": "b", "z": None, "t": 7}, {**STATES, "id": "r", "states": ["p", "q"]})
    file = TransitionFile(path, None)
    assert list(file) == naively_read(path)
    assert file[1] == Transition("s:0", "s0", None, "s1", "w", "e", 0)
    assert file[2] == Transition("s:1", "s1", None, "s2", "w", "e", 1)
    assert (file[-1], file[1:4]) == (naively_read(path)[-1], naively_read(path)[1:4])
    with pytest.raises(IndexError):
        file[5]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_limit_counts_transitions_not_rows(written, limit):
    path = written(ROW, STATES, ROW)
    file, expected = TransitionFile(path, limit), naively_read(path)[:limit]
    assert list(file) == expected and len(file) == len(expected)


def test_rows_beyond_the_limit_are_not_checked(written):
    assert len(TransitionFile(written(ROW, "rubbish"), 1)) == 1


BAD_LINES = {
    "bad JSON": ('{"id": }', "not a JSON object"),
    "blank line": ("", "not a JSON object"),
    "not an object": ("[1]", "not a JSON object"),
    "missing key": (without(ROW, "y"), "missing y"),
    "unknown key": ({**ROW, "reward": 1}, "unknown reward"),
    "both": ({**without(ROW, "t"), "time": 1}, "missing t and unknown time"),
    "wrong type": ({**ROW, "x": 3}, "x is 3"),
    "id of a number": ({**ROW, "id": 3}, "id is 3"),
    "t of text": ({**ROW, "t": "3"}, 't is "3"'),
    "t of a truth value": ({**ROW, "t": True}, "t is true"),
    "negative t": ({**ROW, "t": -1}, "t is -1"),
    "empty state": ({**ROW, "x": " "}, "x is empty"),
    "empty action": ({**ROW, "z": ""}, "z is empty"),
    "null state": ({**ROW, "y": None}, "y is null"),
    "image state": ({**ROW, "x": {"image": "a.png"}}, "x: a.png is a picture, not its codes: run swirl tokenize"),
    "one state": ({**STATES, "states": ["s0"]}, "at least 2 states"),
    "states of text": ({**STATES, "states": "s0 s1"}, "at least 2 states"),
    "empty among states": ({**STATES, "states": ["s0", ""]}, "states[1] is empty"),
    "picture among states": ({**STATES, "states": ["s0", {"image": "b.png"}]}, "states[1]: b.png is a picture"),
    "no codes": ({**ROW, "x": {"image": []}}, "x: the image [] is no list of codes"),
    "codes of text": ({**ROW, "x": {"image": ["3"]}}, "is no list of codes, which are whole numbers"),
    "negative code": ({**ROW, "y": {"image": [3, -1]}}, "y: the image [3, -1] is no list of codes"),
    "code of a truth value": ({**ROW, "y": {"image": [True]}}, "is no list of codes"),
    "too large a code": ({**ROW, "y": {"image": [65534]}}, "is no list of codes"),
    "image of a number": ({**ROW, "y": {"image": 3}}, "y: the image 3 is neither a list of codes nor a path"),
    "image and more": ({**ROW, "y": {"image": [3], "size": 1}}, "give a text or"),
    "image as an action": ({**ROW, "z": {"image": [3]}}, 'z is {"image": [3]}: give a text'),
    "two lengths": ({**ROW, "x": {"image": [3, 4]}, "y": {"image": [3]}}, "y: an image of 1 codes, the first has 2"),
    "codes that are not there": ({**ROW, "x": {"image": "codes.npy#3"}}, "codes.npy: cannot be read as codes"),
    "a character that stands for a code": (
        {**ROW, "x": "a \U000f0003"},
        "x has a character of Unicode's private planes",
    ),
    "a code in an action": ({**ROW, "z": "\U000f0003"}, "z has a character of Unicode's private planes"),
    "history of text": ({**ROW, "history": "s0"}, 'history is "s0": give a list of the states before x'),
    "empty in the history": ({**ROW, "history": ["s0", " "]}, "history[1] is empty"),
    "history of a sequence": ({**STATES, "history": ["s0"]}, "unknown history"),
    "sequence with actions": ({**STATES, "z": ["a", "b"]}, "unknown z"),
}


@pytest.mark.parametrize("line, fault", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_row_is_named_by_file_and_line_in_one_line(written, line, fault):
    path = written(ROW, STATES, line, ROW)
    with pytest.raises(ValueError) as error:
        TransitionFile(path, None)
    message = str(error.value)
    assert message.startswith(f"{path}:3: ") and fault in message and "\n" not in message


def test_states_before_x_are_read_as_far_as_asked(written):
    """Of a sequence those before it in the row, of a transition those that its row has."""
    path = written({**ROW, "history": ["a", "b", "c"]}, {**STATES, "states": list("stuvw")}, ROW)
    for window in range(5):
        rows = list(TransitionFile(path, None, window))
        given, sequence, without_any = rows[0].history, [row.history for row in rows[1:-1]], rows[-1].history
        assert given == ("a", "b", "c")[max(0, 3 - window) :] and without_any == ()
        assert sequence == [tuple("stuvw"[max(0, t - window) : t]) for t in range(4)]
    assert [row.history for row in TransitionFile(path, None)] == [()] * 6


def test_a_file_cut_in_its_last_line_is_said_to_be_so(written):
    """At every byte of the last row, also within a character of several bytes."""
    path = written(ROW, ROW)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=":2: the last line is cut in the middle"):
            TransitionFile(path, None)
    path.write_bytes(whole[:-1])
    assert len(TransitionFile(path, None)) == 2


def test_missing_and_empty_files_and_a_limit_of_nothing_are_refused(written, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such"):
        TransitionFile(tmp_path / "absent.jsonl", None)
    with pytest.raises(ValueError, match="is empty"):
        TransitionFile(written(end=""), None)
    with pytest.raises(ValueError, match="limit of 0"):
        TransitionFile(written(ROW), 0)


def test_a_large_file_is_not_held_in_memory(tmp_path):
    """200,000 transitions of about 200 bytes: memory stays near the 16 bytes apiece that their places take."""
    path = tmp_path / "large.jsonl"
    text = "x" * 60
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({**ROW, "id": str(i), "x": text, "y": text}) + "\n")
            file.write(json.dumps({**STATES, "id": f"s{i}", "states": [text] * 10}) + "\n")
    tracemalloc.start()
    transitions = TransitionFile(path, None)
    assert transitions[199_999].id == "s19999:8"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(transitions) == 200_000
    assert peak < 200_000 * 16 * 3, f"{peak / 2**20:.1f} MiB, while the file has {path.stat().st_size / 2**20:.1f}"


def test_state_only_rows_take_the_actions_of_their_ids(tmp_path):
    rows = [Transition(f"e:{t}", f"s{t}", None, f"s{t + 1}", "w", "e", t) for t in range(3)]
    actions = tmp_path / "actions.jsonl"
    lines = [json.dumps({"id": f"e:{t}", "z": f"a{t}"}) + "\n" for t in (2, 0, 1, 7)]
    actions.write_text("".join(lines))
    labelled = with_actions(rows, actions)
    assert [(row.id, row.x, row.z) for row in labelled] == [(f"e:{t}", f"s{t}", f"a{t}") for t in range(3)]
    actions.write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match="has no action for transition e:1: give the file"):
        with_actions(rows, actions)
    actions.write_text('{"id": "e:0"}\n')
    with pytest.raises(ValueError, match="a line has no 'z': a line has id and z"):
        with_actions(rows, actions)
    with pytest.raises(ValueError, match="^data.unlabelled_actions=.*gone.jsonl: no such file: .*$"):
        with_actions(rows, tmp_path / "gone.jsonl")


@pytest.mark.parametrize("size, seed", [(1, 0), (7, 1), (100, 2)])
def test_each_epoch_reads_every_row_once_and_epochs_and_seeds_differ(size, seed):
    epochs = [Order(size, seed).indices(epoch * size, size) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size == 100:
        others = [Order(size, seed + 1).indices(epoch * size, size) for epoch in range(4)]
        assert len({tuple(epoch) for epoch in epochs + others}) == 8


def test_order_resumes_from_any_position_with_any_step():
    """However the positions are cut into steps, and wherever a fresh Order takes up, the rows are the same."""
    whole = [row for position in range(60) for row in Order(7, 5).indices(position, 1)]
    draw = random.Random(0)
    for _ in range(50):
        start, count = draw.randrange(60), draw.randrange(40)
        assert Order(7, 5).indices(start, count) == whole[start : start + count] or start + count > 60
    order = Order(7, 5)
    read = []
    while len(read) < 60:
        read += order.indices(len(read), min(draw.randrange(1, 12), 60 - len(read)))
    assert read == whole
    assert order.indices(0, 9) == whole[:9], "going back is possible too"


def test_a_prompt_that_leaves_too_little_room_is_refused_with_its_transition():
    check_length([1] * 10, completion_max=6, max_length=16, transition_id="e:3")
    with pytest.raises(ValueError, match=r"transition e:3: .*10 tokens.*up to 7.*model\.max_length=16") as error:
        check_length([1] * 10, completion_max=7, max_length=16, transition_id="e:3")
    assert "\n" not in str(error.value)
