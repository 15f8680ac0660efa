"""MiniWoB++ in a real browser: its pages, against their own variables and judges, and against a second browser."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from random import Random

import psutil
import pytest

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.collection.workers import Job, Pool
from swirl_nemo.settings import compose
from swirl_nemo.worlds import Step
from swirl_nemo.worlds.miniwob import FIELDS, PAGES, SEPARATOR, TOOLS, WORDS, MiniWob

VERBS = {"click", "type", "set", "pick", "left", "right", "add", "remove", "paste", "reply", "retweet", "like", "share"}
FORM = ("genre", "director", "year")  # of multi-orderings
GRAMMAR = {"in", "text", "note", "prev", "next", "date", "box", *WORDS}
ONE_PAGE = """
import sys
from pathlib import Path
from random import Random
from test_miniwob import configure
from swirl_nemo.worlds.miniwob import MiniWob
world = MiniWob(configure(Path("unused")).world)
for page in sys.argv[1:]:
    print([tuple(step) for step in world.episode(page, Random(page))])
world.close()
"""


def configure(out: Path, *overrides: str) -> CollectConfig:
    return compose(["world=miniwob", f"out={out}", *overrides], "collect", CollectConfig)


@pytest.fixture(scope="module")
def world():
    if find_spec("miniwob") is None or not all(any(map(shutil.which, names)) for names in TOOLS.values()):
        pytest.skip("needs miniwob, and Chromium: apt-get install chromium chromium-driver")
    world = MiniWob(configure(Path("unused")).world)
    world.check()
    started = [child for child in psutil.Process().children(recursive=True) if child.name().startswith("chrom")]
    yield world
    world.close()
    assert len(started) > 2 and ended(started), "close must end them all"


@pytest.fixture(scope="module")
def played(world) -> dict[str, list[Step]]:
    """An episode of each page."""
    return {page: list(world.episode(page, Random(page))) for page in PAGES}


def ended(processes: list[psutil.Process]) -> bool:
    """Whether they end within ten seconds; some may only wait for init to look at them."""
    alive = psutil.wait_procs(processes, timeout=10)[1]
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def follow(world: MiniWob, page: str, *actions: str, seed: int = 0) -> list[list[str]]:
    """The lines of the page's first state and of that after each action."""
    state = world.reset(page, Random(seed))
    states = [state.lines]
    for action in actions:
        state = world.step(state, action)
        states.append(state.lines)
    return [list(lines) for lines in states]


def test_combinations_are_our_words_in_the_common_fields():
    assert len(MiniWob.combinations) == len(set(MiniWob.combinations)) == len(WORDS) * len(FIELDS) >= 12
    for action, found in {
        "type apple in text 1": {"apple 1"},
        "type apple in text genre": set(),  # not a common field
        "type kanesha in text 1": set(),  # a word of the page
        "type in text in text 2": set(),
        "click box apple": set(),
    }.items():
        assert MiniWob.combinations_in(Step("", action, "")) == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world.pages=[click-moon]", r"world\.pages: click-moon is not known: choose from choose-date-nodelay, .*"),
        ("world.pages=[]", r"world\.pages=\[\]: there is nothing to play: give a page"),
        ("world.submits=1.5", r"world\.submits=1\.5: it is a probability: set it between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_met_are_one_line(tmp_path, override, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        collect(configure(tmp_path / "out", override))
    assert not (tmp_path / "out").exists()


def test_without_a_browser_or_a_package_there_is_one_line(monkeypatch):
    world = MiniWob(configure(Path("unused")).world)
    monkeypatch.setattr("swirl_nemo.worlds.miniwob.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^world=miniwob: the Python package miniwob is missing: install swirl-nemo.*$"
    ):
        world.check()
    monkeypatch.setattr("swirl_nemo.worlds.miniwob._html", Path)
    for missing in TOOLS:
        there = [name for tool, names in TOOLS.items() if tool != missing for name in names]
        monkeypatch.setattr(shutil, "which", lambda name, there=there: name if name in there else None)
        with pytest.raises(ValueError, match=f"^world=miniwob: there is no {missing} on PATH: install it .*$"):
            world.check()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setitem(sys.modules, "selenium.webdriver", None)
    with pytest.raises(ValueError, match=r"^world=miniwob: the Python package selenium.* is missing: install .*$"):
        world.check()


def test_shipped_settings_play_every_page():
    config = configure(Path("unused")).world
    assert tuple(config.pages) == PAGES and len(PAGES) >= 20 and config.held_out_tasks and config.test_tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "actions", "added"),
    [
        ("form-sequence", ["click box 2", "click box 3", "click box 2"], ["box 2 on", "box 3 on", "box 2"]),
        ("form-sequence-2", ["click radio 1", "click radio 3"], ["radio 1 on", "radio 1, radio 3 on"]),
        ("login-user", ["type river in text password"], ["text password is river"]),
        (
            "login-user",
            ["type river in text password", "type paris in text password"],
            ["text password is river", "text password is paris"],
        ),
        ("order-food", ["add garlic bread", "add garlic bread"], ["garlic bread 1", "garlic bread 2"]),
        ("order-food", ["add cheese wheel", "remove cheese wheel"], ["cheese wheel 1", "cheese wheel"]),
        ("number-checkboxes", ["click row 2 box 4", "click row 2 box 1"], ["row 2 - - - x", "row 2 x - - x"]),
        (
            "choose-date-nodelay",
            ["click date", "click prev", "pick 7"],
            ["month december 2016", "month november 2016", "date is 11/07/2016"],
        ),
        ("enter-text", ["click submit"], ["over"]),
    ],
)
def test_what_an_action_adds_to_the_state(world, page, actions, added):
    states = follow(world, page, *actions)
    for before, after, line in zip(states, states[1:], added, strict=False):
        assert ", ".join(new for new in after if new not in before) == line


@pytest.mark.slow
def test_what_is_shown_is_what_the_page_holds(world):
    """The lines against the page's own variables, asked for by another way than the world's script."""
    ask = world._browser().execute_script
    world.reset("use-slider-2", Random(1))
    values = [ask(f"return document.getElementById('val-{number}').innerText") for number in (1, 2, 3)]
    state = world._now
    assert list(state.lines) == [f"slider {n} is {value}" for n, value in enumerate(values, 1)] + ["button submit"]
    moved = world.step(state, "right slider 2")
    assert ask("return document.getElementById('val-2').innerText") == str(int(values[1]) + 1)
    assert moved.lines[1] == f"slider 2 is {int(values[1]) + 1}"

    state = world.reset("copy-paste", Random(1))
    text = ask("return document.querySelector('textarea').value")
    world.step(state, "paste note in text 1")
    assert ask("return document.getElementById('answer-input').value") == text

    state = world.reset("click-scroll-list", Random(1))
    names = [line.removeprefix("option ") for line in state.lines if line.startswith("option ")]
    for name in names[:2]:
        state = world.step(state, f"click option {name}")
    assert ask("return document.getElementById('options').selectedOptions.length") == 2
    assert [line for line in state.lines if line.endswith(" on")] == [f"option {name} on" for name in names[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["click-checkboxes", "click-option", "choose-list", "multi-orderings"])
def test_doing_what_a_page_asks_for_is_rewarded_by_its_own_judge(world, page):
    ask = world._browser().execute_script
    for seed in (2, 3):
        state = world.reset(page, Random(seed))
        query = ask("return document.getElementById('query').innerText").lower()
        if page == "multi-orderings":
            words = re.fullmatch(r"search for (.+) movies directed by (.+) from year (.+)\.", query).groups()
            wanted = [f"type {word} in text {field}" for word, field in zip(words, FORM, strict=True)]
        else:
            named = query.replace(" from the list", "").removeprefix("select ").rpartition(" and click")[0].split(", ")
            kind = {"click-checkboxes": "box", "click-option": "radio", "choose-list": "option"}[page]
            wanted = [f"click {kind} {name}" for name in named if f"{kind} {name}" in state.lines]
        for action in [*wanted, "click submit"]:
            state = world.step(state, action)
        assert state.lines[-1] == "over" and world.legal_actions(state) == []
        assert ask("return [WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL]") == [True, 1]


@pytest.mark.slow
def test_what_is_not_possible_is_refused(world):
    state = world.reset("click-option", Random(0))
    for action in ("click radio moon", "click", "", "over", "type river in text 1"):
        with pytest.raises(ValueError, match=f"^miniwob: '{action}' is not possible in .*: see legal_actions$"):
            world.step(state, action)
    after = world.step(state, world.legal_actions(state)[0])
    with pytest.raises(AssertionError, match="another state"):
        world.step(state, "click submit")
    assert world.legal_actions(after)


@pytest.mark.slow
def test_elements_of_one_name_are_not_used(world):
    world.reset("click-checkboxes", Random(0))
    world._browser().execute_script(
        "document.querySelectorAll('#boxes label').forEach(el => el.lastChild.data = 'twin')"
    )
    assert world.legal_actions(world._observe()) == ["click submit"]


@pytest.mark.slow
def test_the_clock_of_a_page_ends_nothing(world):
    world.reset("enter-text", Random(0))
    browser = world._browser()
    assert browser.execute_script("return core.EPISODE_MAX_TIME") > 10**9
    browser.execute_async_script("setTimeout(arguments[0], 1500)")
    assert "over" not in world._observe().lines


@pytest.mark.slow
def test_an_action_decides_the_next_state_and_is_read_off_it(played):
    """On every page: no two results of one action, no two actions of one result, small texts, words that were seen."""
    results, causes = defaultdict(set), defaultdict(set)
    for page, steps in played.items():
        assert steps, page
        assert all(one.y == other.x for one, other in zip(steps, steps[1:], strict=False)), page
        for x, z, y in steps:
            assert x != y, f"{page}: {z} changes nothing"
            results[x, z].add(y)
            causes[x, y].add(z)
            seen = set(f"{x} {y}".replace("/", " ").split()) | VERBS | GRAMMAR
            assert {word for word in z.split() if not word.isdigit()} <= seen, f"{page}: {z}"
            assert len(set(x.split(SEPARATOR)) ^ set(y.split(SEPARATOR))) <= 4, f"{page}: {z}"
            assert len(y) < 400 and y == y.lower() and z.split()[0] in VERBS
    assert max(map(len, results.values())) == max(map(len, causes.values())) == 1


@pytest.mark.slow
def test_an_episode_is_the_same_in_another_browser_and_after_other_episodes(world, played):
    pages = ["choose-date-nodelay", "form-sequence", "multi-layouts"]
    for page in pages:
        assert list(world.episode(page, Random(page))) == played[page] != list(world.episode(page, Random("other")))
    done = subprocess.run(
        [sys.executable, "-c", ONE_PAGE, *pages], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([tuple(step) for step in played[page]]) for page in pages]


@pytest.mark.slow
def test_a_collection_has_its_rows(world, tmp_path):
    counts = {"test": 12, "validation": 6, "test_combinations": 2, "test_tasks": 6, "labelled": 12, "unlabelled": 24}
    overrides = [f"world.{split}={rows}" for split, rows in counts.items()]
    overrides += ["world.pages=[enter-text,enter-password,form-sequence-2,click-option]", "world.held_out_tasks=1"]
    assert collect(configure(tmp_path, *overrides)) == counts
    description = json.loads((tmp_path / "collect.json").read_text())
    assert description["episodes"]["failures"] == {} and not any(description["in_two_splits"].values())
    assert [source["licence"] for source in description["sources"]] == ["MIT License", "Apache-2.0"]
    held_out = set(description["held_out_combinations"])
    rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert not any(MiniWob.combinations_in(Step(row["x"], row["z"], row["y"])) & held_out for row in rows)


@pytest.mark.slow
def test_no_browser_outlives_its_worker(world):
    """Neither one that is killed, which the pool replaces, nor one that is closed."""
    started: list[psutil.Process] = []
    with closing(Pool(world.config, seed=0, processes=1)) as pool:
        for number in range(2):
            job = Job(f"miniwob-{number}", "click-option")
            pool.request(job)
            assert pool.take(job).steps
            worker = pool._workers[0]._process.pid
            started += psutil.Process(worker).children(recursive=True)
            if number == 0:
                os.kill(worker, signal.SIGKILL)
    assert len(started) > 4 and ended(started)
