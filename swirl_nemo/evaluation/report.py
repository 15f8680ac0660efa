"""report.html of a run: one file, nothing fetched, from what the run folder holds by now."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from rich.table import Table

from ..records import read_lines
from .frames import strips
from .metrics import METRICS, MODELS, NAMES
from .pictures import pictures
from .suites.results import columns, heading, note, rows

_PACKAGES = ("torch", "megatron-core", "nemo-toolkit", "nemo_toolkit", "nemo-aligner", "transformers", "numpy")


class Run(NamedTuple):
    """What a run's folder holds by now."""

    folder: Path  # resolved
    config_text: str
    config: dict
    env: dict
    records: list[dict]  # of metrics.jsonl
    summary: dict  # of an unfinished run: what it has of one
    finished: bool


class Row(NamedTuple):
    """One held-out figure of one role (or of both together), as text; "–" where it is not known."""

    role: str
    metric: str
    figures: list[str]  # of the models that `models` names
    gain: str


def write_report(run_dir: Path) -> Path:
    """Write report.html into `run_dir` and return its path. A run that is not finished is reported as far as it is.

    Raises ValueError where `run_dir` is no run's folder.
    """
    run = read_run(run_dir)
    predictions = _lines(run_dir / "samples.jsonl")
    samples = _by_stage(predictions)
    page = template("report.html.j2").render(
        name=run.folder.name,
        finished=run.finished,
        split=run.summary.get("split", "test"),
        models=[MODELS[model] for model in models(run.summary)],
        rows=held_out_rows(run.summary),
        facts=_facts(run.summary, run.env),
        pictures=pictures(run.records),
        suites=[(heading(entry), columns(entry), rows(entry), note(entry)) for entry in suites_of(run_dir).values()],
        frames=strips(predictions, run.config),
        switches=switches(run.config),
        samples=samples,
        opened=([stage for stage in samples if "swirl" in stage] or [None, *samples])[-1],
        config=run.config_text,
        packages={name: run.env["versions"][name] for name in _PACKAGES if name in run.env["versions"]},
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_run(run_dir: Path) -> Run:
    """The run in `run_dir`, finished or not.

    Raises ValueError, one line, where `run_dir` is no run's folder or a file of it is not to be read.
    """
    for name in ("config.yaml", "env.json"):
        if not (run_dir / name).is_file():
            raise ValueError(f"{run_dir} has no {name}: give the folder of a run, such as runs/latest")
    config_text = (run_dir / "config.yaml").read_text(encoding="utf-8")
    records, finished = _lines(run_dir / "metrics.jsonl"), (run_dir / "summary.json").is_file()
    return Run(
        folder=run_dir.resolve(),
        config_text=config_text,
        config=_parsed(run_dir / "config.yaml", yaml.safe_load),
        env=_parsed(run_dir / "env.json", json.loads),
        records=records,
        summary=_parsed(run_dir / "summary.json", json.loads) if finished else _so_far(records),
        finished=finished,
    )


def _parsed(path: Path, parse: Callable[[str], dict]) -> dict:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not to be read ({' '.join(str(error).split())}): mend it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no keys and values: mend it")
    return found


def suites_of(run_dir: Path) -> dict[str, dict]:
    """Results of the benchmarks that were run on the run's models, by suite."""
    files = sorted(run_dir.glob("suites/*/results.json"))
    return {file.parent.name: _parsed(file, json.loads) for file in files}


def held_out_table(summary: dict) -> Table:
    """summary.json's held-out figures for a terminal."""
    table = Table(title=f"Held out, {summary.get('split', 'test')} split")
    for column in ("role", "metric", *(MODELS[model] for model in models(summary)), "gain"):
        table.add_column(column, justify="left" if column in ("role", "metric") else "right")
    for row in held_out_rows(summary):
        table.add_row(row.role, row.metric, *row.figures, row.gain, end_section=row.metric == "gold log-prob")
    return table


def models(summary: dict) -> list[str]:
    """Warm-up and SWIRL, and between them the baselines that the summary has figures of."""
    known = {"warmup", "swirl"} | {
        model for role in summary["held_out"].values() for figures in role.values() for model in figures
    }
    return [model for model in MODELS if model in known]


def held_out_rows(summary: dict) -> list[Row]:
    """Role by role, metric by metric; a log-prob's gain is the part of its distance from 0 that is gone."""
    shown = models(summary)
    rows = [
        _row(role.upper(), metric, summary["held_out"][role][metric], shown)
        for role in summary["held_out"]
        for metric in METRICS
    ]
    if "cycle_consistency" in summary:
        rows.append(_row("both", "cycle_consistency", summary["cycle_consistency"], shown))
    return rows


def _row(role: str, metric: str, figures: dict[str, float | None], models: list[str]) -> Row:
    before, after = figures.get("warmup"), figures.get("swirl")
    gain = "–" if before is None or after is None or before == 0 else f"{100 * (after - before) / abs(before):+.1f} %"
    return Row(role, NAMES[metric], [as_text(metric, figures.get(model)) for model in models], gain)


def as_text(metric: str, value: float | None) -> str:
    """A figure as every table shows it: three decimals, of a share as per cent."""
    if value is None:
        return "–"
    return f"{value:.3f}" if metric == "gold_logprob" else f"{100 * value:.1f} %"


def _so_far(records: list[dict]) -> dict:
    """What an unfinished run has of a summary: figures of the test split if it has any."""
    return latest(records, "test" if any(r["split"] == "test" for r in records if r.get("eval")) else "validation")


def latest(records: list[dict], split: str) -> dict:
    """Each model's latest figures of `split`, as a summary has them."""
    lines = {r["model"]: r for r in records if r.get("eval") and r["split"] == split}

    def of(name: str) -> dict:
        return {model: line[name] for model, line in lines.items() if name in line}

    held_out = {role: {metric: of(f"{role}/{metric}") for metric in METRICS} for role in ("fwm", "idm")}
    return {"split": split, "held_out": held_out, "cycle_consistency": of("cycle_consistency")}


def switches(config: dict) -> list[tuple[str, str, str]]:
    """Which of the algorithm's switches were on: (name, value for the FWM's phase or for both, value for the IDM's)."""
    fwm, idm = config["phase"]["fwm"], config["phase"]["idm"]

    def both(name: str, key: str, show=str) -> tuple[str, str, str]:
        return name, show(fwm[key]), show(idm[key])

    def weight(value: float) -> str:
        return f"weight {value:g}" if value else "off"

    def least_std(value: float) -> str:
        return f"std under {value:g} dropped" if value else "none dropped for a small std"

    def least(name: str):
        return lambda floor: "off" if floor is None else f"{name} ≥ {floor:g}"

    ceiling = config["annotate"]["certainty_ceiling"]
    alternation = config["alternation"]
    order = " → ".join({"fwm": "FWM (Phase I)", "idm": "IDM (Phase II)"}[name] for name in alternation["order"])
    return [
        ("phase order", f"{order}, {alternation['iterations']} times", ""),
        ("weights", config["model"]["weights"], ""),
        both("policy gradient", "policy_gradient", weight),
        both("dead groups", "dead_std", least_std),
        both("labelled replay", "replay", weight),
        both("M-step", "mstep", weight),
        both("plausibility floor", "plausibility_floor", least("log P(y|x,z)")),
        both("confidence floor", "confidence_floor", least("log Q(z|x,y)")),
        ("certainty ceiling", "off" if ceiling is None else f"above {ceiling:g} put last", ""),
        both("KL", "kl_beta", lambda beta: f"β {beta:g}" if beta else "off"),
        both("group size", "group"),
        both("advantage divided by std", "divide_by_std", lambda on: "yes" if on else "no"),
    ]


def _facts(summary: dict, env: dict) -> list[tuple[str, str]]:
    """What stands under the title."""
    layout = env["layout"]
    commit = env["commit"] and env["commit"][:12] + (" + changes" if env["dirty"] else "")
    facts = [("world", summary.get("world")), ("labels", summary.get("labels_used")), ("seed", env["seed"])]
    if "seconds" in summary:
        facts.append(("time", f"{summary['seconds'] / 60:.1f} min"))
    parts = f"{layout['nodes']}×{layout['devices']} processes, TP {layout['tensor']} × PP {layout['pipeline']}"
    facts += [
        ("layout", f"{parts}, {layout['backend']}"),
        ("commit", commit),
        ("started", f"{env['started'][:16].replace('T', ' ')} UTC"),
    ]
    facts += [("Python", env["python"]), ("platform", env["platform"])]
    return [(name, str(value)) for name, value in facts if value is not None]


def _by_stage(samples: list[dict]) -> dict[str, list[dict]]:
    """Samples in order under their stage, each with its prediction's words marked as the target's own or not."""
    stages: dict[str, list[dict]] = {}
    for row in samples:
        words, target = row["prediction"].split(), row["target"].split()
        blocks = difflib.SequenceMatcher(None, words, target, autojunk=False).get_matching_blocks()
        same = {start + offset for start, _, size in blocks for offset in range(size)}
        marked = [(word, position in same) for position, word in enumerate(words)]
        stages.setdefault(row["stage"], []).append({**row, "marked": marked})
    return stages


def _lines(path: Path) -> list[dict]:
    return read_lines(path) if path.exists() else []


def template(name: str) -> Template:
    """Of this folder; what is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
