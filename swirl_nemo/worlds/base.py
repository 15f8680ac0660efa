"""What a world is: the source of transitions, and the judge of actions where it can compute them."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .config import WorldConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Step(NamedTuple):
    """One step of an episode, as text."""

    x: str
    z: str
    y: str


class World(Protocol):
    """A deterministic world with text states and text actions. A state's type is the world's own business.

    `combinations` lists the object-action combinations that a split can hold out; it is empty where they cannot be
    listed beforehand.
    """

    name: str
    combinations: Sequence[str]

    def reset(self, rng: Random) -> Any:
        """A first state, drawn from `rng` alone."""

    def legal_actions(self, state: Any) -> list[str]:
        """Every action that `step` takes in this state."""

    def step(self, state: Any, action: str) -> Any:
        """The next state; `state` itself is left as it is. Raises ValueError for an action that is not legal here."""

    def render(self, state: Any) -> str:
        """The state as the models read it."""

    def actions_between(self, x: str, y: str) -> list[str] | None:
        """Every action that leads from x to y; [] for malformed text; None where the world cannot compute them."""

    def combinations_in(self, action: str) -> set[str]:
        """Which of `combinations` the action makes use of."""

    def check(self, config: WorldConfig) -> None:
        """Raises ValueError, one line, for settings of its own that the world cannot meet."""

    def episode(self, config: WorldConfig, rng: Random) -> Iterator[Step]:
        """One episode under the behaviour policy that `config` describes."""

    def tokenizer(self) -> "PreTrainedTokenizerFast | None":
        """The world's own word-level tokenizer; None where the model brings one."""

    def close(self) -> None:
        """Ends what the world started, such as a simulator's process."""
