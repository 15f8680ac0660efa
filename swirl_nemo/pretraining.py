"""Supervised rows of state-only pairs, for models of random weights. No label is read.

What differs between x and y (data/facts.py) stands in the action's place: the IDM's task becomes to copy differences
out, the FWM's to carry them out. What is left for the labels is which words an action has for a difference.
"""

from collections.abc import Sequence
from dataclasses import replace

from .config import PretrainConfig
from .data.facts import difference
from .data.renaming import Renamer
from .data.transition import Transition
from .roles import FWM, IDM, Role


class StateOnlyRows:
    """Makes the rows of each step of pre-training; they depend on the seed, the step and the transition alone."""

    def __init__(
        self,
        cfg: PretrainConfig,
        transitions: Sequence[Transition],
        separator: str,
        seed: int,
        image_columns: int | None = None,
    ):
        self._without_action, self._separator, self._columns = cfg.without_action, separator, image_columns
        self._renamed = Renamer(transitions, cfg.renamed, seed)

    def pairs(self, transitions: list[Transition], step: int) -> list[tuple[Role, Transition]]:
        """A row for each role of each transition. The first `without_action` of the FWM's have an empty action, and
        their own words: what follows a state is about those."""
        bare = round(self._without_action * len(transitions))
        pairs = []
        for place, transition in enumerate(transitions):
            row = self._renamed(replace(transition, z=None), step)
            row = replace(row, z=difference(row.x, row.y, self._separator, self._columns))
            pairs += [(FWM, replace(transition, z="") if place < bare else row), (IDM, row)]
        return pairs
