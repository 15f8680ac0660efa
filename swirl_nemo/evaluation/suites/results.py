"""From scores of items to tables: part by part, model beside model, and the gain beside the published one."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.table import Table

from ..metrics import MODELS
from .base import Fault, Item, Suite
from .texts import corpus_scores

NAMES = {
    "judge/overall": "judge",
    "clip_target": "CLIP, target",
    "clip_source": "CLIP, before",
    "clip_success": "nearer the target (CLIP)",
    "clip_direction": "direction (CLIP)",
    "clip_caption": "CLIP, caption",
    "clip_caption_direction": "direction of captions (CLIP)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "l1": "L1",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
}
LOWER_IS_BETTER = {"l1", "lpips"}
OVERALL = "overall"


def summary(suite: Suite, items: Sequence[Item], faults: Sequence[Fault], models: dict[str, dict[str, dict]]) -> dict:
    """A suite's entry in summary.json. `models`: {model: {PART/ID: row}}, a row with "scores" (and "unmoved"), one dict
    a step, and of text "predictions". Means are over the steps of the items that every model has scores of.

    {"title", "parts": {part: {"items", "faults", "scores": {score: {model: mean}}, "unmoved": {score: mean}}},
     "headline": score, "gain": of SWIRL over the warm-up, relative, or null, "published_gain", "by_step": ...}
    """
    common = [item for item in items if all("scores" in rows.get(item.key, {}) for rows in models.values())]
    present = {each.part for each in (*items, *faults)}
    parts = [part for part in suite.parts if part in present] + sorted(present - suite.parts.keys())
    sections = {
        part: _section(
            suite,
            [item for item in common if item.part == part],
            sum(fault.part == part for fault in faults),
            models,
        )
        for part in parts
    }
    sections[OVERALL] = _section(suite, common, len(faults), models)
    return {
        "title": suite.title,
        "kind": suite.kind,
        "names": {part: suite.parts.get(part, part) for part in sections} | {OVERALL: "All"},
        "parts": sections,
        "by_step": _by_step(common, models),
        **_headline(suite, sections[OVERALL]["scores"]),
        "published_gain": suite.published_gain,
    }


def _section(suite: Suite, items: Sequence[Item], faults: int, models: dict[str, dict[str, dict]]) -> dict:
    of_models = {
        model: means(step for item in items for step in rows[item.key]["scores"]) for model, rows in models.items()
    }
    if suite.kind == "text" and items:
        targets = [step.target for item in items for step in item.steps]
        for model, rows in models.items():
            of_models[model] |= corpus_scores([p for item in items for p in rows[item.key]["predictions"]], targets)
    names = dict.fromkeys(name for scores in of_models.values() for name in scores)
    scores = {name: {model: found[name] for model, found in of_models.items() if name in found} for name in names}
    rows = next(iter(models.values()), {})
    unmoved = means(step for item in items for step in rows[item.key].get("unmoved", ()))
    return {"items": len(items), "faults": faults, "scores": scores, "unmoved": unmoved}


def _by_step(items: Sequence[Item], models: dict[str, dict[str, dict]]) -> dict[str, list[dict]]:
    """Of a suite of several steps, {model: [means of the first step, of the second, ...]}."""
    longest = max((len(item.steps) for item in items), default=0)
    if longest < 2:
        return {}
    return {
        model: [
            means(rows[item.key]["scores"][number] for item in items if number < len(item.steps))
            for number in range(longest)
        ]
        for model, rows in models.items()
    }


def means(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of each score, over those that have it."""
    found: dict[str, list[float]] = {}
    for each in scores:
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def _headline(suite: Suite, scores: dict[str, dict[str, float]]) -> dict:
    name = next((name for name in suite.cfg.headline if name in scores), None)
    of = scores.get(name, {})
    return {"headline": name, "gain": gain(name, of.get("warmup"), of.get("swirl"))}


def gain(name: str | None, before: float | None, after: float | None) -> float | None:
    """Relative, positive where it is better; None where one is not known or there is nothing to compare with."""
    if before is None or after is None or before == 0:
        return None
    return (after - before) / abs(before) * (-1 if name in LOWER_IS_BETTER else 1)


def model_names(entry: dict) -> dict[str, str]:
    """The models that a suite's entry has scores of, with their titles, in the order of every table."""
    known = {model for figures in entry["parts"][OVERALL]["scores"].values() for model in figures}
    return {model: title for model, title in MODELS.items() if model in known} | {
        model: model for model in sorted(known - MODELS.keys())
    }


def rows(entry: dict) -> list[list[str]]:
    """One row a part: its name, how many items, and each model's headline score, the unmoved state's and the gain."""
    name, models = entry["headline"], model_names(entry)
    found = []
    for part, section in entry["parts"].items():
        of = section["scores"].get(name, {})
        items = str(section["items"]) + (f" ({section['faults']} not read)" if section["faults"] else "")
        figures = [as_text(of.get(model)) for model in models]
        gained = gain(name, of.get("warmup"), of.get("swirl"))
        found.append([entry["names"][part], items, *figures, as_text(section["unmoved"].get(name)), as_percent(gained)])
    return found


def columns(entry: dict) -> list[str]:
    return ["part", "items", *model_names(entry).values(), "unmoved", "gain"]


def as_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def as_percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f} %"


def heading(entry: dict) -> str:
    score = NAMES.get(entry["headline"], entry["headline"] or "no score")
    return f"{entry['title']}: {score}; published gain {as_percent(entry['published_gain'])}"


def note(entry: dict) -> str:
    """All scores over all items, and what the judge could not answer."""
    models = model_names(entry)
    others = [
        f"{NAMES.get(name, name)} " + ", ".join(f"{title} {as_text(of.get(model))}" for model, title in models.items())
        for name, of in entry["parts"][OVERALL]["scores"].items()
        if name != entry["headline"]
    ]
    judged, open_ = entry["judge"], ""
    if judged and (left := judged["given_up"] + judged["unanswered"]):
        open_ = f" The judge gave no valid answer to {left} of {judged['questions']} questions."
    gained = (
        "Gain: of SWIRL over the warm-up, relative; the paper's abstract does not say of which score the published one "
        "is. Unmoved: the first state left as it is."
    )
    return f"{gained} Over all items: {'; '.join(others) or 'no other score'}.{open_}"


def table(entry: dict) -> Table:
    """For a terminal."""
    found = Table(title=heading(entry))
    for number, column in enumerate(columns(entry)):
        found.add_column(column, justify="right" if number else "left")
    for row in rows(entry):
        found.add_row(*row)
    return found
