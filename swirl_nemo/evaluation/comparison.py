"""comparison.html: runs side by side in one file, nothing fetched, from what their folders hold by now."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from .curves import Stroke, curves, stroke
from .metrics import METRICS, MODELS, NAMES
from .report import Run, as_text, latest, read_run, template

_MARK = '<meta name="generator" content="swirl report, comparison">'  # the page begins with it, beside the doctype


class Group(NamedTuple):
    """Runs that differ in seed and name alone."""

    name: str
    members: list[int]  # positions among the runs


class Cell(NamedTuple):
    figure: str  # of several runs the mean; "–" where it is not known
    spread: list[str]  # of several runs: lowest to highest and, where not all have it, how many do
    best: bool  # of its row, as far as the decimals that are shown tell


class Row(NamedTuple):
    name: str
    cells: list[list[Cell]]  # group by group, model by model


def write_comparison(run_dirs: list[Path], out: Path | None = None) -> Path:
    """Write the page and return its path: `out`, or comparison.html in the runs' common parent folder.

    A run that is given twice, as by its name and as runs/latest, is shown once. Raises ValueError, one line, where a
    folder is no run's, and where `out` cannot be written or is a file of another kind.
    """
    runs = list({run.folder: run for run in map(read_run, run_dirs)}.values())
    parent = Path(os.path.commonpath([run.folder.parent for run in runs]))
    path = parent / "comparison.html" if out is None else out
    _check(path)
    names = [run.folder.relative_to(parent).as_posix() for run in runs]
    groups = grouped(runs, names)
    strokes = _strokes(groups)
    alone = [Group(name, [number]) for number, name in enumerate(names)]
    page = template("comparison.html.j2").render(
        mark=_MARK,
        runs=[_facts(run, name) for run, name in zip(runs, names, strict=True)],
        strokes=strokes,
        groups=groups,
        seeds=[_seeds(runs, group) for group in groups],
        held_out=held_out(runs, groups),
        several=any(len(group.members) > 1 for group in groups),
        alone=alone,
        held_out_alone=held_out(runs, alone),
        models=[[MODELS[model] for model in _models(runs, group)] for group in groups],
        models_alone=[[MODELS[model] for model in _models(runs, group)] for group in alone],
        names=names,
        differences=differences([run.config for run in runs]),
        curves=curves([run.records for run in runs], strokes),
    )
    path.write_text(page, encoding="utf-8")
    return path


def grouped(runs: list[Run], names: list[str]) -> list[Group]:
    """In order of their first runs. A group of several has the beginning that its runs' names share for a name."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        settings = {k: v for k, v in flat(run.config).items() if k not in ("run.name", "run.seed")}
        found.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(number)
    members = list(found.values())
    stems = [_stem([names[number] for number in group]) for group in members]
    return [
        Group(stem if stem and stems.count(stem) == 1 else ", ".join(names[number] for number in group), group)
        for stem, group in zip(stems, members, strict=True)
    ]


def _stem(names: list[str]) -> str:
    """What the names begin with alike, no number cut in two: "a-1" of "a-1-11" and "a-1-12"."""
    if len(names) == 1:
        return names[0]
    return "".join(os.path.commonprefix([re.split(r"(\d+)", name) for name in names])).rstrip("-_. /")


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """Dotted keys and their values; lists stay whole."""
    keys: dict[str, object] = {}
    for key, value in config.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return keys


def differences(configs: list[dict]) -> list[tuple[str, list[str]]]:
    """Keys, but for run.name, whose values are not the same in all runs: (key, value by run as text)."""
    settings = [flat(config) for config in configs]
    found = []
    for key in sorted(set().union(*settings) - {"run.name"}):
        # as JSON, 1 is not true and "null" not null
        values = [_json(keys[key]) if key in keys else None for keys in settings]
        if len(set(values)) > 1:
            found.append((key, [_shown(keys[key]) if key in keys else "(no such key)" for keys in settings]))
    return found


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else _json(value)


def held_out(runs: list[Run], groups: list[Group]) -> list[tuple[str, list[Row]]]:
    """(split, its rows), the test split first. Validation is shown where a run is not finished: all have that."""
    known = [_by_split(run) for run in runs]
    splits = list(dict.fromkeys(["test split", *(split for by_split in known for split in by_split)]))
    if all(run.finished for run in runs):
        splits.remove("validation split")
    models = [_models(runs, group) for group in groups]
    keys = [(role, metric) for role in ("fwm", "idm") for metric in METRICS] + [("both", "cycle_consistency")]
    sections = []
    for split in splits:
        rows = []
        for role, metric in keys:
            values = [
                [[_figure(known[number], split, role, metric, model) for number in group.members] for model in shown]
                for group, shown in zip(groups, models, strict=True)
            ]
            if any(value is not None for group in values for model in group for value in model):
                name = NAMES[metric] if role == "both" else f"{role.upper()} {NAMES[metric]}"
                rows.append(Row(name, cells(metric, values)))
        sections += [(split, rows)] if rows else []
    return sections


def cells(metric: str, values: list[list[list[float | None]]]) -> list[list[Cell]]:
    """A row's cells of its values by group, model and run. The best is the highest mean; one alone is not marked."""
    means = [[_mean(of_runs) for of_runs in group] for group in values]
    rounded = [round(mean, 3) for group in means for mean in group if mean is not None]
    best = max(rounded) if len(rounded) > 1 else None
    return [
        [
            Cell(as_text(metric, mean), _spread(metric, of_runs), mean is not None and round(mean, 3) == best)
            for mean, of_runs in zip(group_means, group, strict=True)
        ]
        for group_means, group in zip(means, values, strict=True)
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _spread(metric: str, values: list[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if len(values) == 1 or not known:
        return []
    spread = " to ".join(as_text(metric, value).removesuffix(" %") for value in (min(known), max(known)))
    return [spread, *([f"{len(known)} of {len(values)} runs"] if len(known) < len(values) else [])]


def _by_split(run: Run) -> dict[str, dict]:
    """What a run has of each split, as a summary has it."""
    found = {f"{split} split": latest(run.records, split) for split in ("test", "validation")}
    if run.finished:
        found["test split"] = run.summary
        found |= {name: {"held_out": figures} for name, figures in run.summary.get("further", {}).items()}
    return found


def _figure(by_split: dict[str, dict], split: str, role: str, metric: str, model: str) -> float | None:
    figures = by_split.get(split, {})
    of_metric = figures.get(metric) if role == "both" else figures.get("held_out", {}).get(role, {}).get(metric)
    return (of_metric or {}).get(model)


def _models(runs: list[Run], group: Group) -> list[str]:
    """Warm-up and SWIRL, and between them the baselines that a run of the group has figures of."""
    known = {"warmup", "swirl"}
    for number in group.members:
        known |= {r["model"] for r in runs[number].records if r.get("eval")}
        known |= {m for role in runs[number].summary["held_out"].values() for metric in role.values() for m in metric}
    return [model for model in MODELS if model in known]


def _strokes(groups: list[Group]) -> list[Stroke]:
    """Run by run."""
    found = {}
    for place, group in enumerate(groups):
        found |= {number: stroke(place, member) for member, number in enumerate(group.members)}
    return [found[number] for number in sorted(found)]


def _seeds(runs: list[Run], group: Group) -> str:
    seeds = ", ".join(str(runs[number].env.get("seed", "?")) for number in group.members)
    return f"mean of {len(group.members)} runs, seeds {seeds}" if len(group.members) > 1 else f"seed {seeds}"


def _facts(run: Run, name: str) -> dict[str, str]:
    """A run's line of the first table."""
    env, last = run.env, (run.records or [{}])[-1]
    commit = f"{env['commit'][:12]}{' + changes' if env.get('dirty') else ''}" if env.get("commit") else "–"
    seconds = run.summary.get("seconds", last.get("seconds/run"))
    state = "finished"
    if not run.finished:
        at = [str(last[key]) for key in ("phase", "role", "model") if key in last]
        at += [f"{key} {last[key]}" for key in ("iteration", "step") if key in last]
        state = f"not finished: {', '.join(at)}" if at else "not finished: no line yet"
    return {
        "name": name,
        "world": str(run.summary.get("world") or run.config.get("data", {}).get("world", "–")),
        "seed": str(env.get("seed", "–")),
        "commit": commit,
        "time": "–" if seconds is None else f"{seconds / 60:.1f} min",
        "state": state,
    }


def _check(path: Path) -> None:
    """Raises ValueError where `path` cannot be written, or holds what is not a page of this kind."""
    try:
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            begin = file.read(200)
    except OSError as error:
        raise ValueError(f"{path}: not to be written ({error.strerror}): give another --out") from None
    if begin and _MARK not in begin:
        raise ValueError(f"{path}: is there already and no comparison of runs: give another --out")
