"""recipes/evidence.py without its hours: what each run is told, what is kept of it, and the tables made of that.

Not shown: the figures of docs/evidence themselves.
"""

import importlib
import json
import sys
from concurrent.futures import Future
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from workers.layouts import TESTS

from swirl_nemo.runs import deciding_settings
from swirl_nemo.settings import compose

KEPT = sorted((TESTS.parent / "docs" / "evidence").glob("*/*.json"))
WITH_SETTINGS = [file for file in KEPT if "settings" in json.loads(file.read_text())]  # the first nine have none
WORLDS = ("minigrid", "bfcl", "miniwob", "scienceworld", "minigrid_images")
PICTURES = ("minigrid_images", "minigrid_images_history")


@pytest.fixture
def evidence(recipe, tmp_path, monkeypatch):
    """The recipe in an empty folder, and what it would have started."""
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "execute", lambda command, folder, chosen: started.append((command, folder, chosen)))
    recipe.started = started
    return recipe


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "recipes"))
    yield importlib.import_module("evidence_tables")
    sys.modules.pop("evidence_tables")


def keep(recipe, run: str, seed: int, **found) -> None:
    path = recipe.KEPT / "bfcl" / f"{run}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def held_out(**exact: float) -> dict:
    """Both roles' figures of models; the IDM's are half of the FWM's."""
    metrics = ("exact_match", "token_f1", "gold_logprob")
    return {
        role: {metric: {model: value * factor for model, value in exact.items()} for metric in metrics}
        for role, factor in (("fwm", 1.0), ("idm", 0.5))
    }


def kept_run(swirl: float, state_only: int = 4000, **exact: float) -> dict:
    return {
        "held_out": held_out(swirl=swirl, **exact),
        "cycle_consistency": {"swirl": swirl, **exact},
        "further": {},
        "lookahead": {},
        "samples": [],
        "seconds": 100,
        "labels_used": 30,
        "state_only": state_only,
        "kept": {"fwm": 2, "idm": 1},
    }


@pytest.mark.parametrize("world", WORLDS)
def test_runs_of_a_seed_differ_from_swirl_in_what_their_name_says(evidence, world):
    @cache
    def told(run: str):
        return compose(evidence.settings(world, run, 2))

    swirl = told("swirl")
    assert swirl.run.seed == 2 and swirl.pretrain.steps == swirl.warmup.steps == 0
    assert swirl.model.fwm == f"runs/evidence/{world}-warmup-2/checkpoints/warmup/fwm"
    assert swirl.alternation.iterations == 3 and len(swirl.alternation.baselines) == 4
    assert swirl.eval.horizon == compose([f"experiment={world}"]).eval.horizon
    assert told("no_gradient").phase.fwm.policy_gradient == 0 and told("no_gradient").phase.idm == swirl.phase.idm
    assert told("permuted").phase.fwm.permute_advantages and not swirl.phase.fwm.permute_advantages
    assert [role.name for role in told("phase_1").alternation.order] == ["fwm"]
    assert [role.name for role in told("phase_2").alternation.order] == ["idm"]
    assert (told("states-250").data.max_unlabelled, told("states-1000").data.max_unlabelled) == (250, 1000)
    for run in ("no_prior", "no_gradient", "permuted", "phase_1", "phase_2", "states-250"):
        assert told(run).alternation.baselines == [] and told(run).model == swirl.model
        assert told(run).alternation.new_form == 0
    assert told("no_prior").phase == swirl.phase and told("no_prior").eval.horizon == 0


def test_the_run_with_history_is_the_one_without_but_for_what_it_reads():
    plain, past = (deciding_settings(compose([f"experiment={name}"])) for name in PICTURES)
    moved = {key for key in plain if "data/minigrid_codes" in str(plain[key])}
    other = {"data.history", "data.fwm.templates", "data.idm.templates", "alternation.baselines"}
    assert {key for key in plain.keys() | past.keys() if plain.get(key) != past.get(key)} == moved | other
    assert all(past[key] == _of_history(plain[key]) for key in moved)
    assert all("{history}" in past[f"data.{role}.templates"][0] for role in ("fwm", "idm"))


def _of_history(files: str | list[str]) -> str | list[str]:
    if isinstance(files, list):
        return [_of_history(file) for file in files]
    return files.replace("minigrid_codes", "minigrid_history_codes")


def test_shared_weights_are_warmed_up_together_from_the_base(evidence):
    cfg = compose(evidence.settings("bfcl", "shared", 3))
    assert cfg.model.weights.name == "shared" and cfg.warmup.steps == compose(["experiment=bfcl"]).warmup.steps > 0
    assert cfg.model.fwm == "runs/evidence/bfcl-base-0/checkpoints/warmup/fwm"
    assert [baseline.name for baseline in cfg.alternation.baselines] == ["continued_sft", "pseudo_labels"]


def test_equal_time_has_the_steps_that_the_gradient_would_have_cost(evidence, monkeypatch):
    def timed(command, folder, chosen):
        cfg = compose(chosen)
        assert command == "train" and cfg.data.test == cfg.data.validation and cfg.eval.plans == 0
        seconds = (3.0, 2.0, 90.0) if cfg.phase.fwm.policy_gradient else (1.0, 1.25, 1.5)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(f'{{"seconds/step": {value}}}\n' for value in seconds))
        (folder / "summary.json").touch()
        evidence.started.append(folder.name)

    monkeypatch.setattr(evidence, "execute", timed)
    for _ in range(2):  # timed once
        evidence.time_phase_1("bfcl", 1)
    cfg = compose(evidence.settings("bfcl", "equal_time", 1))
    assert cfg.phase.fwm.policy_gradient == 0
    assert cfg.phase.fwm.steps == round(compose(["experiment=bfcl"]).phase.fwm.steps * 3 / 1.25)
    assert sorted(evidence.started) == ["bfcl-timed_no_gradient-1", "bfcl-timed_no_prior-1"]


def test_what_is_kept_is_not_run_again_and_what_is_not_is_kept(evidence):
    (done := Future()).set_result(None)
    keep(evidence, "swirl", 1, done=True)
    evidence.train("bfcl", "swirl", 1, done)
    assert evidence.started == []

    folder = evidence.folder_of("bfcl", "swirl", 2)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"seconds": 7}')
    lines = [
        {"eval": True, "split": "validation", "iteration": 0, "fwm/exact_match": 0.5},
        {"phase": "fwm", "seconds/step": 1.5},
        {"phase": "fwm", "seconds/step": 2.0},
        {"phase": "idm", "seconds/step": 0.25},
        {"eval": True, "split": "test", "fwm/exact_match": 0.25},
        {"loss": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for part, chosen in evidence.told("bfcl", "swirl", 2).items():  # as they would have been written by the runs
        part.mkdir(exist_ok=True)
        (part / "config.yaml").write_text(OmegaConf.to_yaml(compose(chosen)))
    row = {"role": "fwm", "x": "a", "z": "go", "y": "b", "prediction": "b", "correct": True}
    said = [row | {"stage": stage, "logprob": -1.0} for stage in ("test, swirl", "validation, swirl")]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    evidence.train("bfcl", "swirl", 2, done)
    assert evidence.started == []  # it had ended: only its figures were missing
    kept = json.loads((evidence.KEPT / "bfcl" / "swirl-2.json").read_text())
    settings = kept.pop("settings")
    assert list(settings) == ["bfcl-base-0", "bfcl-warmup-2", "bfcl-swirl-2"]
    assert [part["pretrain.steps"] for part in settings.values()] == [1500, 0, 0]
    assert [part["warmup.steps"] for part in settings.values()] == [0, 400, 0]
    assert kept == {
        "seconds": 7,
        "validation": lines[:1],
        "step_seconds": {"fwm": 3.5, "idm": 0.25},
        "samples": [row | {"stage": "test, swirl"}],
    }

    with pytest.raises(FileNotFoundError):  # started, and nothing came of it
        evidence.train("bfcl", "swirl", 3, done)
    ((command, folder, chosen),) = evidence.started
    assert command == "train" and folder.name == "bfcl-swirl-3" and "run.seed=3" in chosen


@pytest.mark.parametrize(
    ("runs", "warmed"), [(["shared"], []), (["swirl", "shared"], ["bfcl-warmup-2", "bfcl-warmup-3"])]
)
def test_a_warm_up_is_made_where_a_run_begins_with_it(evidence, monkeypatch, runs, warmed):
    trained = []
    monkeypatch.setattr(evidence, "make_base", lambda experiment: None)
    monkeypatch.setattr(evidence, "train", lambda experiment, run, seed, warmup: trained.append((run, bool(warmup))))
    monkeypatch.setattr(sys, "argv", ["evidence.py", "bfcl", "--seeds", "2", "3", "--runs", *runs])
    evidence.main()
    assert sorted(folder.name for _, folder, _ in evidence.started) == warmed
    assert sorted(trained) == sorted((run, run == "swirl") for run in runs for _ in range(2))


@cache
def told_settings(*chosen: str) -> dict:
    """Many runs begin with the same base."""
    return deciding_settings(compose(list(chosen)))


@pytest.mark.parametrize("file", WITH_SETTINGS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_kept_run_had_the_settings_that_conf_has(recipe, monkeypatch, file):
    """A key that is new since then is left out."""
    run, _, seed = file.stem.rpartition("-")
    kept = json.loads(file.read_text())["settings"]
    steps = kept[f"{file.parent.name}-{file.stem}"]["phase.fwm.steps"]
    monkeypatch.setattr(recipe, "steps_of_equal_time", lambda *_: steps)  # timed on the machine that ran it
    told = recipe.told(file.parent.name, run, int(seed))
    assert {folder.name for folder in told} == kept.keys()
    for folder, chosen in told.items():
        now = told_settings(*chosen)
        common = kept[folder.name].keys() & now
        assert len(common) > 50
        if folder == recipe.folder_of(file.parent.name, "base", 0):
            common.discard("data.max_labels")  # pre-training reads no label (swirl_nemo/pretraining.py)
        assert {key: kept[folder.name][key] for key in common} == {key: now[key] for key in common}


def test_a_run_that_fails_ends_the_recipe_and_names_its_log(recipe, tmp_path):
    with pytest.raises(SystemExit, match=r"bfcl-swirl-1 ended with code 2: see .*bfcl-swirl-1\.log"):
        recipe.execute("train", tmp_path / "bfcl-swirl-1", ["phase.fwm.stepz=1"])
    assert "phase.fwm.stepz" in (tmp_path / "bfcl-swirl-1.log").read_text()


def test_an_unknown_experiment_is_one_line(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "nothing"])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "error: experiment=nothing: no such choice: give one of bfcl, " in capsys.readouterr().err.splitlines()[-1]


def test_tables_are_means_over_seeds_with_their_spread(evidence, tables):
    keep(evidence, "swirl", 1, **kept_run(0.6, warmup=0.4, continued_sft=0.5))
    keep(evidence, "swirl", 2, **kept_run(0.8, warmup=0.5, continued_sft=0.4, pseudo_labels=0.9, all_labels=1.0))
    keep(evidence, "no_prior", 1, **kept_run(0.55, warmup=0.4))
    keep(evidence, "no_prior", 2, **kept_run(0.65, warmup=0.5))
    keep(evidence, "states-250", 1, **kept_run(0.45, state_only=250, warmup=0.4))
    Path("README.md").write_text("a\n<!-- table: summary -->\nold\n<!-- end -->\nb\n")
    tables.main()
    lines = (evidence.KEPT / "bfcl.md").read_text().splitlines()
    assert any(line.startswith("| SWIRL | 2 | 70.0 (60.0 to 80.0) |") for line in lines)
    assert any(line.startswith("| warm-up | 2 | 45.0 (40.0 to 50.0) |") for line in lines)
    assert [line for line in lines if line.startswith(("| 1 | FWM", "| 2 | FWM"))] == [
        "| 1 | FWM | 40.0 | 50.0 | - | **60.0** (+50%) | 2 | - |",
        "| 2 | FWM | 50.0 | 40.0 | **90.0** | 80.0 (+60%) | 2 | 100.0 |",
    ]
    curve = lines[next(i for i, line in enumerate(lines) if line.startswith("| state-only")) + 2 :]
    assert curve[:3] == ["| 0 | 40.0 | 20.0 |", "| 250 | 45.0 | 22.5 |", "| 4000 | 55.0 | 27.5 |"]  # of seed 1 alone
    assert Path("README.md").read_text().splitlines() == [
        *("a", "<!-- table: summary -->", ""),
        "| world, labels, seeds |  | warm-up | continued SFT | pseudo-label SFT | SWIRL | all labels |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| BFCL, 30, 2 | FWM | 45.0 (40.0 to 50.0) | 45.0 (40.0 to 50.0) | 90.0 | 70.0 (60.0 to 80.0), +56% | 100.0 |",
        "|  | IDM | 22.5 (20.0 to 25.0) | 22.5 (20.0 to 25.0) | 45.0 | 35.0 (30.0 to 40.0), +56% | 50.0 |",
        *("", "<!-- end -->", "b"),
    ]


def test_shared_weights_have_a_table_of_their_own(evidence, tables):
    keep(evidence, "swirl", 1, **kept_run(0.6, warmup=0.4, merged=0.1, all_labels=1.0))
    shared = kept_run(0.7, warmup=0.35, pseudo_labels=0.5) | {"kept": {"shared": 3}}
    keep(evidence, "shared", 2, **shared)
    Path("README.md").write_text("<!-- table: bfcl/shared -->\n<!-- end -->\n")
    tables.main()
    assert Path("README.md").read_text().splitlines()[2:-2] == [
        "| seed |  | warm-up | pseudo-label SFT | SWIRL | kept after iteration |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 | FWM | 35.0 | 50.0 | **70.0** (+100%) | 3 |",
        "| 2 | IDM | 17.5 | 25.0 | **35.0** (+100%) | 3 |",
    ]
    rows = [line.split(" | ")[:3] for line in (evidence.KEPT / "bfcl.md").read_text().splitlines()]
    assert ["| SWIRL, shared weights", "1", "70.0"] in rows and ["| SWIRL", "1", "60.0"] in rows
    assert ["| pseudo-label SFT, shared weights", "1", "50.0"] in rows


def test_ablations_stand_beside_swirl_from_their_own_warmup(evidence, tables):
    for seed, swirl, warmup in ((1, 0.9, 0.5), (2, 0.9, 0.3), (3, 0.7, 0.4)):
        keep(evidence, "swirl", seed, **kept_run(swirl, warmup=warmup))
    keep(evidence, "no_gradient", 1, **kept_run(0.6, warmup=0.5))
    assert tables.ablations("bfcl", tables.read("bfcl")).splitlines()[0] == "|  | FWM seed 1 | IDM seed 1 |"

    for seed, swirl, warmup in ((1, 0.4, 0.5), (2, 0.2, 0.3), (3, 0.6, 0.5)):  # the last of another machine
        keep(evidence, "permuted", seed, **kept_run(swirl, warmup=warmup))
    with pytest.raises(SystemExit, match=r"permuted-3.json: from another warm-up than swirl-3.json"):
        tables.ablations("bfcl", tables.read("bfcl"))
    keep(evidence, "permuted", 3, **kept_run(0.6, warmup=0.4))
    columns = ("seed 1", "seed 2", "seed 3", "mean")
    Path("README.md").write_text("<!-- table: bfcl/ablations -->\n<!-- end -->\n")
    tables.main()
    assert Path("README.md").read_text().splitlines() == [
        *("<!-- table: bfcl/ablations -->", ""),
        "|  | " + " | ".join(f"{role} {what}" for role in ("FWM", "IDM") for what in columns) + " |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| warm-up | 50.0 | 30.0 | 40.0 | 40.0 | 25.0 | 15.0 | 20.0 | 20.0 |",
        "| SWIRL | 90.0 | 90.0 | 70.0 | 83.3 | 45.0 | 45.0 | 35.0 | 41.7 |",
        "| no prior, Phase I's policy gradient off | 60.0 | - | - | - | 30.0 | - | - | - |",
        "| no prior, Phase I's advantages permuted | 40.0 | 20.0 | 60.0 | 40.0 | 20.0 | 10.0 | 30.0 | 20.0 |",
        *("", "<!-- end -->"),
    ]
    assert "| SWIRL | 3 | 83.3 (70.0 to 90.0) |" in (evidence.KEPT / "bfcl.md").read_text()


def test_where_swirl_has_no_prior_its_ablations_stand_beside_the_run_without_baselines(evidence, tables):
    keep(evidence, "swirl", 1, **kept_run(0.9, warmup=0.2))  # of another machine
    keep(evidence, "no_gradient", 1, **kept_run(0.6, warmup=0.5))
    assert tables.ablations("miniwob", tables.read("bfcl")) == ""
    keep(evidence, "no_prior", 1, **kept_run(0.8, warmup=0.5))
    (evidence.KEPT / "bfcl").rename(evidence.KEPT / "miniwob")
    rows = tables.ablations("miniwob", tables.read("miniwob")).splitlines()[2:]
    assert rows == [
        "| warm-up | 50.0 | 25.0 |",
        "| SWIRL | 80.0 | 40.0 |",
        "| Phase I's policy gradient off | 60.0 | 30.0 |",
    ]
    tables.main()
    cost = [line for line in (evidence.KEPT / "miniwob.md").read_text().splitlines() if line.startswith("| SWIRL")][-2:]
    assert [line.split(" | ")[0] for line in cost] == ["| SWIRL, without baselines", "| SWIRL and its baselines"]


def test_single_phases_are_of_the_seeds_that_have_every_run(evidence, tables):
    for run, swirl in {"no_prior": 0.8, "no_gradient": 0.6, "phase_1": 0.7, "phase_2": 0.5}.items():
        keep(evidence, run, 1, **kept_run(swirl, warmup=0.4))
        keep(evidence, run, 2, **kept_run(swirl + 0.1, warmup=0.4))
    keep(evidence, "phase_1", 3, **kept_run(0.9, warmup=0.4))
    kept = tables.read("bfcl")
    rows = tables.single_phases({"minigrid": {}, "bfcl": kept}).splitlines()[2:]
    assert rows == [
        "| BFCL, 2 | FWM | 40.0 (40.0 to 40.0) | 75.0 (70.0 to 80.0) | 85.0 (80.0 to 90.0) | 65.0 (60.0 to 70.0) |",
        "|  | IDM | 20.0 (20.0 to 20.0) | 27.5 (25.0 to 30.0) | 42.5 (40.0 to 45.0) | 32.5 (30.0 to 35.0) |",
    ]
    kept["phase_2"][2] = kept_run(0.5, warmup=0.3)
    with pytest.raises(SystemExit, match=r"phase_2-2.json: from another warm-up than no_prior-2.json"):
        tables.single_phases({"bfcl": kept})


def test_an_experiment_of_ones_own_has_tables_too(evidence, tables):
    keep(evidence, "swirl", 1, **kept_run(0.6, warmup=0.4))
    keep(evidence, "shared", 1, **kept_run(0.7, warmup=0.5))
    (evidence.KEPT / "bfcl").rename(evidence.KEPT / "quickstart")
    assert list(tables.read_all()) == ["quickstart"]
    tables.main()
    assert (evidence.KEPT / "quickstart.md").read_text().startswith("# quickstart\n")
    rows = tables.summary(tables.read_all())
    assert "| quickstart, 30, 1 | FWM | 40.0 |" in rows and "| quickstart, shared weights, 30, 1 | FWM | 50.0 |" in rows


@pytest.mark.parametrize("rolled", [True, False])
def test_what_was_not_rolled_forward_has_no_table_of_it(evidence, tables, rolled):
    horizon = [{"k": 1, "exact_match": 0.5, "token_f1": 0.75, "unmoved/token_f1": 0.25}]
    model = {"planning": {"fwm": 0.5, "random": 0.1, "oracle": 0.9}} | ({"horizon": horizon} if rolled else {})
    run = kept_run(0.6, warmup=0.4) | {"lookahead": {"warmup": model, "swirl": model}}
    keep(evidence, "swirl", 1, **run)
    tables.main()
    text = (evidence.KEPT / "bfcl.md").read_text()
    assert "| FWM, SWIRL | 50.0 |\n| random | 10.0 |\n| oracle | 90.0 |" in text
    assert ("| after k steps |  | 1 |" in text) is ("| SWIRL | exact match, % | 50.0 |" in text) is rolled


def test_samples_of_a_cell_are_cut(evidence, tables):
    row = {"role": "idm", "x": "a", "z": "go", "y": "b", "prediction": "go " * 100, "correct": False}
    said = [row | {"stage": f"test, {model}"} for model in ("warmup", "swirl")]
    keep(evidence, "swirl", 1, **kept_run(0.6, warmup=0.4) | {"samples": said})
    tables.main()
    (line,) = (
        line for line in (evidence.KEPT / "bfcl.md").read_text().splitlines() if line.startswith("| IDM | wrong")
    )
    assert max(map(len, line.split("|"))) == len(" ... ") + tables.LONGEST


def test_without_runs_the_tables_say_how_to_make_them(evidence, tables):
    with pytest.raises(SystemExit, match="no EXPERIMENT/swirl-SEED.json: run python recipes/evidence.py"):
        tables.main()


def test_the_tables_in_the_documents_are_those_of_the_recorded_runs(tables, monkeypatch):
    monkeypatch.chdir(TESTS.parent)
    found = tables.read_all()
    for experiment, kept in found.items():
        assert (tables.KEPT / f"{experiment}.md").read_text() == tables.page(experiment, kept)
    marked = []
    for name in tables.FILLED:
        text = Path(name).read_text()
        assert tables.filled(text, found) == text, f"{name}: run python recipes/evidence_tables.py"
        marked += [match[2] for match in tables.MARKED.finditer(text)]
    assert sorted(name for name in marked if "/" not in name) == sorted([*found, "single_phases", "summary"])
