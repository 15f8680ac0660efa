"""Other words in the place of a row's own, for models of random weights.

Where names are few, such a model learns them by heart instead of learning to copy; renamed, they tell it nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from .transition import Transition

WORD = re.compile(r"\w+")


class Renamer:
    """Replaces a share of a row's words, each by one of the corpus that the row does not have, wherever it stands.

    Of a row without an action those of its states, of one with an action those that the action names and a state has:
    what it is done to, not what is done. The names depend on the seed, the step and the transition alone. Images have
    no words and stay.
    """

    def __init__(self, corpus: Sequence[Transition], share: float, seed: int):
        self._share, self._seed = share, seed
        self._words = sorted({word for t in corpus for word in WORD.findall(f"{t.x} {t.y}")} if share else ())

    def __call__(self, transition: Transition, step: int) -> Transition:
        if not self._share:
            return transition
        rng = Random(f"{self._seed}/{step}/{transition.id}")
        own = set(WORD.findall(f"{transition.x} {transition.y}"))
        named = sorted(own if transition.z is None else own & set(WORD.findall(transition.z)))
        chosen = [word for word in named if rng.random() < self._share]
        others = [word for word in rng.sample(self._words, min(len(self._words), 3 * len(own))) if word not in own]
        names = dict(zip(chosen, others, strict=False))
        texts = {field: getattr(transition, field) for field in ("x", "y", "z")}
        new = {
            field: WORD.sub(lambda found: names.get(found[0], found[0]), text)
            for field, text in texts.items()
            if text is not None
        }
        return replace(transition, **new)
