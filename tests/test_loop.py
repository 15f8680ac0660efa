"""The loop and the rooms that a step goes through: rewards, weight sets, stages, and what a run leaves behind.

Rewards and weight sets come from the process groups of workers/layouts.py, whole runs from workers/runs.py.
"""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from test_layouts import read
from workers import reference
from workers.layouts import FULL
from workers.rooms import labelled_completions

from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.roles import FWM, IDM, ROLES

pytestmark = pytest.mark.megatron

TOLERANCE = 1e-4
TRAINED = ("continued_sft", "pseudo_labels", "all_labels")  # baselines that take steps, in the run's order
MODELS = ("warmup", "swirl", "continued_sft", "merged", "pseudo_labels", "all_labels")


@pytest.fixture(scope="module")
def folder(runs) -> Path:
    """The run that was never stopped."""
    return runs / "whole"


@pytest.fixture(scope="module")
def baselines(runs) -> Path:
    """The run with every baseline."""
    return runs / "baselines"


# rewards and weight sets


@pytest.mark.parametrize("role", ROLES.values(), ids=lambda role: role.name)
@pytest.mark.parametrize("layout", FULL)
@torch.no_grad()
def test_a_reward_is_the_counterparts_log_prob_by_transformers(work, layouts, layout, role):
    """Mean over the target's tokens, its end among them, in the context that the completion makes: true completions,
    another transition's, nonsense and nothing. The counterpart is another model than the policy."""
    counterpart = reference.llama(work, role.counterpart.name)
    prompter, rows = reference.prompter(work), reference.labelled(work)[:6]
    expected = []
    for row, completion in zip(rows, labelled_completions(rows, role), strict=True):
        shown, scored = ("y", "z") if role is FWM else ("z", "y")
        context, target = replace(row, **{shown: completion}), getattr(row, scored)
        prompt = prompter.prompt(role.counterpart, context)
        tokens = [*reference.tokenizer(work)(target, add_special_tokens=False)["input_ids"], prompter.end]
        expected.append(reference.token_logprobs(counterpart, prompt, tokens).mean().item())
    assert layouts[layout]["rewards"][role.name] == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("layout", FULL)
@torch.no_grad()
def test_what_is_worn_scores_as_the_model_it_was_imported_from(work, layouts, layout):
    """Also when one set is put on over another, and when the first comes back."""
    prompter, rows, seen = reference.prompter(work), reference.labelled(work)[:6], layouts[layout]["sets"]
    for name in ("fwm", "idm"):
        model = reference.llama(work, name)
        pairs = [(prompter.prompt(IDM, row), prompter.target(IDM, row)) for row in rows]
        expected = [reference.token_logprobs(model, *pair).sum().item() for pair in pairs]
        for place in {"fwm": ("fwm", "fwm within idm"), "idm": ("idm", "idm again")}[name]:
            assert seen[place] == pytest.approx(expected, abs=TOLERANCE)
    assert min(abs(a - b) for a, b in zip(seen["fwm"], seen["idm"], strict=True)) > 0.1


@pytest.mark.parametrize("layout", FULL)
@pytest.mark.parametrize(
    "promise",
    [
        "restored",
        "restored after an error",
        "become",
        "what was learnt is kept",
        "its source is as before",
    ],
)
def test_weight_sets_keep_every_bit(layouts, layout, promise):
    assert layouts[layout]["sets"][promise]


# a whole run


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if not line.get("eval")]


def test_stages_come_in_order(folder):
    """Each stage counts its own steps from 1; `optimizer_step` counts over the run, two a step of the IDM's phase."""
    seen = [
        (stage, [line["step"] for line in part])
        for stage, part in groupby(steps(folder), lambda line: (line["phase"], line.get("role")))
    ]
    assert seen == [
        (("pretrain", "fwm+idm"), [1, 2, 3, 4]),
        (("warmup", "fwm"), [1, 2, 3, 4, 5]),
        (("warmup", "idm"), [1, 2, 3, 4, 5]),
        (("idm", None), [1, 2, 3, 4, 5]),
        (("fwm", None), [1, 2, 3, 4]),
        (("continued_sft", "fwm"), [1, 2, 3, 4]),
        (("continued_sft", "idm"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ]
    counted = [line["optimizer_step"] for line in steps(folder)]
    assert counted == [*range(1, 15), *range(16, 25, 2), *range(25, 43)]


def test_a_baseline_takes_as_many_optimizer_steps(baselines):
    taken, previous = Counter(), 0
    for line in steps(baselines):
        taken[line["phase"], line.get("role")] += line["optimizer_step"] - previous
        previous = line["optimizer_step"]
    for baseline, role in product(TRAINED, ROLES):
        assert taken[baseline, role] == taken[role, None] > 0


def test_learning_rates_follow_their_schedules(folder):
    """Cosine, cosine and constant after two steps of warm-up, worked out here."""
    rates = {
        key: [line["lr"] for line in part]
        for key, part in groupby(steps(folder), lambda line: (line["phase"], line.get("role")))
    }
    assert rates["idm", None] == pytest.approx([0, 1e-4, 2e-4, 1.5e-4, 0.5e-4])
    assert rates["fwm", None] == pytest.approx([0, 1e-4, 2e-4, 2e-4])
    assert rates["warmup", "idm"] == rates["warmup", "fwm"] == pytest.approx([0, 1e-3, 2e-3, 1.5e-3, 0.5e-3])
    assert rates["pretrain", "fwm+idm"] == pytest.approx([0, 1e-3, 2e-3, 1e-3])


def test_a_phases_line_has_what_the_contract_names(folder):
    names = (
        *("loss", "grad_norm", "lr", "entropy", "completion/length", "drift/mean", "drift/max", "memory/peak_gb"),
        *("reward/mean", "reward/group_std", "reward/clamped_fraction", "group/dead_fraction", "kl/reference"),
        *("ratio/mean", "ratio/clip_fraction", "iteration", "step", "optimizer_step"),
        *(f"tokens_per_s/{part}" for part in ("rollout", "score", "train")),
        *(f"seconds/{part}" for part in ("rollout", "swap", "score", "train", "step")),
    )
    for line in steps(folder):
        if line["phase"] in ROLES:
            assert all(math.isfinite(line[name]) for name in names)
            assert line["drift/max"] < 1e-4
            assert line["seconds/step"] >= line["seconds/rollout"] + line["seconds/score"] + line["seconds/train"]


def test_the_first_step_of_a_phase_starts_from_its_reference(folder):
    """The policy is the reference until it has learnt: KL 0, then more, with one optimizer step a rollout."""
    kl = [line["kl/reference"] for line in steps(folder) if line["phase"] == "fwm"]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[1] == pytest.approx(0, abs=1e-9)  # the first step's rate is 0
    assert kl[2] > 1e-6


def test_held_out_lines_stand_where_a_model_is_finished(folder, baselines):
    """The validation split after each model, the test split once for each at the very end."""
    for run, models in ((folder, MODELS[:3]), (baselines, MODELS)):
        seen = [(line["model"], line["split"]) for line in lines(run) if line.get("eval")]
        assert seen == [*product(models, ["validation"]), *product(models, ["test"])]
        assert all(line.get("eval") for line in lines(run)[-len(models) :])


def test_the_summary_holds_the_figures_of_the_test_split(folder):
    summary = json.loads((folder / "summary.json").read_text())
    for line in lines(folder)[-3:]:
        for role, metric in product(ROLES, ("exact_match", "token_f1", "gold_logprob")):
            assert summary["held_out"][role][metric][line["model"]] == line[f"{role}/{metric}"]
    assert summary["labels_used"] == 24
    assert summary["optimizer_steps"] == 42
    assert (summary["world"], summary["seed"]) == ("household", 1234)
    assert {"seconds", "tokens", "commit"} <= summary.keys()
    assert (folder / "report.html").read_text().lower().startswith("<!doctype html")


def test_how_far_the_fwm_sees_is_in_the_summary(baselines):
    found = json.loads((baselines / "summary.json").read_text())["lookahead"]
    for ahead in (found[model] for model in ("warmup", "swirl")):
        assert [step["k"] for step in ahead["horizon"]] == [1, 2]
        assert ahead["planning"].keys() == {"random", "fwm", "oracle"}


def test_finished_models_are_kept_and_others_pruned(folder):
    checkpoints = folder / "checkpoints"
    assert len([path for path in checkpoints.iterdir() if path.name.isdigit()]) == 2
    assert json.loads((checkpoints / "latest" / "state.json").read_text())["counters"]["stage"] == 7
    for model, role in product(MODELS[:3], ROLES):
        names = {path.name for path in (checkpoints / model / role).iterdir()}
        assert names == {"model_config.yaml", "tokenizer", "model_weights"}


@pytest.mark.parametrize("baseline", ["continued_sft", "pseudo_labels", "all_labels"])
@pytest.mark.parametrize("role", ROLES)
def test_a_baseline_went_on_from_the_warmup(baselines, role, baseline):
    """No weight is further from the warmed-up one than Adam could have brought it with the baseline's own rates, which
    is their sum and a little; from SWIRL's weights it would have been."""
    rates = [line["lr"] for line in steps(baselines) if (line["phase"], line.get("role")) == (baseline, role)]
    weights = {name: read(baselines / "checkpoints" / name / role) for name in ("warmup", "swirl", baseline)}

    def furthest(one: str, other: str) -> float:
        return max((weights[one][name] - weights[other][name]).abs().max().item() for name in weights[one])

    assert 0.5 * sum(rates) < furthest(baseline, "warmup") < 1.1 * sum(rates)
    assert furthest("swirl", "warmup") > 0.5 * sum(rates)


def test_the_merged_model_is_the_mean_of_the_two_of_continued_sft(baselines):
    fwm, idm = (read(baselines / "checkpoints" / "continued_sft" / role) for role in ("fwm", "idm"))
    for role in ROLES:
        merged = read(baselines / "checkpoints" / "merged" / role)
        assert merged.keys() == fwm.keys()
        for name, weight in merged.items():
            torch.testing.assert_close(weight, (fwm[name] + idm[name]) / 2)
    assert any((fwm[name] - idm[name]).abs().max() > 1e-2 for name in fwm)


@pytest.mark.parametrize("stage", ["1-fwm", "1-idm", "pseudo_labels"])
def test_annotations_are_of_unlabelled_rows(baselines, stage):
    """Latent actions for 18 of the state-only rows, each with log Q(z|x,y) and log P(y|x,z) under the run's models."""
    rows = list(TransitionFile(baselines / f"annotations-{stage}.jsonl", None))
    states = {(row.x, row.y) for row in TransitionFile(baselines.parent.parent / "data" / "unlabelled.jsonl", None)}
    assert len(rows) == len({row.id for row in rows}) == 18
    assert all((row.x, row.y) in states and row.z is not None for row in rows)
    scores = [json.loads(line) for line in (baselines / f"annotation_scores-{stage}.jsonl").read_text().splitlines()]
    assert [score["id"] for score in scores] == [row.id for row in rows]
    assert all(score["idm_logprob"] < 0 and score["fwm_logprob"] < 0 for score in scores)


def test_an_iteration_that_lowered_a_models_figures_is_taken_back_for_it(folder):
    """Figures: workers.runs.BETTER_FIGURES. The FWM falls in iteration 1, the IDM in 2 and, though less, in 3."""
    checkpoints = folder.with_name("better") / "checkpoints"
    ends, scores = {}, {}
    for path in sorted(path for path in checkpoints.iterdir() if path.name.isdigit()):
        state = json.loads((path / "state.json").read_text())
        if state["counters"]["step"] == 0:
            stage = state["counters"]["stage"]
            ends[stage], scores[stage] = {role: read(path / role) for role in ROLES}, state["score"]
    phase_2, *iterations = ends[3], ends[4], ends[6], ends[8]
    warm, swirl = ({role: read(checkpoints / name / role) for role in ROLES} for name in ("warmup", "swirl"))

    def same(one: dict, other: dict) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    assert same(iterations[0]["fwm"], warm["fwm"])
    assert same(iterations[0]["idm"], phase_2["idm"]) and not same(phase_2["idm"], warm["idm"])
    assert not same(iterations[1]["fwm"], warm["fwm"]) and same(iterations[1]["idm"], phase_2["idm"])
    assert not same(iterations[2]["fwm"], iterations[1]["fwm"]), "no worse is as good as better"
    assert same(swirl["fwm"], iterations[2]["fwm"]) and same(swirl["idm"], phase_2["idm"])
    assert json.loads((checkpoints.parent / "summary.json").read_text())["kept"] == {"fwm": 3, "idm": 1}
    of_what_is_kept = [(0.3 + 0.4) / 2, (0.35 + 0.4) / 2, (0.35 + 0.4) / 2]
    assert [scores[stage] for stage in (4, 6, 8)] == pytest.approx(of_what_is_kept)


def test_shared_weights_are_one_set_that_both_phases_train(folder):
    """Both roles warmed up together, each phase on the same set, the baseline on both at once."""
    shared = folder.with_name("shared")
    order = [key for key, _ in groupby(steps(shared), lambda line: (line["phase"], line.get("role")))]
    assert order == [("warmup", "fwm+idm"), ("idm", None), ("fwm", None), ("continued_sft", "fwm+idm")]
    assert [line["step"] for line in steps(shared)][-1] == 3 * 2 + 3
    for name in ("warmup", "swirl", "continued_sft"):
        sets = [path.name for path in (shared / "checkpoints" / name).iterdir() if path.is_dir()]
        assert sets == ["shared"]
    held_out = json.loads((shared / "summary.json").read_text())["held_out"]
    assert all(held_out[role]["gold_logprob"].keys() == {"warmup", "swirl", "continued_sft"} for role in ROLES)
