"""States as facts: what differs between two of them, and the state that such a difference makes."""

from collections import Counter
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
    """The facts in which y differs from x, for {diff} and for data.next_state=changes: facts are what `separator`
    divides, and it joins the result. Of two images the codes in which they differ (images/characters.py).

    A fact that took another's place is given as it now is, one that came is marked "+ fact", one that went "- fact";
    states of equal facts give "=". Whose place is told by the words that it begins with (`changed`); where those would
    mislead, one went and one came. The marks stand apart from the facts by a space, so that a world's tokenizer can
    hold "=", "+" and "-" as words. Defined for any two texts; x and the difference give y's facts, not their order.
    """
    if (codes := image_difference(x, y, image_columns)) is not None:
        return codes
    state, after = facts_of(x, separator), facts_of(y, separator)
    gone, came, changes = _without(state, after), _without(after, state), []
    for fact in gone:
        new = max(came, key=lambda other: _common_start(fact, other), default=None)
        if new is None or not _common_start(fact, new):
            changes.append(GONE + fact)
            state.remove(fact)
            continue
        came.remove(new)
        told = state[_place(state, new)] == fact and not new.startswith((GONE, CAME)) and new != UNCHANGED
        changes += [new] if told else [GONE + fact, CAME + new]
        state[state.index(fact)] = new
    return separator.join([*changes, *(CAME + fact for fact in came)]) or UNCHANGED


def brief_difference(x: str, y: str, separator: str, image_columns: int | None = None) -> str:
    """As `difference`, but where none of the facts in one place begins like another, those of y take the place of those
    of x, which are not named: shorter for a state that a model wrote whole and made up. x and it do not always tell y.
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


def changed(x: str, changes: str, separator: str) -> str:
    """The state that `changes` make of x, for any text.

    A fact without a mark takes the place of the first of those that begin with most of its words; it came, where none
    begins with its first. What x lacks cannot go. A fact that came right behind one that went stands in its place.
    """
    state, place = facts_of(x, separator), None
    for line in facts_of(changes, separator):
        before, place = place, None
        if line.startswith(GONE):
            fact = line.removeprefix(GONE)
            if fact in state:
                place = state.index(fact)
                del state[place]
        elif line.startswith(CAME):
            state.insert(len(state) if before is None else before, line.removeprefix(CAME))
        elif line != UNCHANGED:
            _put(state, line)
    return separator.join(state)


def _put(state: list[str], fact: str) -> None:
    if (place := _place(state, fact)) is None:
        state.append(fact)
    else:
        state[place] = fact


def _place(state: list[str], fact: str) -> int | None:
    """Of the first of those that begin with most of the fact's words; None where none begins with its first."""
    likeness = [_common_start(other, fact) for other in state]
    return likeness.index(max(likeness)) if any(likeness) else None


def _without(facts: list[str], others: list[str]) -> list[str]:
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
