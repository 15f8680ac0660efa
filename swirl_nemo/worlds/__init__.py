"""Where transitions come from: a file a world."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Step, World, WorldConfig

__all__ = ["Step", "World", "WorldConfig", "find"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def find(name: str) -> type[World]:
    """The world of that name. Raises ValueError, one line, for a name that no world has."""
    known = {world.name: world for world in _below(World)}
    if name not in known:
        raise ValueError(f"world.name={name}: there is no such world: choose one of {', '.join(sorted(known))}")
    return known[name]


def _below(kind: type[World]) -> list[type[World]]:
    return [world for child in kind.__subclasses__() for world in (child, *_below(child))]
