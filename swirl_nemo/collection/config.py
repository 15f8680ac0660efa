"""The schema of `swirl collect`. Values live in conf/collect.yaml and conf/world/."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ..worlds import WorldConfig


@dataclass
class CollectConfig:
    seed: int = MISSING
    out: str = MISSING  # folder
    processes: int = MISSING  # simulators side by side; the files do not depend on it
    history: int = MISSING  # states before x that a row gives as its history; 0: rows have none
    vocabulary: int = MISSING  # tokens of the byte-level BPE, for a world without words of its own
    world: WorldConfig = MISSING


ConfigStore.instance().store(name="collect_schema", node=CollectConfig)
