"""What a world is: the source of transitions, and the judge of actions where it can compute them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

if TYPE_CHECKING:
    import numpy as np


class Step(NamedTuple):
    """One step of an episode, as text."""

    x: str
    z: str
    y: str


@dataclass
class SplitConfig:
    """Rows of each split; one of 0 rows is not written. None of it changes the episodes that are played."""

    labelled: int = MISSING
    unlabelled: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    test_combinations: int = MISSING
    test_tasks: int = MISSING
    held_out_combinations: int = MISSING  # combinations that no labelled row makes use of
    held_out_tasks: int = MISSING  # tasks that only test_tasks has
    label_pool: int = MISSING  # times `labelled`: rows that labels are chosen from, verbs by turns; 0: as they come
    unseen_states: bool = MISSING  # no state stands in two splits; otherwise no pair of state and next state does
    max_episodes: int = MISSING  # too few is an error, not a smaller split


@dataclass
class WorldConfig(SplitConfig):
    """What every world needs to be played. A world's own keys are a subclass of this, in its own file."""

    name: str = MISSING
    episode_steps: int = MISSING
    episode_seconds: float = MISSING  # a simulator that takes longer hangs: it is killed and replaced
    gold: float = MISSING  # share of episodes that follow the gold policy; the others act at random


Config = TypeVar("Config", bound=WorldConfig)


class World(ABC, Generic[Config]):
    """A world with text states and text actions; a subclass in a file of this package is found by its `name`.

    A subclass writes `reset`, `legal_actions`, `step` and `render`; the rest has defaults. A state's type is the
    world's own business. Facts of a rendered state stand one a line, unless the world's data configuration says
    otherwise. Everything random comes from the generator that is handed in: an episode is fixed by its task and
    generator, whatever was played before it in the same process.
    """

    name: ClassVar[str]
    settings: ClassVar[type[WorldConfig]] = WorldConfig
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose version and licence a collection records
    combinations: ClassVar[Sequence[str]] = ()  # that a split can hold out, where they can be listed
    # Of a world in pictures a method: a rendered state as uint8 [H, W, 3], of one size, that is written in its place
    picture: "Callable[[str], np.ndarray] | None" = None

    def __init_subclass__(cls) -> None:
        ConfigStore.instance().store(group="world", name=f"{cls.name}_schema", node=cls.settings)

    def __init__(self, config: Config):
        """Starts nothing: a simulator starts when it is first used."""
        self.config = config

    def check(self) -> None:
        """Raises ValueError, one line, for settings that the world cannot meet or a simulator that is not there."""

    def tasks(self) -> Sequence[str]:
        """What an episode can be about, such as a page, a layout or a variation; a split can hold some out."""
        return [self.name]

    @abstractmethod
    def reset(self, task: str, rng: Random) -> Any:
        """A first state of the task."""

    @abstractmethod
    def legal_actions(self, state: Any) -> list[str]:
        """Every action that `step` takes in this state; [] where the episode is over."""

    @abstractmethod
    def step(self, state: Any, action: str) -> Any:
        """The next state. Raises ValueError for an action that is not legal here.

        A world that can be copied leaves `state` as it is; a simulator stands at one state at a time, and asserts that
        it is asked about that one.
        """

    @abstractmethod
    def render(self, state: Any) -> str:
        """The state as the models read it."""

    def shown(self, state: Any, action: str) -> str:
        """What an episode's `x` has of the state where this action is taken; all of it, unless the world trims."""
        return self.render(state)

    def sample_action(self, state: Any, rng: Random) -> str | None:
        """What the behaviour policy does here when it acts at random; None where the episode is over."""
        actions = self.legal_actions(state)
        return rng.choice(actions) if actions else None

    def gold_action(self, state: Any) -> str | None:
        """What the gold policy does here; None where the episode is over or the world has no such policy."""
        return None

    def episode(self, task: str, rng: Random) -> Iterator[Step]:
        """One episode under the behaviour policy: gold in a share `gold` of episodes, random in the others."""
        gold = rng.random() < self.config.gold
        state = self.reset(task, rng)
        for _ in range(self.config.episode_steps):
            action = self.gold_action(state) if gold else self.sample_action(state, rng)
            if action is None:
                return
            x = self.render(state)
            state = self.step(state, action)
            yield Step(x, action, self.render(state))

    @classmethod
    def actions_between(cls, x: str, y: str) -> list[str] | None:
        """Every action that leads from x to y; [] for malformed text; None where the world cannot compute them."""
        return None

    @classmethod
    def combinations_in(cls, step: Step) -> set[str]:
        """Which of `combinations` the step makes use of."""
        return set()

    @classmethod
    def words(cls) -> Sequence[str] | None:
        """Every word of a closed vocabulary: tokens are words then. None: a byte-level BPE is trained on the rows."""
        return None

    def close(self) -> None:
        """Ends what the world started, such as a simulator's process."""
