"""`swirl collect`: simulators side by side, their episodes divided into the transitions files of a run."""

from .config import CollectConfig
from .splits import collect

__all__ = ["CollectConfig", "collect"]
