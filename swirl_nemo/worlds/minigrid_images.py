"""MiniGrid in pictures: the states of world=minigrid as the package itself draws them, on a canvas of one size.

Below the grid, at the left, is what the agent holds, which MiniGrid draws nowhere: without it no picture would tell
what `drop` does. A thing that is gone is not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from omegaconf import MISSING

from .minigrid import MOVES, MiniGrid, MiniGridConfig, _import, load, parse_state

SUBDIVISIONS = 3  # of a pixel, drawn and averaged: MiniGrid's own


@dataclass
class MiniGridImagesConfig(MiniGridConfig):
    tile: int = MISSING  # pixels of a cell's side
    columns: int = MISSING  # cells of the canvas
    rows: int = MISSING  # and one more, for what is held


class MiniGridImages(MiniGrid):
    name = "minigrid_images"
    settings = MiniGridImagesConfig

    def check(self) -> None:
        super().check()
        config = self.config
        for task in config.tasks:
            env = _import().make(f"MiniGrid-{task}-v0").unwrapped
            if env.width > config.columns or env.height > config.rows:
                raise ValueError(
                    f"world.columns={config.columns}, world.rows={config.rows}: {task} has {env.width} columns and "
                    f"{env.height} rows: raise them, or leave it out of world.tasks"
                )

    def picture(self, state: str) -> np.ndarray:
        """uint8 [(rows + 1) * tile, columns * tile, 3]."""
        from minigrid.core.grid import Grid

        config, parsed = self.config, parse_state(state)
        assert parsed is not None, state
        env = load(parsed)
        canvas = np.zeros(((config.rows + 1) * config.tile, config.columns * config.tile, 3), dtype=np.uint8)
        room = env.grid.render(config.tile, parsed.agent, parsed.facing)
        canvas[: room.shape[0], : room.shape[1]] = room
        if env.carrying is not None:
            held = Grid.render_tile(env.carrying, tile_size=config.tile, subdivs=SUBDIVISIONS)
            canvas[-config.tile :, : config.tile] = held
        return canvas

    @classmethod
    def actions_between(cls, x: str, y: str) -> None:
        """Not computed from pictures: the recorded action alone counts as right."""
        return None

    @classmethod
    def words(cls) -> Sequence[str]:
        """The moves, and the numbers that a difference of two pictures has."""
        return (*MOVES, *map(str, range(32)))
