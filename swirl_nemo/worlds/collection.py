"""`swirl collect`: episodes of a world, divided into the transitions files of a run.

Held-out splits are filled first, so that asking for more training rows leaves them as they are. No episode and no
transition stands in two splits, with `unseen_states` no state either. Rows of a split are shuffled, so that the first N
are a fair sample of it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path
from random import Random

from .base import World
from .config import CollectConfig, WorldConfig
from .registry import load

HELD_OUT_SPLITS = ("test", "validation", "test_combinations")
SPLITS = (*HELD_OUT_SPLITS, "labelled", "unlabelled")
Rows = dict[str, list[dict]]  # by split; a row as DESIGN.md's transitions file has it


def collect(cfg: CollectConfig) -> dict[str, int]:
    """Writes a world's transitions files into `cfg.out` and returns the number of rows of each.

    labelled, validation, test: (x, z, y). test_combinations: rows that make use of an object-action combination which
    no labelled row has. unlabelled: z is null; the true actions lie in unlabelled_actions.jsonl, for diagnostics alone.
    collect.json says what was written. The same configuration writes the same bytes.

    Raises ValueError where the configuration cannot be met, such as too few episodes for the rows asked for.
    """
    _check(cfg)
    with closing(load(cfg.world.name)) as world:
        world.check(cfg.world)
        held_out = _held_out(world, cfg)
        rows = _fill(world, cfg, held_out)
        tokenizer = world.tokenizer()
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    for split, split_rows in rows.items():
        hidden = split == "unlabelled"
        _write(out / f"{split}.jsonl", [{**row, "z": None} if hidden else row for row in split_rows])
        if hidden:
            _write(out / "unlabelled_actions.jsonl", [{"id": row["id"], "z": row["z"]} for row in split_rows])
    if tokenizer is not None:
        tokenizer.save_pretrained(out / "tokenizer")
    description = {"world": cfg.world.name, "seed": cfg.seed, "held_out_combinations": sorted(held_out)}
    description |= _describe(rows, cfg.world.unseen_states)
    (out / "collect.json").write_text(json.dumps(description, indent=2) + "\n")
    return description["rows"]


def _check(cfg: CollectConfig) -> None:
    world = cfg.world
    for key in (*SPLITS, "held_out_combinations"):
        if getattr(world, key) < 0:
            raise ValueError(f"world.{key}={getattr(world, key)}: a count cannot be negative: set it to 0 or more")
    if world.episode_steps < 1:
        raise ValueError(f"world.episode_steps={world.episode_steps}: an episode needs a step: set it to 1 or more")
    if world.test_combinations and not world.held_out_combinations:
        raise ValueError(
            f"world.test_combinations={world.test_combinations}: no combination is held out: "
            "set world.held_out_combinations above 0, or world.test_combinations=0"
        )


def _held_out(world: World, cfg: CollectConfig) -> set[str]:
    count = cfg.world.held_out_combinations
    if count > len(world.combinations):
        raise ValueError(
            f"world.held_out_combinations={count}: {world.name} lists {len(world.combinations)} combinations: ask for "
            "at most as many"
        )
    return set(Random(f"{cfg.seed}/combinations").sample(world.combinations, count))


def _fill(world: World, cfg: CollectConfig, held_out: set[str]) -> Rows:
    """Episode after episode into the first split that is not full yet."""
    episodes = _episodes(world, cfg.world, cfg.seed)
    owner: dict = {}  # the split that a state, or a pair of states, belongs to
    rows: Rows = {}
    for split in SPLITS:
        wanted, found = getattr(cfg.world, split), []
        while len(found) < wanted:
            episode = next(episodes, None)
            if episode is None:
                raise ValueError(
                    f"world.max_episodes={cfg.world.max_episodes}: they gave {len(found)} of {wanted} {split} rows: "
                    f"raise world.max_episodes, or lower world.{split}"
                )
            for row in episode:
                touches_held_out = not held_out.isdisjoint(world.combinations_in(row["z"]))
                if (split == "labelled" and touches_held_out) or (
                    split == "test_combinations" and not touches_held_out
                ):
                    continue
                states = (row["x"], row["y"])
                owned = states if cfg.world.unseen_states else (states,)
                if all(owner.setdefault(item, split) == split for item in owned):
                    found.append(row)
        if wanted:
            Random(f"{cfg.seed}/{split}").shuffle(found)
            rows[split] = found[:wanted]
    return rows


def _episodes(world: World, config: WorldConfig, seed: int) -> Iterator[list[dict]]:
    """Rows of each episode: steps that changed nothing and repeated transitions are left out."""
    seen = set()
    for index in range(config.max_episodes):
        episode = f"{world.name}-{index:05d}"
        rows = []
        for t, step in enumerate(world.episode(config, Random(f"{seed}/{episode}"))):
            if step.x != step.y and step not in seen:
                seen.add(step)
                rows.append({"id": f"{episode}:{t}", **step._asdict(), "world": world.name, "episode": episode, "t": t})
        yield rows


def _describe(rows: Rows, unseen_states: bool) -> dict:
    """Counts, histograms over all rows, and the check that nothing leaked from one split into another."""
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
        "first_verb": dict(sorted(verbs.items())),
        "words": {field: dict(sorted(histogram.items())) for field, histogram in words.items()},
        "in_two_splits": leaks,
    }


def _shared(rows: Rows, items) -> int:
    """How many of the `items` of each row stand in more than one split."""
    by_split = [{item for row in split_rows for item in items(row)} for split_rows in rows.values()]
    return sum(len(one & other) for one, other in combinations(by_split, 2))


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
