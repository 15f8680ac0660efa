"""Supervised rows of state-only pairs, for models of random weights. No label is read.

What differs between x and y, as {diff} has it, stands in the action's place: the IDM's task becomes to copy differences
out, the FWM's to carry them out. What is left for the labels is which words an action has for a difference.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from .config import PretrainConfig
from .data.facts import difference
from .data.transition import Transition
from .roles import FWM, IDM, Role

WORD = re.compile(r"\w+")


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
        self._cfg, self._separator, self._seed, self._columns = cfg, separator, seed, image_columns
        self._words = sorted(
            {word for t in transitions for word in WORD.findall(f"{t.x} {t.y}")} if cfg.renamed else ()
        )

    def pairs(self, transitions: list[Transition], step: int) -> list[tuple[Role, Transition]]:
        """A row for each role of each transition. The first `without_action` of the FWM's have an empty action, and
        their own words: what follows a state is about those."""
        bare = round(self._cfg.without_action * len(transitions))
        pairs = []
        for place, transition in enumerate(transitions):
            row = self._renamed(transition, step)
            row = replace(row, z=difference(row.x, row.y, self._separator, self._columns))
            pairs += [(FWM, replace(transition, z="") if place < bare else row), (IDM, row)]
        return pairs

    def _renamed(self, transition: Transition, step: int) -> Transition:
        """The transition with a share of its words replaced, each by one of the corpus that it does not have.

        Where names are few, a model learns them by heart instead of learning to copy; renamed, they tell it nothing.
        Images have no words and stay.
        """
        rng = Random(f"{self._seed}/{step}/{transition.id}")
        own = sorted(set(WORD.findall(f"{transition.x} {transition.y}")))
        chosen = [word for word in own if rng.random() < self._cfg.renamed]
        others = [word for word in rng.sample(self._words, min(len(self._words), 3 * len(own))) if word not in own]
        names = dict(zip(chosen, others, strict=False))
        x, y = (WORD.sub(lambda found: names.get(found[0], found[0]), text) for text in (transition.x, transition.y))
        return replace(transition, x=x, y=y)
