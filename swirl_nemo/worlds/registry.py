"""Worlds by name."""

from .base import World
from .household import Household
from .scienceworld import ScienceWorld

_WORLDS = {world.name: world for world in (Household, ScienceWorld)}


def load(name: str) -> World:
    """The world of that name; nothing is started before it is used.

    Raises ValueError, one line, for a name that no world has.
    """
    if name not in _WORLDS:
        raise ValueError(f"world.name={name}: there is no such world: choose one of {', '.join(sorted(_WORLDS))}")
    return _WORLDS[name]()
