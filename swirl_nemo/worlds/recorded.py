"""Transitions that were recorded elsewhere, such as videos: files to learn from, and nothing to play."""

from random import Random
from typing import Any

from .base import World, WorldConfig


class Recorded(World[WorldConfig]):
    name = "recorded"

    def check(self) -> None:
        raise ValueError("world=recorded: there is nothing to play: give its transitions files under data")

    def reset(self, task: str, rng: Random) -> Any:
        self.check()

    def legal_actions(self, state: Any) -> list[str]:
        return []

    def step(self, state: Any, action: str) -> Any:
        self.check()

    def render(self, state: Any) -> str:
        self.check()
