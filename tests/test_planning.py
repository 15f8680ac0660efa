"""`swirl plan` against figures that are not its own: what torch measured of the real actor (docs/runs/memory.json),
what Megatron's estimator prints, what Korthikanti et al. state, what this project's code really packs and copies, and
what others have published of their runs.

Not shown: anything on a GPU. Memory was measured on CPUs; seconds are held against other people's tables.
"""

import json
from pathlib import Path

import pytest
import torch

from swirl_nemo.actor.packing import pack
from swirl_nemo.cli import main
from swirl_nemo.config import ArchitectureConfig, Dtype, Recompute, RoleName, Weights
from swirl_nemo.data.batch import collate
from swirl_nemo.planning import comparison, memory, published
from swirl_nemo.planning.architecture import Layout, Model, architecture, parameters, stages
from swirl_nemo.planning.plan import make_plan, mends, overrides, search
from swirl_nemo.planning.work import Lengths, Micro, Rollout, copies, micro, phase_work
from swirl_nemo.settings import compose
from swirl_nemo.weights import WeightSets

RECORD = json.loads((Path(__file__).parent.parent / "docs" / "runs" / "memory.json").read_text())
ACTION, INSTRUCTION = 8, 8  # tokens of bench's action and instruction (conf/bench/step.yaml)


PUBLISHED = {  # parameters that the models' own papers and cards state, billions
    "llama3_8b": 8.03,
    "llama3_70b": 70.6,
    "qwen2_5_7b": 7.62,
}


@pytest.mark.parametrize(("model", "billions"), PUBLISHED.items())
def test_parameters_are_those_that_the_models_papers_state(model, billions):
    assert parameters(architecture(compose([f"model={model}"]))) / 1e9 == pytest.approx(billions, abs=0.05)


# memory: what torch measured


def measured_model(case: dict) -> Model:
    shape, options = case["shape"], case["options"]
    a = ArchitectureConfig(
        num_layers=shape["layers"],
        hidden_size=shape["hidden"],
        ffn_hidden_size=shape["ffn"],
        num_attention_heads=shape["heads"],
        num_query_groups=shape["kv_heads"],
        kv_channels=shape["hidden"] // shape["heads"],
        max_position_embeddings=shape["max_positions"],
        vocab_size=shape["words"] + 12,
        override_vocab_size=-(-(shape["words"] + 12) // 128) * 128,
        share_embeddings_and_output_weights=shape["tied"],
        bias=False,
        qkv_bias=False,
        qk_layernorm=False,
        normalization="rmsnorm",
        layernorm_epsilon=1e-5,
        activation="fast-swiglu",
        rotary_base=1e4,
    )
    sequence = "parallel.sequence=true" in options
    recompute = next((kind for kind in Recompute if f"model.recompute={kind.name}" in options), Recompute.none)
    return Model(
        a,
        Layout(case["tensor"], case["pipeline"], virtual=1, context=1, data=case["data"], sequence=sequence),
        Dtype.bf16 if "precision=bf16" in options else Dtype.fp32,
        recompute,
        case["logit_chunk"],
    )


@pytest.mark.parametrize("name", RECORD)
def test_memory_is_what_torch_measured(name):
    """Of each rank, within 10%: what stands between steps, and the peaks of rollout, scoring and training over it."""
    case = RECORD[name]
    model, group, prompt, completion = (
        measured_model(case),
        case["group"],
        case["prompt_len"],
        case["completion_len"],
    )
    prompts = case["prompts"] // case["data"]
    rows = prompts * group
    train = micro(rows, case["micro_batch"], group, prompt, completion - 1, completion)
    reference = micro(rows, case["score_batch"], group, prompt, completion - 1, completion)
    own = completion + INSTRUCTION + ACTION
    reward = micro(rows, case["score_batch"], group, prompt - ACTION, own, ACTION + 1)
    rollout = Rollout(1, prompts, rows, prompt, completion, completion, truncates=False)
    for number, rank in enumerate(case["ranks"]):
        stage = stages(model.a, model.layout)[number // case["tensor"] % case["pipeline"]]
        standing = memory.standing(model, stage)
        generating = memory.rollout(model, stage, rollout)
        # Of tied embeddings the count by storages is too high: tests/workers/memory.py
        training_peak = min(rank["train"].values())
        compared = {
            "weights": (standing["weights"], rank["weights"]),
            "gradients": (standing["gradients"], rank["gradients"]),
            "optimizer": (standing["optimizer state"], rank["optimizer"]),
            "host": (rank["host_sets"] * rank["parameters"] * model.w, rank["host"]),
            "keys and values": (generating["keys and values"], rank["rollout"]["cache"]),
            "rollout": (sum(generating.values()), rank["rollout"]["peak"]),
            "scoring": (
                max(memory.scoring(model, stage, batch) for batch in (reference, reward)),
                rank["score"]["peak"],
            ),
            "training": (sum(memory.training(model, stage, train, train.count).values()), training_peak),
        }
        assert rank["parameters"] == stage.parameters(model.a, model.layout.tensor)
        for what, (planned, seen) in compared.items():
            assert planned == pytest.approx(seen, rel=0.1), (what, number)


def test_a_checkpoint_is_as_large_as_the_files_were():
    cfg = compose(["model=llama3_8b"])  # three weight sets and the optimizer
    count = parameters(architecture(cfg))
    planned = memory.memory(cfg, architecture(cfg)).checkpoint
    case = RECORD["single"]
    whole = sum(rank["parameters"] for rank in case["ranks"])
    assert planned.weights / count == pytest.approx(3 * case["checkpoint"]["weights"]["fwm"] / whole, rel=0.1)
    assert planned.optimizer / count == pytest.approx(case["checkpoint"]["optimizer"] / whole, rel=0.1)


# memory: what Megatron says of itself

# Bytes of weights, gradients and Adam's state by megatron/training/theoretical_memory_usage.py of Megatron-LM d98e8a6
ESTIMATED = [
    ("llama3_8b", 1, 1, 8, 60226959360),
    ("llama3_70b", 8, 2, 4, 39691653120),
    ("llama3_70b", 4, 4, 4, 40870692864),
    ("llama3_70b", 8, 4, 8, 17030691840),
    ("qwen2_5_7b", 2, 2, 2, 22847075328),
]


@pytest.mark.parametrize(("name", "tensor", "pipeline", "data", "estimate"), ESTIMATED)
def test_what_stands_is_what_megatrons_estimator_says(name, tensor, pipeline, data, estimate):
    """Its most loaded rank. It takes no bias of QKV into account, and queries as wide as the hidden state."""
    a = architecture(compose([f"model={name}"]))
    model = Model(a, Layout(tensor, pipeline, 1, 1, data, sequence=True), Dtype.bf16, Recompute.none, 1024)
    assert max(sum(memory.standing(model, s).values()) for s in stages(a, model.layout)) == pytest.approx(
        estimate, rel=0.01
    )


def test_activations_are_korthikantis_but_for_what_this_code_keeps_otherwise():
    """Korthikanti et al. 2022, table 2: with tensor and sequence parallelism a layer keeps sbh 34/t and what is
    quadratic in s, which fused attention does not keep. Dropout's two masks are 2 of the 34."""
    tensor, rows, length, h = 4, 2, 1024, 4096
    a = published._gpt(layers=24, hidden=h, heads=32)
    model = Model(a, Layout(tensor, 1, 1, 1, 1, sequence=True), Dtype.bf16, Recompute.selective, 1024)
    tokens = rows * length
    kept = memory.kept_by_layer(model, Micro(1, rows, 0, 0, length, length))
    unfused_norms = 2 * (8 - 2)  # input and its normalised form in float32 instead of the input in bf16
    rotated = 2 + 2  # queries and keys, beside the product that they are made of
    assert kept == pytest.approx(tokens * h / tensor * (34 - 2 + unfused_norms + rotated))


@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 1), (4, 1), (4, 5), (8, 10)])
def test_micro_batches_in_flight_are_those_of_megatrons_schedule(pipeline, virtual):
    """Narayanan et al. 2021: the first stage holds p of them, and with interleaving 1 + (p-1)/(pv) as much."""
    layout = Layout(1, pipeline, virtual, 1, 1, sequence=False)
    first, *_, last = stages(published.LLAMA3_70B, layout)
    penalty = 1 if virtual == 1 else 1 + (pipeline - 1) / (pipeline * virtual)
    assert memory.in_flight(layout, first, 1000) == pytest.approx(pipeline * penalty)
    assert memory.in_flight(layout, first, 1) == memory.in_flight(layout, last, 1) == 1


# what a step runs


def test_tokens_are_those_that_the_code_packs():
    """Two groups of four rows: actor.packing's tokens, and the places that attention pairs."""
    prompts = [[1] * 12] * 4 + [[2] * 12] * 4
    sequences = collate(prompts, [[3] * 7] * 8, group=4)
    packing, _ = pack(sequences, multiple=1)
    batch = micro(8, 8, 4, prefix=12, own=7 - 1, scored=7)
    assert (batch.count, batch.tokens, batch.head) == (1, len(packing.tokens), sequences.completion_mask.sum())
    visible = packing.visible.sum().item() + 2 * 12 * 13 // 2
    assert batch.pairs == pytest.approx(visible, rel=0.1)


class _Copied(WeightSets):
    copied = 0

    def _copy(self, source, target):
        self.copied += 1
        super()._copy(source, target)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("weights", Weights)
def test_weight_sets_are_copied_as_often_as_planned(weights, reference):
    """Of the real WeightSets, in the order in which phase.score wears them, after a step that trained."""
    actor = type("Actor", (), {"model": [torch.nn.Linear(2, 2)]})()
    policy = "shared" if weights is Weights.shared else "fwm"
    sets = _Copied(actor, policy)
    for name in (policy, "idm", "reference"):
        sets.snapshot(name)
    sets.trained()
    sets.copied = 0
    if weights is Weights.shared:
        with sets.wear("reference"):
            pass
    else:
        with sets.wear("idm"):
            if reference:
                with sets.wear("reference"):
                    pass
    assert sets.copied == copies(weights, reference)


def test_a_step_of_the_published_phases():
    """Tokens by hand: 32 prompts of 8 rows over 4 replicas, states of 100, next states of 50, actions of 10 tokens."""
    cfg = compose(["phase=published", "parallel.micro_batch=8", "parallel.score_batch=64"])
    layout = Layout(1, 1, 1, 1, 4, sequence=False)
    work = phase_work(cfg, RoleName.fwm, Lengths(100, 50, 10), layout)
    assert work.train == [Micro(8, 8, 1, 110, 49, 50)]
    assert work.passes["reward"] == Micro(1, 64, 8, 100, 59, 10)
    assert work.passes["reference"] == Micro(1, 64, 8, 110, 49, 50)
    assert (work.rollout.pieces, work.rollout.prompts, work.rollout.rows, work.rollout.prompt) == (1, 8, 64, 110)
    assert phase_work(compose([]), RoleName.idm, Lengths(100, 50, 10), layout).passes["reward"].scored == 50


def test_shared_weights_replay_the_labels_to_both_roles_and_phase_2_teaches_its_annotated_rows_to_both():
    """Of 8 labels and 16 annotated rows in 2 optimizer steps and 2 replicas; states of 100, next states of 50, actions
    of 10 tokens."""
    layout = Layout(1, 1, 1, 1, 2, sequence=False)

    def taught(weights: str, role: RoleName) -> list[Micro]:
        rows = ["replay_batch=8", "mstep_batch=16", "prompts=4", "optimizer_steps=2"]
        cfg = compose([*(f"phase.{role.value}.{row}" for row in rows), f"model.weights={weights}"])
        return phase_work(cfg, role, Lengths(100, 50, 10), layout).train[1:]

    as_fwm, as_idm = Micro(1, 2, 2, 110, 49, 50), Micro(1, 2, 2, 150, 9, 10)
    fwm_mstep, idm_mstep = Micro(1, 4, 4, 110, 49, 50), Micro(1, 4, 4, 150, 9, 10)
    assert taught("separate", RoleName.fwm) == [as_fwm, fwm_mstep]
    assert taught("separate", RoleName.idm) == [as_idm, idm_mstep]
    assert taught("shared", RoleName.fwm) == [as_fwm, as_idm, fwm_mstep]
    assert taught("shared", RoleName.idm) == [as_fwm, as_idm, fwm_mstep, idm_mstep]


# seconds: what others have published


@pytest.fixture(scope="module")
def rows() -> list[published.Row]:
    return published.rows(compose(["cluster=dgx_h100"]).cluster.hardware)


def whole(row: published.Row) -> bool:
    """A training speed or a whole GRPO step, not a part of one."""
    return row.name.endswith(", step") or not row.name.endswith(("training", "refit", "generation", "log-probs"))


@pytest.mark.parametrize(("use", "least"), [(published.Use.held_out, 8), (published.Use.seen, 25)])
def test_runs_that_nothing_was_fitted_to_are_predicted_within_a_quarter(rows, use, least):
    """Pre-training and fine-tuning in bf16 and FP8, and whole GRPO steps; parts of steps may be further off."""
    others = [row for row in rows if row.use is use and whole(row)]
    assert len(others) >= least
    for row in others:
        assert abs(row.error) < 0.25, row


def test_what_was_fitted_is_met(rows):
    assert all(abs(row.error) < 0.05 for row in rows if row.use is published.Use.fitted)


def test_the_document_has_the_figures_of_now(rows):
    text = (Path(__file__).parent.parent / "docs" / "planning.md").read_text()
    for row in rows:
        planned = f"{row.predicted:,.{0 if row.published > 1000 else 1}f}"
        assert f"| {planned} | {row.error:+.0%} | {row.use.value} |" in text, row


def test_fp8_trains_as_much_faster_as_is_published():
    """1.2 to 1.5 times (NVIDIA's NeMo and Transformer Engine notes)."""
    hardware = compose(["cluster=dgx_h100"]).cluster.hardware
    for run in published.TRAININGS:
        if run.fp8 and run.a in (published.LLAMA3_70B, published.LLAMA2_70B):
            slower = type(run)(**vars(run) | {"fp8": False})
            assert 1.15 < run.predicted(hardware) / slower.predicted(hardware) < 1.55, run.name


# the verb

SEVENTY = ["model=llama3_70b", "cluster=dgx_h100", "cluster.nodes=8", "precision=bf16", "phase=published"]
TP8 = ["parallel.tensor=8", "parallel.pipeline=2", "parallel.sequence=true", "parallel.micro_batch=1"]


def swirl(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, arguments)])
    out, error = capsys.readouterr()
    return ended.value.code or 0, out, error


def planned(*settings: str):
    cfg = compose([*SEVENTY, *settings])
    return cfg, make_plan(cfg, architecture(cfg), Lengths.longest(cfg))


WIDE = ("phase.fwm.prompts=64", "warmup.batch=64")  # 64 replicas
MISFITS = [  # by what is put on 80 GB: 70.6e9 parameters of 2, 4 and 12/DP bytes on each rank
    (WIDE, "weights", 141),
    (("parallel.tensor=4",), "gradients", 106),
    (("parallel.tensor=8", "cluster.nodes=1"), "optimizer state", 159),
]


@pytest.mark.parametrize(("settings", "what", "size"), MISFITS)
def test_the_first_thing_that_does_not_fit(settings, what, size):
    found = planned(*settings)[1].misfit
    assert (found.what, found.there) == (what, 80e9)
    assert found.needed / 1e9 == pytest.approx(size + 4, rel=0.02)


def test_activations_and_hosts_that_do_not_fit():
    assert planned(*TP8, "parallel.micro_batch=64")[1].misfit.what == "activations"
    assert planned(*TP8, "cluster.hardware.host_memory_gb=200")[1].misfit.what == "named weight sets"


def test_what_is_said_to_make_it_fit_does():
    cfg, plan = planned("parallel.tensor=4", "parallel.sequence=true", "parallel.micro_batch=2")
    assert plan.misfit
    lines = [overrides(change) for change in mends(cfg, architecture(cfg))]
    assert "parallel.pipeline=4" in lines
    for line in lines:
        assert (
            planned("parallel.tensor=4", "parallel.sequence=true", "parallel.micro_batch=2", *line.split())[1].misfit
            is None
        )


def test_search_finds_what_fits_and_is_faster():
    cfg, plan = planned(*TP8)
    assert plan.misfit is None
    best, *others = search(cfg, Lengths.longest(cfg), most=3)
    assert best.plan.hours <= min(other.plan.hours for other in others)
    assert best.plan.hours < plan.hours
    again = planned(*overrides(best.change).split())[1]
    assert again == best.plan and again.misfit is None


def test_swirl_plan_prints_and_writes(capsys, tmp_path):
    out = tmp_path / "plan.json"
    code, text, _ = swirl(capsys, *SEVENTY, *TP8, "--lengths", 600, 30, 12, "--json", out)
    assert code == 0 and "Fits." in text and "named weight sets" in text and "tokens/s" in text
    written = json.loads(out.read_text())
    assert written["lengths"] == {"state": 600, "next_state": 30, "action": 12}
    assert set(written["steps"][0]["parts"]) == {"rollout", "swap", "reward", "reference", "train"}
    code, text, _ = swirl(capsys, *SEVENTY, *WIDE)
    assert code == 0 and "Does not fit: weights on each GPU of pipeline stage 0" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*SEVENTY, "--lengths", 600, 200, 12], "--lengths: 200 tokens, and data.fwm.max_length=32"),
        ([*SEVENTY, "--lengths", 6000, 20, 12], "model.max_length=2048: give fewer"),
        ([*SEVENTY, "cluster.nodes=32"], "phase.fwm.prompts=32: does not divide by 256"),
        (["model.fwm=nowhere"], "model.fwm=nowhere: no model_config.yaml in it"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, arguments, line):
    code, _, error = swirl(capsys, *arguments)
    assert code == 2 and line in error and error.count("\n") == 1


def test_an_imported_checkpoint_is_its_own_architecture(tmp_path):
    known = compose(["model=qwen2_5_7b"]).model.architecture
    said = {key: value for key, value in vars(known).items() if key != "qk_layernorm"}
    (tmp_path / "model_config.yaml").write_text(json.dumps(said | {"tokenizer": {"library": "huggingface"}}))
    assert architecture(compose([f"model.fwm={tmp_path}"])) == known


def test_a_step_beside_nemo_rls():
    """The workload is NeMo-RL's; its parts add up to its step; ours lacks the refit and copies weights once instead."""
    cfg = comparison.workload(nodes=8, optimizer_steps=4, longest=comparison.BOUNDED)
    assert cfg.phase.fwm.prompts * cfg.phase.fwm.group == published.Grpo.ROLLOUTS
    _, parts, _ = comparison._ours("", comparison.BOUNDED)
    assert parts["step"] == pytest.approx(sum(parts.values()) - parts["step"])
    theirs = published.STEPS[0].predicted(cfg.cluster.hardware)
    assert parts["refit"] < 2 < theirs["refit"] and parts["training"] < theirs["training"]
