"""How one held-out prediction is judged, and the names of figures and models. A run's figures are means.

FWM and IDM are measured alike: exact match, token F1 and the log-prob of the gold completion.
"""

from collections import Counter
from operator import eq

from ..data.images.characters import image_codes

METRICS = ("exact_match", "token_f1", "gold_logprob")
NAMES = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "gold_logprob": "gold log-prob",
    "cycle_consistency": "cycle consistency",
}
MODELS = {
    "warmup": "warm-up",
    "continued_sft": "continued SFT",
    "pseudo_labels": "pseudo-label SFT",
    "merged": "merged SFT",
    "all_labels": "all labels",
    "swirl": "SWIRL",
}


def exact_match(prediction: str, target: str) -> bool:
    """Whether the prediction is the target to the letter."""
    return prediction == target


def right_action(action: str, gold: str, leading: list[str] | None) -> bool:
    """Whether `action` is the gold one or, where the world can tell, any other that leads from x to y.

    `leading`: the world's `actions_between(x, y)`, None where it cannot tell.
    """
    return exact_match(action, gold) or action in (leading or [])


def token_f1(prediction: str, target: str) -> float:
    """Harmonic mean of precision and recall of whitespace tokens, each counted as often as it occurs (SQuAD's F1).

    1 where both are empty. Of two images the share of codes that are right, place by place: with as many codes in both,
    precision and recall.
    """
    images = image_codes(prediction), image_codes(target)
    if None not in images and len(images[0]) == len(images[1]):
        return sum(map(eq, *images)) / len(images[0])
    ours, theirs = Counter(prediction.split()), Counter(target.split())
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())
