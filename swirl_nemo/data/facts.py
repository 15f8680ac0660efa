"""States as facts: what differs between two of them, and a next state written as its edits of the state before."""

from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher

from .images.characters import image_difference

UNCHANGED = "="
GONE, CAME = "- ", "+ "


def facts_of(text: str, separator: str) -> list[str]:
    """What `separator` divides, without empty ones."""
    # A text may end in a separator without the space that follows it elsewhere, as in "a. b."
    whole = text.strip().removesuffix(separator.strip())
    return [fact for part in whole.split(separator) if (fact := part.strip())]


def same_state(one: str, other: str, separator: str) -> bool:
    """Whether two states have the same facts, each as often, in whatever order. Of two images: the same codes."""
    return one == other or Counter(facts_of(one, separator)) == Counter(facts_of(other, separator))


def difference(x: str, y: str, separator: str, image_columns: int | None = None) -> str:
    """The facts in which y differs from x, for {diff}: facts are what `separator` divides, and it joins the result.
    Of two images the codes in which they differ (images/characters.py).

    A fact that took another's place is given as it now is, one that came is marked "+ fact", one that went "- fact";
    states of equal facts give "=". The marks stand apart from the facts by a space, so that a world's tokenizer can
    hold "=", "+" and "-" as words. Defined for any two texts.
    """
    if (codes := image_difference(x, y, image_columns)) is not None:
        return codes
    before, after = facts_of(x, separator), facts_of(y, separator)
    changes: list[str] = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            replaced = min(i_end - i, j_end - j)
            changes += after[j : j + replaced]
            changes += [CAME + fact for fact in after[j + replaced : j_end]]
            changes += [GONE + fact for fact in before[i + replaced : i_end]]
    return separator.join(changes) or UNCHANGED


def edit(x: str, y: str, separator: str, image_columns: int | None = None) -> str:
    """Everything that makes x into y, for {edit} and for data.next_state=edit: "- fact" for each that went, behind it
    "+ fact" for what took its place, at the end "+ fact" for each that came; of equal facts "=". Of two images as in
    `difference`.

    What took a fact's place is the one of those that came which begins with most of its words, and at least with its
    first. The order of facts is not told: `edited` gives back a state of the same facts.
    """
    if (codes := image_difference(x, y, image_columns)) is not None:
        return codes
    before, after = facts_of(x, separator), facts_of(y, separator)
    gone, came = _without(before, after), _without(after, before)
    lines = []
    for fact in gone:
        lines.append(GONE + fact)
        likest = max(came, key=lambda other: _common_start(fact, other), default=None)
        if likest is not None and _common_start(fact, likest):
            came.remove(likest)
            lines.append(CAME + likest)
    return separator.join([*lines, *(CAME + fact for fact in came)]) or UNCHANGED


def edited(x: str, edits: str, separator: str) -> str:
    """The state that `edits` make of x, for any text: a line without a mark is a fact that came, one about a fact that
    x lacks takes nothing away."""
    state, place = facts_of(x, separator), None
    for line in facts_of(edits, separator):
        if line == UNCHANGED:
            place = None
        elif line.startswith(GONE):
            fact = line.removeprefix(GONE)
            place = state.index(fact) if fact in state else None
            if place is not None:
                del state[place]
        else:
            state.insert(len(state) if place is None else place, line.removeprefix(CAME))
            place = None
    return separator.join(state)


def _without(facts: list[str], others: Iterable[str]) -> list[str]:
    """Those that `others` have not, or not as often, in order."""
    left, missing = Counter(others), []
    for fact in facts:
        if left[fact]:
            left[fact] -= 1
        else:
            missing.append(fact)
    return missing


def _common_start(one: str, other: str) -> int:
    """How many words both begin with."""
    count = 0
    for ours, theirs in zip(one.split(), other.split(), strict=False):
        if ours != theirs:
            break
        count += 1
    return count
