"""A prior over actions, p(z): what is known of them before any state is seen.

The ELBO of Phase II is E_Q[log P(y|x,z)] - KL(Q || p(z|x)) (Qiu et al. 2026, Theorem 3.2). Without its second term the
FWM's word is all that counts, and it understands actions that nobody would say: `mkdir archives workspace` tells it
more than `mkdir workspace` does (docs/tried.md). What a handful of labels can say of p(z) is what actions look like.
"""

from collections.abc import Iterable


def form(action: str) -> tuple[str, int]:
    """The first word, and the number of words."""
    words = action.split()
    return (words[0] if words else "", len(words))


class Prior:
    """log p(z) up to a constant: 0 for an action that has the form of a labelled one, `new_form` nats for others."""

    def __init__(self, labelled: Iterable[str], new_form: float):
        self._forms = {form(action) for action in labelled}
        self._new_form = new_form

    def __call__(self, action: str) -> float:
        return 0.0 if form(action) in self._forms else self._new_form
