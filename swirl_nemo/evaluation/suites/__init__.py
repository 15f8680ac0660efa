"""The paper's benchmarks: each suite reads a public release's own files. Nothing here imports nemo or megatron."""

from .aurora import Aurora
from .base import Suite
from .bytemorph import ByteMorph
from .config import SuiteConfig
from .stabletoolbench import StableToolBench
from .worldprediction import WorldPrediction

SUITES = {suite.name: suite for suite in (Aurora, ByteMorph, WorldPrediction, StableToolBench)}

__all__ = ["SUITES", "Suite", "SuiteConfig", "find"]


def find(cfg: SuiteConfig) -> Suite:
    """The suite that `cfg` names, on its folder."""
    return SUITES[cfg.name](cfg)
