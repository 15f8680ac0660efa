"""Pages of MiniWoB++ (Liu et al. 2018, "Reinforcement Learning on Web Interfaces using Workflow-Guided Exploration";
Python package miniwob) in a real headless Chromium, which is clicked and typed into through its driver.

A state is what can be seen and used of a page, in lower case, one element a line. An action names one element as the
state does. What the state could not foresee is neither shown nor used: links, and what lies in a closed section.
"""

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import MISSING

from .base import Step, World, WorldConfig

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SEPARATOR = "\n"
PAGES = (
    *("choose-date-nodelay", "choose-list", "click-checkboxes", "click-checkboxes-large", "click-checkboxes-soft"),
    *("click-checkboxes-transfer", "click-collapsible-nodelay", "click-option"),
    *("click-scroll-list", "click-shades", "copy-paste", "enter-password", "enter-text", "enter-text-2"),
    *("enter-text-dynamic", "find-word", "form-sequence", "form-sequence-2", "login-user", "multi-layouts"),
    *("multi-orderings", "number-checkboxes", "odd-or-even", "order-food", "read-table", "read-table-2"),
    *("simple-algebra", "simple-arithmetic", "social-media-some", "text-transform", "use-slider", "use-slider-2"),
)
WORDS = ("apple", "river", "seven", "green", "paris", "music")  # typed beside the words that the page itself shows
FIELDS = ("1", "2", "3", "username", "password")  # that WORDS are typed into on several pages
TOOLS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromedriver": ("chromedriver",)}
HIGHEST_DELAY = 2**31 - 1  # milliseconds: what a browser's timer holds

# Starts the page's problem: its generator seeded, its clock out of the way, its animations over at once.
START = f"""
Math.seedrandom(arguments[0]);
core.EPISODE_MAX_TIME = {HIGHEST_DELAY};
if (window.jQuery) jQuery.fx.off = true;
core.startEpisodeReal();
"""

READ = Path(__file__).with_suffix(".js").read_text()


class Target(NamedTuple):
    """What an action is done to: the line that shows it, the element, and how, as READ says it."""

    line: str
    element: "WebElement"
    how: str


@dataclass(frozen=True, eq=False)
class State:
    """What the browser shows. It stands at one state at a time."""

    lines: tuple[str, ...]
    actions: dict[str, Target]


@dataclass
class MiniWobConfig(WorldConfig):
    pages: list[str] = MISSING
    submits: float = MISSING  # probability that a random action is the one that ends the episode


class MiniWob(World[MiniWobConfig]):
    name = "miniwob"
    settings = MiniWobConfig
    packages = ("miniwob", "selenium")
    combinations = tuple(f"{word} {field}" for word in WORDS for field in FIELDS)

    def __init__(self, config: MiniWobConfig):
        super().__init__(config)
        self._running: Chrome | None = None
        self._now: State | None = None

    def tasks(self) -> list[str]:
        return list(self.config.pages)

    def check(self) -> None:
        config = self.config
        if unknown := sorted(set(config.pages) - set(PAGES)):
            raise ValueError(f"world.pages: {unknown[0]} is not known: choose from {', '.join(PAGES)}")
        if not config.pages:
            raise ValueError("world.pages=[]: there is nothing to play: give a page")
        if not 0 <= config.submits <= 1:
            raise ValueError(f"world.submits={config.submits:g}: it is a probability: set it between 0 and 1")
        self._browser()

    def reset(self, task: str, rng: Random) -> State:
        browser = self._browser()
        browser.get((_html() / "miniwob" / f"{task}.html").as_uri())
        browser.execute_script(START, rng.getrandbits(31))
        return self._observe()

    def legal_actions(self, state: State) -> list[str]:
        assert state is self._now, "the browser stands at another state"
        return list(state.actions)

    def step(self, state: State, action: str) -> State:
        if action not in self.legal_actions(state):
            raise ValueError(f"miniwob: {action!r} is not possible in {self.render(state)!r}: see legal_actions")
        element, how = state.actions[action].element, state.actions[action].how
        if how == "click":
            return self._observe(element)
        if how == "mouse":
            element.click()
        elif how == "type":
            element.clear()
            element.send_keys(_typed(action)[0])
        elif how == "paste":
            self._paste(element)
        else:
            element.send_keys(how)
        return self._observe()

    def render(self, state: State) -> str:
        return SEPARATOR.join(state.lines)

    def sample_action(self, state: State, rng: Random) -> str | None:
        """A line first, so that a page's many texts to type do not crowd out its other elements."""
        by_line: dict[str, list[str]] = {}
        for action in self.legal_actions(state):
            by_line.setdefault(state.actions[action].line, []).append(action)
        ending = [line for line in by_line if line.startswith("button ")]
        others = [line for line in by_line if line not in ending]
        if not by_line:
            return None
        ends = ending and (not others or rng.random() < self.config.submits)
        actions = by_line[rng.choice(ending if ends else others)]
        ours = [action for action in actions if _typed(action)[0] in WORDS]
        shown = [action for action in actions if action not in ours]
        return rng.choice(rng.choice([group for group in (ours, shown) if group]))

    @classmethod
    def combinations_in(cls, step: Step) -> set[str]:
        return {" ".join(_typed(step.z))} & set(cls.combinations)

    def close(self) -> None:
        if self._running is not None:
            self._running.quit()
            self._running = self._now = None

    def _observe(self, clicked: "WebElement | None" = None) -> State:
        over, asked, shown = self._browser().execute_script(READ, clicked)
        lines = [line for line, _ in shown]
        fields = {name.removeprefix("in text ") for _, ways in shown for name, _, how in ways if how == "type"}
        buttons = {line.removeprefix("button ") for line in lines}
        asked = [text for text in asked if text not in fields | buttons] if fields else []
        noted = [word for line in lines if line.startswith("note ") for word in re.findall(r"[\w'-]*\w", line)[1:]]
        texts = dict.fromkeys([*asked, *noted, *WORDS])
        actions: list[tuple[str, Target]] = []
        for line, ways in [] if over else shown:
            for name, element, how in ways:
                names = [f"type {text} {name}" for text in texts if not line.endswith(f" is {text}")]
                actions += [(each, Target(line, element, how)) for each in (names if how == "type" else [name])]
        times = Counter(action for action, _ in actions)  # of elements of one name neither can be meant
        possible = {action: target for action, target in actions if times[action] == 1}
        self._now = State((*(f"ask {text}" for text in asked), *lines, *(["over"] if over else [])), possible)
        return self._now

    def _paste(self, field: "WebElement") -> None:
        from selenium.webdriver import ActionChains, Keys

        source = self._browser().find_element("css selector", "#area textarea")
        chain = ActionChains(self._browser())
        for element, key in ((source, "c"), (field, "v")):
            chain.click(element).key_down(Keys.CONTROL).send_keys("a", key).key_up(Keys.CONTROL)
        chain.perform()

    def _browser(self) -> "Chrome":
        if self._running is None:
            self._running = _launch()
        return self._running


def _typed(action: str) -> tuple[str, str]:
    """The text and the field of an action that types; two empty ones of another."""
    found = re.fullmatch(r"type (.+) in text (.+)", action)
    return (found[1], found[2]) if found else ("", "")


def _html() -> Path:
    """The folder of the pages; the package itself is not imported, for its environment is not made use of."""
    spec = find_spec("miniwob")
    if spec is None:
        raise ValueError("world=miniwob: the Python package miniwob is missing: install swirl-nemo[worlds]")
    return Path(spec.submodule_search_locations[0]) / "html"


def _launch() -> "Chrome":
    """Starts the browser. Raises ValueError, one line, where it, its driver or a package is missing."""
    _html()
    paths = {tool: next(filter(None, map(shutil.which, names)), None) for tool, names in TOOLS.items()}
    for tool, path in paths.items():
        if path is None:
            raise ValueError(
                f"world=miniwob: there is no {tool} on PATH: install it (Debian: chromium and chromium-driver)"
            )
    try:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        raise ValueError(
            f"world=miniwob: the Python package {error.name} is missing: install swirl-nemo[worlds]"
        ) from error
    options = ChromeOptions()
    options.binary_location = paths["chromium"]
    options.ignore_local_proxy_environment_variables()  # deprecated, with no other way yet for a local driver
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "lang=en-US"):
        options.add_argument(argument)
    # The driver's path is given because selenium would look for one on the internet first.
    return Chrome(options, Service(paths["chromedriver"], env={**os.environ, "TZ": "UTC"}))
