"""collect.json: counts, histograms over all rows, sources, and the check that nothing leaked between splits."""

from collections import Counter
from importlib.metadata import metadata
from itertools import combinations

from ..worlds import World
from .episodes import Episodes


def describe(world: World, rows: dict[str, list[dict]], unseen_states: bool, episodes: Episodes) -> dict:
    """What was collected, by name, ready for JSON."""
    every = [row for split_rows in rows.values() for row in split_rows]
    verbs = Counter(row["z"].split()[0] for row in every)
    words = {field: Counter(len(row[field].split()) for row in every) for field in ("x", "z", "y")}
    leaks = {
        "episodes": _shared(rows, lambda row: [row["episode"]]),
        "transitions": _shared(rows, lambda row: [(row["x"], row["z"], row["y"])]),
    }
    if unseen_states:
        leaks["states"] = _shared(rows, lambda row: [row["x"], row["y"]])
    assert not any(leaks.values()), f"splits share {leaks}"
    return {
        "rows": {split: len(split_rows) for split, split_rows in rows.items()},
        "episodes": {"played": episodes.played, "left_out": episodes.left_out, "failures": dict(episodes.failures)},
        "first_verb": dict(sorted(verbs.items())),
        "words": {field: dict(sorted(histogram.items())) for field, histogram in words.items()},
        "in_two_splits": leaks,
        "sources": [source(package) for package in world.packages],
    }


def source(package: str) -> dict[str, str]:
    """Name, version and licence of an installed distribution, as its own metadata states them."""
    about = metadata(package)
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    stated = about.get("License-Expression") or ", ".join(classified) or (about.get("License") or "not stated")
    return {"package": package, "version": about["Version"], "licence": stated.splitlines()[0]}


def _shared(rows: dict[str, list[dict]], items) -> int:
    """How many of the `items` of each row stand in more than one split."""
    by_split = [{item for row in split_rows for item in items(row)} for split_rows in rows.values()]
    return sum(len(one & other) for one, other in combinations(by_split, 2))
