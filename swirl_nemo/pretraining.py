"""Supervised rows of state-only pairs, for models of random weights. No label is read.

What differs between x and y, as {diff} has it, stands in the action's place: the IDM's task becomes to copy differences
out, the FWM's to carry them out. What is left for the labels is which words an action has for a difference.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

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
        self._cfg, self._seed, self._separator, self._columns = cfg, seed, separator, image_columns
        self._renamed = Renamer(transitions, cfg.renamed, seed)

    def pairs(self, transitions: list[Transition], step: int, progress: float = 1.0) -> list[tuple[Role, Transition]]:
        """A row for each role of each transition.

        The first `without_action` of the FWM's have an empty action, and their own words: what follows a state is about
        those. The others' actions lack up to `dropped` * `progress` of their words: to copy comes first.
        """
        bare = round(self._cfg.without_action * len(transitions))
        pairs = []
        for place, transition in enumerate(transitions):
            row = self._renamed(replace(transition, z=None), step)
            row = replace(row, z=difference(row.x, row.y, self._separator, self._columns))
            fwm = (
                replace(transition, z="")
                if place < bare
                else replace(row, z=self._shortened(row, step, self._cfg.dropped * progress))
            )
            pairs += [(FWM, fwm), (IDM, row)]
        return pairs

    def _shortened(self, row: Transition, step: int, most: float) -> str:
        """Its action without a share of the words, drawn between 0 and `most`: the rest is to be read off the state,
        as it is behind an action that names what it is done to and no more."""
        if not most:
            return row.z
        rng = Random(f"{self._seed}/{step}/{row.id}/dropped")
        share = most * rng.random()
        return " ".join(word for word in row.z.split() if rng.random() >= share)
