"""Where transitions come from."""

from .base import Step, World
from .collection import collect
from .registry import load

__all__ = ["Step", "World", "collect", "load"]
