"""The schema of `swirl collect`. Values live in conf/collect.yaml and conf/world/."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class WorldConfig:
    """What every world needs to be collected from. Counts are rows; a split of 0 rows is not written."""

    name: str = MISSING
    labelled: int = MISSING
    unlabelled: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    test_combinations: int = MISSING
    held_out_combinations: int = MISSING  # combinations that no labelled row makes use of
    unseen_states: bool = MISSING  # no state stands in two splits; otherwise no pair of state and next state does
    episode_steps: int = MISSING
    max_episodes: int = MISSING  # over all splits; too few is an error, not a smaller split


@dataclass
class HouseholdConfig(WorldConfig):
    changes: list[float] = MISSING  # probability of an action of one, two, three commands


@dataclass
class ScienceWorldConfig(WorldConfig):
    tasks: list[str] = MISSING
    variations: int = MISSING  # of each task, from its first
    simplifications: list[str] = MISSING  # of the simulator, such as openDoors
    gold: float = MISSING  # share of episodes that follow the gold path; the others act at random
    context_facts: int = MISSING  # of a room, shown beside those that the action names or changes
    max_words: int = MISSING  # steps whose state is longer are left out


@dataclass
class CollectConfig:
    seed: int = MISSING
    out: str = MISSING  # folder
    world: WorldConfig = MISSING


_store = ConfigStore.instance()
_store.store(name="collect_schema", node=CollectConfig)
_store.store(group="world", name="household_schema", node=HouseholdConfig)
_store.store(group="world", name="scienceworld_schema", node=ScienceWorldConfig)
