#!/usr/bin/env python3
"""The tables of docs/ and of README.md from what `recipes/evidence.py` kept in docs/evidence.

Command: python recipes/evidence_tables.py
Expect: docs/evidence/NAME.md of each experiment, and what stands between `<!-- table: ... -->` and `<!-- end -->` in
docs/results.md, docs/ablations.md and README.md. tests/test_evidence.py compares them with the files.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

from swirl_nemo.data.facts import difference
from swirl_nemo.evaluation.metrics import METRICS, MODELS
from swirl_nemo.settings import compose

KEPT, FILLED = Path("docs/evidence"), ("docs/results.md", "docs/ablations.md", "README.md")
EXPERIMENTS = {  # in this order; others after them, under their own name
    "minigrid": "MiniGrid",
    "bfcl": "BFCL",
    "miniwob": "MiniWoB++",
    "scienceworld": "ScienceWorld",
    "minigrid_images": "MiniGrid in pictures",
    "minigrid_images_history": "MiniGrid in pictures, with history",
}
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ABLATIONS = {
    "no_prior": "no prior over actions",
    "no_gradient": "Phase I's policy gradient off",
    "equal_time": "Phase I's policy gradient off, for as many seconds",
    "permuted": "Phase I's advantages permuted",
    "phase_1": "Phase I alone",
    "phase_2": "Phase II alone",
}
TITLES = {"exact_match": "exact match, %", "token_f1": "token F1, %", "gold_logprob": "gold log-prob, nats"}
WEIGHTS = {"swirl": "", "shared": ", shared weights"}  # runs with baselines
SPLITS = {"test_combinations": "combinations without a label", "test_tasks": "tasks never seen"}
LONGEST = 200  # characters of a sample: a small model can say one fact twenty times
Kept = dict[str, dict[int, dict]]  # by run and seed


def read(experiment: str) -> Kept:
    found: Kept = {}
    for path in sorted((KEPT / experiment).glob("*.json")):
        run, _, seed = path.stem.rpartition("-")
        found.setdefault(run, {})[int(seed)] = json.loads(path.read_text())
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def cell(values: list[float | None], *, percent: bool = True) -> str:
    """The mean, and the least and the most where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    scaled = [100 * value if percent else value for value in known]
    spread = f" ({min(scaled):.1f} to {max(scaled):.1f})" if len(scaled) > 1 else ""
    return f"{fmean(scaled):.1f}{spread}"


def models(kept: Kept) -> Iterator[tuple[str, list[dict], str]]:
    """Rows of the main table: a name, the runs of all seeds, and the model of them that is meant."""
    for run, beside in WEIGHTS.items():
        runs = list(kept.get(run, {}).values())
        for model in _made(runs):
            yield MODELS[model] + beside, runs, model


def _made(runs: list[dict]) -> list[str]:
    """The models that some of the runs have, SWIRL last."""
    names = (*(name for name in MODELS if name != "swirl"), "swirl")
    return [name for name in names if any(name in run["held_out"]["fwm"]["exact_match"] for run in runs)]


def main_table(kept: Kept) -> str:
    columns = [(role, metric) for role in ("fwm", "idm") for metric in METRICS]
    rows = []
    for name, runs, model in models(kept):
        figures = [
            cell([run["held_out"][role][metric].get(model) for run in runs], percent=metric != "gold_logprob")
            for role, metric in columns
        ]
        cycle = cell([run["cycle_consistency"].get(model) for run in runs])
        rows.append([name, str(len(runs)), *figures, cycle])
    head = ["", "seeds", *(f"{role.upper()} {TITLES[metric]}" for role, metric in columns), "cycle consistency, %"]
    return table(head, rows)


def seeds(kept: Kept, run: str = "swirl") -> str:
    """Exact match, seed by seed: the best of SWIRL and what has no more labels in bold, the gain over warm-up."""
    runs = kept.get(run, {})
    if not runs:
        return ""
    made = _made(list(runs.values()))
    names, bound = [name for name in made if name != "all_labels"], ["all_labels"] * ("all_labels" in made)
    rows = []
    for role in ("fwm", "idm"):
        for seed, figures in sorted(runs.items()):
            exact = figures["held_out"][role]["exact_match"]
            best = max(exact[name] for name in names if name in exact)
            shown = [_exact(exact.get(name), best) for name in names]
            shown[-1] += f" ({relative(exact['swirl'], exact['warmup'])})"
            after = str(figures["kept"].get(role, figures["kept"].get("shared", "last")))
            rows.append([str(seed), role.upper(), *shown, after, *(_exact(exact.get(name)) for name in bound)])
    head = [*(MODELS[name] for name in names), "kept after iteration", *(MODELS[name] for name in bound)]
    return table(["seed", "", *head], rows)


def has_prior(experiment: str) -> bool:
    """Whether SWIRL has a prior over actions there. Where it has none, `no_prior` is SWIRL itself, run once more."""
    return bool(compose([f"experiment={experiment}"]).alternation.new_form)


def titles(experiment: str) -> dict[str, str]:
    """What each ablation is called: none has a prior."""
    if has_prior(experiment):
        return {run: title if run == "no_prior" else f"no prior, {title}" for run, title in ABLATIONS.items()}
    return ABLATIONS | {"no_prior": "SWIRL, without baselines"}


def ablations(experiment: str, kept: Kept) -> str:
    """Exact match of SWIRL and of its ablations from the same warm-up, seed by seed and in the mean."""
    beside = "swirl" if has_prior(experiment) else "no_prior"
    named = {run: title for run, title in titles(experiment).items() if run in kept and run != beside}
    if not named or beside not in kept:
        return ""
    _check_warmups(kept, named, beside)
    shown = sorted({seed for run in named for seed in kept[run]} & kept[beside].keys())

    def row(title: str, runs: dict[int, dict], model: str) -> list[str]:
        cells = [title]
        for role in ("fwm", "idm"):
            values = [runs[seed]["held_out"][role]["exact_match"][model] if seed in runs else None for seed in shown]
            cells += [_exact(value) for value in values]
            cells += [_exact(None if None in values else fmean(values))] if len(shown) > 1 else []
        return cells

    rows = [row("warm-up", kept[beside], "warmup"), row("SWIRL", kept[beside], "swirl")]
    rows += [row(title, kept[run], "swirl") for run, title in named.items()]
    columns = [*(f"seed {seed}" for seed in shown), *(["mean"] if len(shown) > 1 else [])]
    return table(["", *(f"{role} {column}" for role in ("FWM", "IDM") for column in columns)], rows)


def _check_warmups(kept: Kept, names: Iterable[str], beside: str) -> None:
    """Ends this process where a run started from another warm-up than the one of its seed that it stands beside."""
    for run in names:
        for seed in kept[run].keys() & kept[beside]:
            if _warmed(kept[run][seed]) != _warmed(kept[beside][seed]):
                sys.exit(f"{run}-{seed}.json: from another warm-up than {beside}-{seed}.json: run both on one machine")


def _warmed(run: dict) -> list[float]:
    return [run["held_out"][role][metric]["warmup"] for role in ("fwm", "idm") for metric in METRICS]


def _exact(value: float | None, best: float | None = None) -> str:
    text = "-" if value is None else f"{100 * value:.1f}"
    return f"**{text}**" if value is not None and value == best else text


def relative(value: float, start: float) -> str:
    return f"{100 * (value / start - 1):+.0f}%"


def summary(all_kept: dict[str, Kept]) -> str:
    """Exact match in each world, means over seeds."""
    names = ("warmup", "continued_sft", "pseudo_labels", "swirl", "all_labels")
    rows = []
    for (experiment, kept), (run, beside) in product(all_kept.items(), WEIGHTS.items()):
        runs = list(kept.get(run, {}).values())
        title = f"{EXPERIMENTS.get(experiment, experiment)}{beside}"
        for role in ("fwm", "idm") if runs else ():
            values = [[one["held_out"][role]["exact_match"].get(name) for one in runs] for name in names]
            shown = [cell(value) for value in values]
            warmup, swirl = (fmean(values[names.index(name)]) for name in ("warmup", "swirl"))
            shown[names.index("swirl")] += f", {relative(swirl, warmup)}"
            first = f"{title}, {runs[0]['labels_used']}, {len(runs)}" if role == "fwm" else ""
            rows.append([first, role.upper(), *shown])
    return table(["world, labels, seeds", "", *(MODELS[name] for name in names)], rows)


def single_phases(all_kept: dict[str, Kept]) -> str:
    """Each role by its own phase alone and by both phases, in every world: exact match, means over the seeds that have
    all of these runs. None has a prior."""
    alone, rows = {"fwm": "phase_1", "idm": "phase_2"}, []
    for experiment, kept in all_kept.items():
        names = ("no_prior", "no_gradient", *alone.values())
        shown = sorted(set.intersection(*(set(kept.get(name, {})) for name in names)))
        if not shown:
            continue
        _check_warmups(kept, names, "no_prior")
        for role, own in alone.items():
            columns = (("no_prior", "warmup"), (own, "swirl"), ("no_prior", "swirl"), ("no_gradient", "swirl"))
            made = [
                cell([kept[run][s]["held_out"][role]["exact_match"][model] for s in shown]) for run, model in columns
            ]
            title = f"{EXPERIMENTS.get(experiment, experiment)}, {len(shown)}" if role == "fwm" else ""
            rows.append([title, role.upper(), *made])
    head = ["warm-up", "its own phase alone", "both phases", "both, Phase I's policy gradient off"]
    return table(["world, seeds", "", *head], rows)


def filled(text: str, all_kept: dict[str, Kept]) -> str:
    """`text` with its marked tables made anew."""
    of_all_worlds = {"summary": summary, "single_phases": single_phases}

    def make(match: re.Match) -> str:
        experiment, _, what = match[2].partition("/")
        if experiment in of_all_worlds:
            made = of_all_worlds[experiment](all_kept)
        else:
            kept = all_kept[experiment]
            made = ablations(experiment, kept) if what == "ablations" else seeds(kept, what or "swirl")
        return f"{match[1]}\n{made}\n{match[3]}"

    return MARKED.sub(make, text)


def further(kept: Kept) -> str:
    rows = []
    for split, name in SPLITS.items():
        runs = [run["further"][split] for run in kept["swirl"].values() if split in run["further"]]
        for role in ("fwm", "idm") if runs else ():
            shown = [cell([run[role]["exact_match"].get(model) for run in runs]) for model in MODELS]
            rows.append([name, role.upper(), *shown])
    return table(["split", "role", *MODELS.values()], rows) if rows else ""


def ahead(kept: Kept) -> str:
    """Quality against the number of steps, and planning."""
    found = [
        (name, [run["lookahead"][model] for run in kept["swirl"].values() if model in run["lookahead"]])
        for name, model in (("warm-up", "warmup"), ("SWIRL", "swirl"))
    ]
    found = [(name, parts) for name, parts in found if parts]
    text = ""
    horizons = [(name, [part["horizon"] for part in parts if "horizon" in part]) for name, parts in found]
    if horizons := [(name, parts) for name, parts in horizons if parts]:
        rows = []
        for name, parts in horizons:
            for metric in ("exact_match", "token_f1"):
                steps = zip(*parts, strict=True)
                rows.append([name, TITLES[metric], *(cell([step[metric] for step in k]) for k in steps)])
        unmoved = [cell([step["unmoved/token_f1"] for step in k]) for k in zip(*horizons[0][1], strict=True)]
        rows.append(["first state left as it is", TITLES["token_f1"], *unmoved])
        text += table(["after k steps", "", *(str(k + 1) for k in range(len(unmoved)))], rows) + "\n"
    plans = [(name, [part["planning"] for part in parts if "planning" in part]) for name, parts in found]
    if any(parts for _, parts in plans):
        rows = [[f"FWM, {name}", cell([part["fwm"] for part in parts])] for name, parts in plans if parts]
        for picker in ("random", "oracle"):
            rows.append([picker, cell([part[picker] for part in plans[0][1]])])
        text += table(["picker", "goals reached, %"], rows)
    return text


def by_states(kept: Kept) -> dict[int, list[dict]]:
    """Runs by their number of state-only transitions, of the seeds that each number has; empty where there is one."""
    names = [name for name in kept if name.startswith("states-")]
    all_states = kept.get("no_prior", {})
    seeds = sorted(set.intersection(set(all_states), *(set(kept[name]) for name in names)))
    if not names or not seeds:
        return {}
    _check_warmups(kept, names, "no_prior")
    runs = [[part[seed] for seed in seeds] for part in (all_states, *(kept[name] for name in names))]
    return {part[0]["state_only"]: part for part in sorted(runs, key=lambda part: part[0]["state_only"])}


def efficiency(kept: Kept) -> str:
    """Exact match against the number of state-only transitions in the phases; 0 are the warmed-up models."""
    runs = by_states(kept)
    if not runs:
        return ""
    shown = [("0", "warmup", runs[max(runs)]), *((str(count), "swirl", part) for count, part in runs.items())]
    rows = [
        [count, *(cell([run["held_out"][role]["exact_match"][model] for run in part]) for role in ("fwm", "idm"))]
        for count, model, part in shown
    ]
    return table(["state-only transitions", "FWM", "IDM"], rows)


def costs(experiment: str, kept: Kept) -> str:
    named = {"swirl": "SWIRL and its baselines", "shared": "SWIRL, shared weights"} | titles(experiment)
    rows = [
        [named.get(run, run), *(f"{value:.0f}" for value in (fmean(r["seconds"] for r in part.values()),))]
        for run, part in kept.items()
    ]
    return table(["run", "seconds, with other runs beside it"], rows)


def samples(kept: Kept, separator: str, most: int = 4) -> str:
    """Transitions that SWIRL is right about and warm-up is not, and some that SWIRL is wrong about. What the FWM says
    is shown as what it says changes. Pictures are in a run's report."""
    said = kept["swirl"][min(kept["swirl"])].get("samples", [])
    rows = []
    for role in ("fwm", "idm"):
        warm, swirl = (
            [row for row in said if (row["stage"], row["role"]) == (f"test, {m}", role)] for m in ("warmup", "swirl")
        )
        pairs = [(one, other) for one, other in zip(warm, swirl, strict=True) if not one["x"].startswith("[image")]
        mended = [pair for pair in pairs if pair[1]["correct"] and not pair[0]["correct"]]
        wrong = [pair for pair in pairs if not pair[1]["correct"]]
        rows += [_sample("mended", pair, separator) for pair in mended[:most]]
        rows += [_sample("wrong", pair, separator) for pair in wrong[:most]]
    return table(["role", "", "x", "action or change", "true", "warm-up", "SWIRL"], rows) if rows else ""


def _sample(kind: str, pair: tuple[dict, dict], separator: str) -> list[str]:
    row = pair[1]
    change = difference(row["x"], row["y"], separator)
    if row["role"] == "fwm":
        said = [row["z"], change, *(difference(row["x"], one["prediction"], separator) for one in pair)]
    else:
        said = [change, row["z"], *(one["prediction"] for one in pair)]
    short = (text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in (row["x"], *said))
    texts = (text.replace("|", "\\|").replace("\n", "; ") for text in short)
    return [row["role"].upper(), kind, *texts]


def page(experiment: str, kept: Kept) -> str:
    some = next(iter(kept["swirl"].values()))
    separator = compose([f"experiment={experiment}"]).data.fact_separator
    parts = {
        f"Test split, {some['labels_used']} labels, {some['state_only']} state-only transitions": main_table(kept),
        "Exact match, seed by seed, %": seeds(kept),
        "Exact match with shared weights, seed by seed, %": seeds(kept, "shared"),
        "Ablations from one warm-up, exact match, %": ablations(experiment, kept),
        "Other test splits, exact match, %": further(kept),
        "Looking ahead": ahead(kept),
        "Exact match against state-only transitions, %": efficiency(kept),
        f"Samples of seed {min(kept['swirl'])}": samples(kept, separator),
        "Cost": costs(experiment, kept),
    }
    title = EXPERIMENTS.get(experiment, experiment)
    text = f"# {title}\n\nBy `python recipes/evidence_tables.py`. Means over seeds (least to most).\n"
    return text + "".join(f"\n## {name}\n\n{part}" for name, part in parts.items() if part)


def read_all() -> dict[str, Kept]:
    others = sorted({path.parent.name for path in KEPT.glob("*/swirl-*.json")} - set(EXPERIMENTS))
    found = {experiment: read(experiment) for experiment in (*EXPERIMENTS, *others)}
    return {experiment: kept for experiment, kept in found.items() if "swirl" in kept}


def main() -> None:
    all_kept = read_all()
    if not all_kept:
        sys.exit(f"{KEPT}: no EXPERIMENT/swirl-SEED.json: run python recipes/evidence.py minigrid --runs swirl")
    for experiment, kept in all_kept.items():
        KEPT.joinpath(f"{experiment}.md").write_text(page(experiment, kept))
        print(KEPT / f"{experiment}.md")
    for name in FILLED:
        if Path(name).is_file():
            Path(name).write_text(filled(Path(name).read_text(), all_kept))
            print(name)


if __name__ == "__main__":
    main()
