"""Episodes of a world, divided into the transitions files of a run.

Held-out splits are filled first, so that asking for more training rows leaves them as they are. No episode and no
transition stands in two splits, with `unseen_states` no state either. Rows of a split are shuffled, so that the first N
are a fair sample of it; with `label_pool` the first N labels have as many of each verb as may be.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from random import Random

from tqdm import tqdm

from ..worlds import Step, World, find
from .config import CollectConfig
from .description import describe
from .episodes import Episodes
from .workers import Job

HELD_OUT_SPLITS = ("test", "validation", "test_combinations", "test_tasks")
SPLITS = (*HELD_OUT_SPLITS, "labelled", "unlabelled")
Rows = dict[str, list[dict]]  # by split; a row as DESIGN.md's transitions file has it


def collect(cfg: CollectConfig) -> dict[str, int]:
    """Writes a world's transitions files into `cfg.out` and returns the number of rows of each.

    labelled, validation, test: (x, z, y). test_combinations: rows that make use of a combination which no labelled row
    has. test_tasks: rows of tasks that no other split has. test_episodes: the episodes that test's rows are from, step
    by step. unlabelled: z is null; the true actions lie in unlabelled_actions.jsonl, for diagnostics alone.
    collect.json says what was written, episodes.jsonl keeps what was played. The same configuration writes the same
    bytes, and one that was stopped goes on.

    Raises ValueError where the configuration cannot be met, such as too few episodes for the rows asked for.
    """
    _check(cfg)
    out = Path(cfg.out)
    with closing(find(cfg.world.name)(cfg.world)) as world:
        world.check()
        tasks = list(world.tasks())
        combinations = _drawn(cfg, "combinations", world.combinations)
        held_out = _drawn(cfg, "tasks", tasks, spared=1)
    with closing(Episodes(cfg, out / "episodes.jsonl")) as episodes:
        filler = _Filler(cfg, world, combinations, episodes)
        seen = [task for task in tasks if task not in held_out]
        rows = filler.fill(seen, sorted(held_out))
    _write_splits(out, rows, filler.test_episodes, _drawing(world, out) if world.picture else dict)
    _write_tokenizer(out / "tokenizer", world.words(), rows, cfg.vocabulary)
    description = {"world": cfg.world.name, "seed": cfg.seed, "settings": asdict(cfg.world)}
    description |= {"held_out_combinations": sorted(combinations), "held_out_tasks": sorted(held_out)}
    description |= describe(world, rows, cfg.world.unseen_states, episodes)
    (out / "collect.json").write_text(json.dumps(description, indent=2) + "\n")
    return description["rows"]


def _check(cfg: CollectConfig) -> None:
    world = cfg.world
    for key in (*SPLITS, "label_pool", "held_out_combinations", "held_out_tasks"):
        if getattr(world, key) < 0:
            raise ValueError(f"world.{key}={getattr(world, key)}: a count cannot be negative: set it to 0 or more")
    for key, value in (("world.episode_steps", world.episode_steps), ("processes", cfg.processes)):
        if value < 1:
            raise ValueError(f"{key}={value}: nothing could be played: set it to 1 or more")
    if cfg.history < 0:
        raise ValueError(f"history={cfg.history}: a count cannot be negative: set it to 0 or more")
    for kind in ("combinations", "tasks"):
        if getattr(world, f"test_{kind}") and not getattr(world, f"held_out_{kind}"):
            raise ValueError(
                f"world.test_{kind}={getattr(world, f'test_{kind}')}: none of the {kind} is held out: "
                f"set world.held_out_{kind} above 0, or world.test_{kind}=0"
            )


def _drawn(cfg: CollectConfig, kind: str, known: Sequence[str], spared: int = 0) -> set[str]:
    """The combinations or tasks to hold out, such that `spared` are left."""
    count = getattr(cfg.world, f"held_out_{kind}")
    if count > (most := max(0, len(known) - spared)):
        raise ValueError(
            f"world.held_out_{kind}={count}: {cfg.world.name} can hold out {most} {kind}: ask for at most as many"
        )
    return set(Random(f"{cfg.seed}/{kind}").sample(known, count))


class _Filler:
    """Episode after episode into the first split that is not full yet."""

    def __init__(self, cfg: CollectConfig, world: World, combinations: set[str], episodes: Episodes):
        self._cfg, self._world, self._combinations, self._episodes = cfg, world, combinations, episodes
        self._owner: dict = {}  # the split that a state, or a pair of states, belongs to
        self._seen: set = set()
        self.test_episodes: list[dict] = []

    def fill(self, tasks: list[str], held_out: list[str]) -> Rows:
        streams = {"test_tasks": self._episodes.stream(held_out, "-unseen")}
        others = self._episodes.stream(tasks)
        rows = {}
        for split in SPLITS:
            wanted = getattr(self._cfg.world, split)
            pool = self._cfg.world.label_pool if split == "labelled" else 0
            if wanted:
                among = wanted * max(pool, 1)
                found = self._take(split, among, streams.get(split, others))
                Random(f"{self._cfg.seed}/{split}").shuffle(found)
                rows[split] = (in_turn(found[:among]) if pool else found)[:wanted]
        return rows

    def _take(self, split: str, wanted: int, stream: Iterator[tuple[Job, list[Step]]]) -> list[dict]:
        found: list[dict] = []
        progress = tqdm(total=wanted, desc=split, unit=" rows", disable=None)  # on a terminal alone
        while len(found) < wanted:
            progress.update(len(found) - progress.n)
            job, steps = next(stream, (None, []))
            if job is None:
                raise ValueError(
                    f"world.max_episodes={self._cfg.world.max_episodes}: they gave {len(found)} of {wanted} {split} "
                    f"rows: raise world.max_episodes, or lower world.{split}"
                )
            for t, step in enumerate(steps):
                if step.x == step.y:
                    continue
                row = {"id": f"{job.episode}:{t}", **step._asdict()}
                row |= {"world": self._cfg.world.name, "episode": job.episode, "t": t}
                if self._cfg.history:
                    row["history"] = self._history(steps[max(0, t - self._cfg.history) : t], split)
                if split == "test":
                    self.test_episodes.append(row)
                if step not in self._seen and self._belongs(step, split):
                    found.append(row)
                self._seen.add(step)
        progress.update(wanted - progress.n)
        progress.close()
        return found

    def _history(self, earlier: list[Step], split: str) -> list[str]:
        """States before a step, back to one that is another split's."""
        own = takewhile(lambda step: self._owner.get(step.x, split) == split, reversed(earlier))
        return [step.x for step in own][::-1]

    def _belongs(self, step: Step, split: str) -> bool:
        """Takes the step's states, or the pair of them, for the split where no other has them."""
        touches_held_out = not self._combinations.isdisjoint(self._world.combinations_in(step))
        if (split == "labelled" and touches_held_out) or (split == "test_combinations" and not touches_held_out):
            return False
        states = (step.x, step.y)
        owned = states if self._cfg.world.unseen_states else (states,)
        return all(self._owner.setdefault(item, split) == split for item in owned)


def in_turn(rows: list[dict]) -> list[dict]:
    """Verbs by turns: no action's first word comes again before each that is left has come as often. So the first N
    labels are what somebody would write down who wants a few of each."""
    came: Counter[str] = Counter()
    turns = []
    for row in rows:
        verb = row["z"].split()[0]
        turns.append(came[verb])
        came[verb] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=itemgetter(0))]


def _write_splits(out: Path, rows: Rows, test_episodes: list[dict], shown: Callable[[dict], dict]) -> None:
    """`shown`: a row as it is written."""
    out.mkdir(parents=True, exist_ok=True)
    for split, split_rows in rows.items():
        hidden = split == "unlabelled"
        _write(out / f"{split}.jsonl", [shown({**row, "z": None} if hidden else row) for row in split_rows])
        if hidden:
            _write(out / "unlabelled_actions.jsonl", [{"id": row["id"], "z": row["z"]} for row in split_rows])
    if test_episodes:
        _write(out / "test_episodes.jsonl", [shown(row) for row in test_episodes])


def _drawing(world: World, out: Path) -> Callable[[dict], dict]:
    """Rows with pictures for states; each state is drawn once, into a file that is named for it."""
    from PIL import Image

    folder = out / "frames"
    folder.mkdir(parents=True, exist_ok=True)

    @cache
    def drawn(state: str) -> dict[str, str]:
        name = f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.png"
        Image.fromarray(world.picture(state)).save(folder / name)
        return {"image": f"{folder.name}/{name}"}

    def shown(row: dict) -> dict:
        row = {**row, "x": drawn(row["x"]), "y": drawn(row["y"])}
        return row | {"history": [drawn(state) for state in row["history"]]} if "history" in row else row

    return shown


def _write_tokenizer(folder: Path, words: Sequence[str] | None, rows: Rows, size: int) -> None:
    """Of the world's words, or trained on what a run trains on: an unlabelled row's action is not of it."""
    from .tokenizers import bpe_tokenizer, word_tokenizer  # transformers takes seconds to import; no worker needs it

    if words is None:
        texts = [row[field] for row in rows.get("labelled", []) for field in ("x", "z", "y")]
        texts += [row[field] for row in rows.get("unlabelled", []) for field in ("x", "y")]
        tokenizer = bpe_tokenizer(texts, size)
    else:
        tokenizer = word_tokenizer(words)
    tokenizer.save_pretrained(folder)


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
