"""What the driver's stages train on, and what it refuses before the first. That baselines start from the warm-up and
take as many steps is in test_loop.py."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from swirl_nemo import alternation
from swirl_nemo import session as session_module
from swirl_nemo.alternation import Driver, Stage, stages
from swirl_nemo.annotation import Annotated
from swirl_nemo.checkpoint import run_state
from swirl_nemo.config import Baseline
from swirl_nemo.data.batch import check_length
from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM
from swirl_nemo.session import Session
from swirl_nemo.settings import compose


def row(name: str, action: str | None) -> Transition:
    return Transition(name, f"x {name}", action, f"y {name}", "w", "e", 0)


@pytest.fixture
def driver(tmp_path) -> Driver:
    """One that has its rows and nothing else: no model."""
    actions = tmp_path / "actions.jsonl"
    actions.write_text("".join(json.dumps({"id": name, "z": f"true {name}"}) + "\n" for name in ("u1", "u2", "other")))
    driver = object.__new__(Driver)
    driver.cfg = SimpleNamespace(data=SimpleNamespace(unlabelled_actions=str(actions)))
    driver.labelled, driver.unlabelled = [row("l1", "label 1")], [row("u1", None), row("u2", None)]
    driver._annotations = lambda stage: [Annotated(row(u.id, f"guess {u.id}"), -1.0, -1.0) for u in driver.unlabelled]
    return driver


@pytest.mark.parametrize(
    ("baseline", "actions"),
    [
        ("continued_sft", ["label 1"]),
        ("pseudo_labels", ["guess u1", "guess u2"]),
        ("all_labels", ["label 1", "true u1", "true u2"]),
    ],
)
def test_rows_of_a_baseline(driver, baseline, actions):
    assert [r.z for r in driver._sft_rows(Stage(baseline, (FWM,), 1, 5))] == actions


def test_stages_of_baselines_come_last_with_the_steps_of_the_phases():
    cfg = compose(["alternation.iterations=3", "alternation.baselines=[continued_sft,merged,pseudo_labels,all_labels]"])
    cfg.phase.fwm.steps, cfg.phase.idm.steps, cfg.phase.idm.optimizer_steps = 5, 7, 2
    plan = [stage for stage in stages(cfg) if stage.kind in Baseline.__members__]
    trained = [
        (kind, role, steps)
        for kind in ("continued_sft", "pseudo_labels", "all_labels")
        for role, steps in ((FWM, 15), (IDM, 42))
    ]
    expected = [*trained[:2], ("merged", None, 0), *trained[2:]]
    assert [(s.kind, None if len(s.roles) == 2 else s.roles[0], s.steps) for s in plan] == expected
    assert stages(cfg)[-len(plan) :] == plan


def pairs_of(driver, monkeypatch, kind: str, role) -> list:
    """What one step of a supervised stage trains on."""
    seen = []
    monkeypatch.setattr(alternation.supervised, "step", lambda session, pairs, *rest: seen.extend(pairs) or {})
    batches = [
        "warmup.batch=4",
        *(f"phase.{role}.{loss}_batch=2" for role in ("fwm", "idm") for loss in ("mstep", "replay")),
    ]
    driver.cfg = compose(["pretrain.rehearsed=3", "warmup.renamed=1.0", "pretrain.steps=9", *batches])
    driver.session = SimpleNamespace(prompter=SimpleNamespace(image_columns=None))
    driver.plan = [Stage(kind, (role,), 0, 5)]
    driver._stepper(driver.plan[0])(0)
    return seen


@pytest.mark.parametrize("kind", ["warmup", "continued_sft"])
def test_supervised_steps_of_the_fwm_rehearse_pre_training_and_those_of_the_idm_do_not(driver, monkeypatch, kind):
    driver.labelled = [replace(row("l1", "label l1"), x="l1 open", y="l1 shut")]
    driver.unlabelled = [
        replace(row(name, "untold"), x=f"{name} open", y=f"{name} shut") for name in ("u1", "u2", "u3")
    ]
    fwm = pairs_of(driver, monkeypatch, kind, FWM)
    assert [role for role, _ in fwm] == [FWM] * 7
    assert sorted(r.z for _, r in fwm[4:]) == ["u1 shut", "u2 shut", "u3 shut"], "differences, no label"
    idm = pairs_of(driver, monkeypatch, kind, IDM)
    assert [role for role, _ in idm] == [IDM] * 4 and [r for _, r in idm] == [r for _, r in fwm[:4]]
    (name,) = {r.z.removeprefix("label ") for _, r in idm}
    assert name != "l1" and {(r.x, r.y) for _, r in idm} == {(f"{name} open", f"{name} shut")}


def rows_of_a_step(driver, monkeypatch, *settings: str) -> tuple[int, int]:
    """Of the FWM: those that a step of continued SFT trains on, and those of a phase's step beside its rollout."""
    seen, steps = [], []
    monkeypatch.setattr(alternation.supervised, "step", lambda session, pairs, *rest: seen.extend(pairs) or {})
    monkeypatch.setattr(alternation, "grpo_step", lambda session, role, step: steps.append(step) or {})
    driver.cfg = compose(["phase.fwm.prompts=2", "phase.fwm.plausibility_floor=null", *settings])
    driver.cfg.phase.fwm.confidence_floor = None
    driver.session = SimpleNamespace()
    driver.plan = [Stage("continued_sft", (FWM,), 0, 5), Stage("phase", (FWM,), 1, 5)]
    for stage in driver.plan:
        driver._stepper(stage)(0)
    (step,) = steps
    assert len(step.transitions) == 2
    return len(seen), len(step.annotated) + len(step.replay)


def test_a_baseline_reads_as_many_rows_as_the_phase_s_m_step_and_replay(driver, monkeypatch):
    batches = ["phase.fwm.mstep_batch=5", "phase.fwm.replay_batch=3", "warmup.batch=4"]
    assert rows_of_a_step(driver, monkeypatch, *batches) == (8, 8)
    assert rows_of_a_step(driver, monkeypatch, *batches, "phase.fwm.optimizer_steps=2") == (4, 8), "two of four each"
    assert rows_of_a_step(driver, monkeypatch, *batches, "phase.fwm.replay=0") == (5, 5)
    assert rows_of_a_step(driver, monkeypatch, *batches, "phase.fwm.mstep=0") == (4, 3), "no fewer than warm-up"
    assert rows_of_a_step(driver, monkeypatch, *batches, "phase.fwm.mstep=0", "phase.fwm.replay=0") == (4, 0)


@pytest.mark.parametrize(
    ("mstep_batch", "each"),
    [(1, 3), (3, 5)],
    ids=["Phase I: (4 + 2 * 4) / 2 steps / 2 roles", "Phase II: (2 * 3 + 2 * 2) / 2 roles"],
)
def test_a_baseline_of_shared_weights_reads_what_the_larger_phase_reads(driver, monkeypatch, mstep_batch, each):
    seen = []
    monkeypatch.setattr(alternation.supervised, "step", lambda session, pairs, *rest: seen.extend(pairs) or {})
    batches = ["phase.fwm.mstep_batch=4", "phase.fwm.replay_batch=4", "phase.idm.replay_batch=2", "warmup.batch=2"]
    batches += [f"phase.idm.mstep_batch={mstep_batch}"]
    driver.cfg = compose(["model.weights=shared", "phase.fwm.optimizer_steps=2", *batches])
    driver.session = SimpleNamespace()
    driver.plan = [Stage("continued_sft", (FWM, IDM), 0, 5)]
    driver._stepper(driver.plan[0])(0)
    assert [sum(played is role for played, _ in seen) for role in (FWM, IDM)] == [each, each]


@pytest.mark.parametrize("weights", ["separate", "shared"])
def test_warm_up_reads_as_many_rows_of_a_role_with_shared_weights_as_with_two_sets(driver, monkeypatch, weights):
    seen = []
    monkeypatch.setattr(alternation.supervised, "step", lambda session, pairs, *rest: seen.extend(pairs) or {})
    driver.cfg = compose([f"model.weights={weights}", "warmup.steps=3", "warmup.batch=4"])
    driver.session, driver.plan = SimpleNamespace(), stages(driver.cfg)
    for stage in driver.plan:
        if stage.kind == "warmup":
            stepper = driver._stepper(stage)
            for step in range(stage.steps):
                stepper(step)
    assert [sum(played is role for played, _ in seen) for role in (FWM, IDM)] == [3 * 4, 3 * 4]


def test_a_line_of_the_log_says_of_how_many_steps_of_its_stage(driver, monkeypatch):
    """Shared weights take the warm-up's steps for each role."""
    driver.cfg = compose(["model.weights=shared", "warmup.steps=2", "run.save_every=0"])
    driver.plan, driver.state, told = stages(driver.cfg), alternation.State(), []
    run = SimpleNamespace(log=lambda record, steps: told.append((record["step"], steps)))
    driver.session = SimpleNamespace(run=run, watch=SimpleNamespace(at=lambda *place: None), device="cpu")
    driver.saver = SimpleNamespace(advance=lambda: None)
    driver.interrupt = SimpleNamespace(requested=lambda device: False)
    monkeypatch.setattr(alternation, "judge", lambda *step: 0)
    monkeypatch.setattr(driver, "_enter", lambda stage: None)
    monkeypatch.setattr(driver, "_leave", lambda stage: None)
    monkeypatch.setattr(driver, "_stepper", lambda stage: lambda step: {"optimizer_steps": 1, "tokens": 1})
    driver._run_stage(next(stage for stage in driver.plan if stage.kind == "warmup"))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("ranks", "count", "looks"), [(1, 9, 3), (2, 9, 2), (2, 8, 1), (3, 2, 1), (2, 0, 0)])
def test_every_rank_looks_as_often_whether_it_was_asked_to_stop(monkeypatch, ranks, count, looks):
    """To look is collective, and a rank whose part is a batch shorter would leave the others waiting."""
    read = []
    for rank in range(ranks):
        monkeypatch.setattr(session_module.dist, "get_rank", lambda group, rank=rank: rank)
        monkeypatch.setattr(session_module.dist, "get_world_size", lambda group: ranks)
        session, seen = object.__new__(Session), []
        session.cfg, session.actor = compose(["eval.batch=4"]), SimpleNamespace(data_group=None)
        session.between_batches = lambda seen=seen: seen.append("look")
        for part in session.batches(count):
            assert 0 < len(part) <= 4
            read += part
        assert len(seen) == looks
    assert read == list(range(count))


@pytest.mark.parametrize("too_long", ["labelled", "validation", "test", "further"])
@pytest.mark.parametrize("role", [FWM, IDM])
def test_a_prompt_that_is_too_long_is_found_before_the_first_step(driver, tmp_path, monkeypatch, too_long, role):
    """Its evaluation would find it after hours."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("labelled", "validation", "test", "further")}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row(f"{name} {number}", "go").row()) + "\n" for number in range(3)))
    keys = [f"data.{name}={files[name]}" for name in ("labelled", "validation", "test")]
    driver.cfg = compose([*keys, f"data.further_tests=[{files['further']}]"])
    driver.labelled = alternation.TransitionFile(str(files["labelled"]), None)

    def prompt(asked, transition) -> list[int]:
        check_length([0] * 9, 7 if (asked, transition.id) == (role, f"{too_long} 2") else 3, 12, transition.id)
        return []

    driver.session = SimpleNamespace(prompt=prompt)
    with pytest.raises(
        ValueError, match=rf"{files[too_long]}: transition {too_long} 2: a prompt of 9 tokens .* up to 7"
    ):
        driver.start()
    driver.cfg.eval.transitions = 2
    if too_long != "labelled":
        driver._check_lengths()  # that row is not evaluated


def test_shared_weights_are_judged_by_the_mean_of_both_roles(driver, monkeypatch):
    """That weights do come back is in test_loop.py, with two sets."""
    done = []
    sets = SimpleNamespace(become=lambda name: done.append(name), trained=lambda: done.append("trained"))
    run = SimpleNamespace(say=lambda text: done.append(text), folder=Path("run"))
    driver.session = SimpleNamespace(
        policies=("shared",), roles_of=lambda name: [FWM, IDM], sets=sets, run=run, actor="model"
    )
    monkeypatch.setattr(run_state, "load_weights", lambda actor, folder: done.append((actor, str(folder))))
    driver.save = done.append
    driver.state = alternation.State()
    for iteration, (fwm, idm) in enumerate([(0.3, 0.3), (0.2, 0.5), (0.4, 0.2)]):
        driver._keep_better({"fwm/exact_match": fwm, "idm/exact_match": idm}, iteration)
    told = "shared: 30.0% on validation after iteration 2, 35.0% after 1: taken back"
    assert done == ["better", "better", told, "shared", ("model", "run/checkpoints/better/shared"), "trained"]
    assert driver.state.best == {"shared": (0.35, 1)}
