"""Items through a generator and its predictions through the scores, divided among ranks, a line an item finished."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .base import Damaged, Item, Step, Stored, Suite
from .generation import Generator, Refused, Request, file_name
from .ledger import Ledger, Ranks
from .pictures import PictureScores
from .rubric import Question
from .texts import text_scores

SECONDS = 30.0  # between two lines of progress in a log file; on a terminal they come ten times as often


@dataclass(frozen=True)
class Place:
    """Where a model's predictions and scores lie, who works on them, and who is told."""

    folder: Path
    ranks: Ranks
    say: Callable[[str], None]


def action(suite: Suite, item: Item, step: int) -> str:
    """What the FWM is given as the action of a step: suite.instruction, filled."""
    actions = [each.action for each in item.steps]
    return suite.cfg.instruction.format(
        action=actions[step], plan="; ".join(actions), step=step + 1, steps=len(item.steps)
    )


def generate(
    suite: Suite, items: Sequence[Item], generator: Generator, place: Place, key: str, batch: int
) -> dict[str, dict]:
    """Predictions of all items: rows {"part", "id", "predictions": [text, or a picture's file in the folder]}, or with
    "fault". Collective; what an earlier run has finished under the same `key` is taken as it is."""
    ledger = Ledger(place.folder, "predictions", key, place.ranks)
    mine = _share([item for item in items if item.key not in ledger.finished], place.ranks)
    progress = _Progress("generated", len(mine), place)
    for start in range(0, len(mine), batch):
        for item, outcome in _predict(suite, mine[start : start + batch], generator):
            row = {"part": item.part, "id": item.id}
            if isinstance(outcome, str):
                ledger.append(row | {"fault": outcome})
            elif place.ranks.writes:
                ledger.append(row | {"predictions": [_kept(p, item, k, place) for k, p in enumerate(outcome)]})
            progress.more()
    place.ranks.wait()
    return ledger.rows()


def _predict(
    suite: Suite, items: Sequence[Item], generator: Generator
) -> Iterator[tuple[Item, str | list[str | Image.Image]]]:
    """Each item with its predictions, one a step, or with what is wrong. A prediction is the next step's state."""
    states: dict[str, list[str | Image.Image]] = {}
    faults: dict[str, str] = {}
    for item in items:
        try:
            states[item.key] = [opened(item.start)]
            for step in item.steps:
                opened(step.target)
        except Damaged as error:
            faults[item.key] = str(error)
    for number in range(max(len(item.steps) for item in items)):
        going = [item for item in items if item.key not in faults and number < len(item.steps)]
        requests = [
            Request(item, number, states[item.key][-1], action(suite, item, number), tuple(states[item.key][:-1]))
            for item in going
        ]
        for item, outcome in zip(going, generator(requests) if requests else [], strict=True):
            if isinstance(outcome, Refused):
                faults[item.key] = outcome.why
                continue
            states[item.key].append(outcome)
    for item in items:
        yield item, faults.get(item.key) or states[item.key][1:]


def opened(state):
    """A state or target as it is compared: text, a decoded picture, or None. Raises Damaged."""
    return state if state is None or isinstance(state, str) else state.load()


def _kept(prediction: str | Image.Image, item: Item, step: int, place: Place) -> str:
    if isinstance(prediction, str):
        return prediction
    name = f"pictures/{file_name(item, step, 'png')}"
    (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
    prediction.save(place.folder / name)
    return name


def predicted(suite: Suite, row: dict, step: int, folder: Path) -> str | Image.Image:
    """A row's prediction. Raises Damaged."""
    kept = row["predictions"][step]
    return kept if suite.kind == "text" else Stored(folder / kept, kept).load()


def score(
    suite: Suite, items: Sequence[Item], rows: dict[str, dict], pictures: PictureScores | None, place: Place, key: str
) -> dict[str, dict]:
    """Scores of all predictions in `rows`: {"part", "id", "scores": [{name: value}], "unmoved": [...]}, one a step, the
    latter of pictures alone: of the state before the item's first step, in place of a prediction. Collective."""
    ledger = Ledger(place.folder, "scores", key, place.ranks)
    left = [item for item in items if item.key in rows and item.key not in ledger.finished]
    mine = _share([item for item in left if "fault" not in rows[item.key]], place.ranks)
    progress = _Progress("scored", len(mine), place)
    for item in mine if place.ranks.writes else ():
        row = {"part": item.part, "id": item.id}
        try:
            ledger.append(row | _scores(suite, item, rows[item.key], pictures, place.folder))
        except Damaged as error:
            ledger.append(row | {"fault": str(error)})
        progress.more()
    place.ranks.wait()
    return ledger.rows()


def _scores(suite: Suite, item: Item, row: dict, pictures: PictureScores | None, folder: Path) -> dict:
    if pictures is None:
        return {"scores": [text_scores(p, s.target) for p, s in zip(row["predictions"], item.steps, strict=True)]}
    start = before = opened(item.start)
    scores, unmoved = [], []
    for number, step in enumerate(item.steps):
        prediction, target = predicted(suite, row, number, folder), opened(step.target)
        scores.append(pictures(prediction, before, target, step.captions))
        unmoved.append({} if target is None else pictures.likeness(start, target))
        before = prediction
    return {"scores": scores, "unmoved": unmoved}


def questions(suite: Suite, item: Item, row: dict, folder: Path) -> list[Question]:
    """What the judge is asked about each step's prediction."""

    return [_question(suite, item, row, number, step, folder) for number, step in enumerate(item.steps)]


def _question(suite: Suite, item: Item, row: dict, number: int, step: Step, folder: Path) -> Question:
    def before():
        return predicted(suite, row, number - 1, folder) if number else opened(item.start)

    shown = {
        "before": before,
        "prediction": lambda: predicted(suite, row, number, folder),
        "target": lambda: opened(step.target),
    }
    texts = {name: show() if suite.kind == "text" else "" for name, show in shown.items()}
    plan = "; ".join(each.action for each in item.steps)
    fields = {**texts, "action": step.action, "plan": plan, "step": str(number + 1), "steps": str(len(item.steps))}
    return Question(fields, shown)


def _share(items: Sequence[Item], ranks: Ranks) -> list[Item]:
    """Every so-manyth, so that each rank has of each part."""
    return list(items[ranks.number :: ranks.count])


class _Progress:
    """Lines on how far the main process is, which is as far as the others are."""

    def __init__(self, what: str, total: int, place: Place):
        self._what, self._total, self._place, self._done = what, total, place, 0
        self._began = self._said = time.monotonic()
        self._every = SECONDS / 10 if sys.stderr.isatty() else SECONDS

    def more(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._place.ranks.main and (self._done == self._total or now - self._said > self._every):
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            of_all = f", on each of {self._place.ranks.count} ranks" if self._place.ranks.count > 1 else ""
            self._place.say(f"{self._what} {self._done} of {self._total} items{of_all}; {left:.0f} s left")
