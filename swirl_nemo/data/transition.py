"""A transition (x, z, y): state, action, next state."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transition:
    """One row of a transitions file. States and actions are text; `z` is None where no action was recorded."""

    id: str
    x: str
    z: str | None
    y: str
    world: str
    episode: str
    t: int
