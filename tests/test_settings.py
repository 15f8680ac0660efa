"""Every shipped configuration composes and is sound; each of a user's mistakes is one line that says how to mend it."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from swirl_nemo import kernels
from swirl_nemo.checks import check, check_files, check_machine, check_training
from swirl_nemo.collection import CollectConfig
from swirl_nemo.config import Aggregation, Attention, Kl, Layers, RoleName, SamplingConfig, SwirlConfig, Weights
from swirl_nemo.settings import compose, launched, load, shipped

GROUPS = ("data", "model", "phase", "parallel", "precision", "kernels", "cluster", "suite", "experiment")
SHIPPED = [f"{group}={file.stem}" for group in GROUPS for file in sorted((shipped("conf") / group).glob("*.yaml"))]
KERNELS = [file.stem for file in (shipped("conf") / "kernels").glob("*.yaml")]
WORLDS = [f"world={file.stem}" for file in sorted((shipped("conf") / "world").glob("*.yaml"))]


@pytest.fixture(autouse=True)
def _started_alone(monkeypatch):
    for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def default() -> SwirlConfig:
    return compose([])


@pytest.mark.parametrize("choice", SHIPPED)
def test_shipped_configuration(choice):
    """Each file of conf/ composes with the rest, leaves no key unset, and passes the checks for its own layout."""
    needed = {"data=images": ["model=liquid_7b"]} | {f"kernels={name}": ["precision=bf16"] for name in KERNELS}
    cfg = compose([choice, *needed.get(choice, [])])
    assert isinstance(cfg, SwirlConfig)
    check(cfg, cfg.parallel.processes)


@pytest.mark.parametrize("choice", WORLDS)
def test_shipped_world(choice):
    assert compose([choice], "collect", CollectConfig).world.name == choice.removeprefix("world=")


def test_no_folder_of_conf_is_forgotten():
    assert {folder.name for folder in shipped("conf").iterdir() if folder.is_dir()} == {*GROUPS, "world", "bench"}


def test_published_is_what_was_released():
    """The numbers of shared/ALGORITHM.md and of the release's script, written here once more; every addition is off."""
    cfg = compose(["phase=published"])
    fwm, idm = cfg.phase.fwm, cfg.phase.idm
    assert (fwm.group, fwm.kl_beta, fwm.prompts, fwm.lr, fwm.lr_warmup) == (8, 0.04, 32, 1e-6, 100)
    assert (idm.group, idm.kl_beta, idm.prompts, idm.lr, idm.lr_warmup) == (16, 0.1, 128, 1e-6, 100)
    assert fwm.sampling == SamplingConfig(temperature=0.75, top_k=4096, top_p=0.96)
    assert idm.sampling == SamplingConfig(temperature=0.7, top_k=50, top_p=0.9)
    assert idm.clip_grad == 0.1
    for phase in (fwm, idm):
        assert (phase.reward_floor, phase.std_epsilon, phase.divide_by_std, phase.kl) == (-10, 1e-4, True, Kl.k3)
        assert (phase.dead_std, phase.mstep, phase.replay, phase.policy_gradient) == (0, 0, 0, 1)
        assert phase.plausibility_floor is phase.confidence_floor is None
        assert (phase.clip_low, phase.clip_high, phase.aggregation) == (0.2, 0.2, Aggregation.token_mean)
    assert cfg.alternation.order == [RoleName.fwm, RoleName.idm]
    assert (cfg.annotate.greedy, cfg.annotate.certainty_ceiling) == (False, None)


def test_command_line_wins_over_experiment_and_preset():
    cfg = compose(["experiment=published", "phase.fwm.kl_beta=0.02", "alternation.order=[idm]"])
    assert cfg.phase.fwm.kl_beta == 0.02
    assert cfg.alternation.order == [RoleName.idm]
    assert compose(["experiment=published", "phase=household"]).phase.fwm.dead_std == 0.1


MISTYPED = [
    ("phase.fwm.gruop=4", "no such key: did you mean phase.fwm.group?"),
    ("phase.fmw.group=4", "did you mean phase.fwm.group?"),
    ("kl_bata=0.1", "no such key"),
    ("modle=tiny", "did you mean model?"),
    ("expermient=quickstart", "did you mean experiment?"),
    ("model=tinny", "no such choice: give one of liquid_7b, llama3_70b, llama3_8b, qwen2_5_7b, smollm2_135m, tiny"),
    ("experiment=x", "no such choice: give one of bfcl, liquid_7b_1x8_bf16, llama3_70b_32x8_bf16, "),
    ("phase.fwm.group=many", "'many' of type 'str' could not be converted to Integer: give a whole number"),
    ("phase.fwm.group=2.5", "give a whole number"),
    ("phase.fwm.lr=fast", "give a number"),
    ("phase.fwm.kl=k9", "give one of k1, k2, k3"),
    ("run.tensorboard=maybe", "give true or false"),
    ("run.seed=null", "give a whole number"),
    ("data.max_labels=all", "give a whole number or null"),
    ("alternation.order=idm", "give a list, [one of fwm, idm, ...]"),
    ("alternation.order=[idm,fmw]", "Invalid value 'fmw', expected one of [fwm, idm]"),
    ("phase.fwm=3", "give its keys one by one: steps, prompts, group"),
    ("run.name=???", "run.name: nothing sets it: give run.name=VALUE"),
    ("+run.colour=red", "the schema fixes the keys: write run.colour=VALUE without + or ~"),
    ("~run.name", "write run.name=VALUE"),
    ("run.name", "not KEY=VALUE"),
    ("=3", "not KEY=VALUE"),
    ("run.name=[a", "not KEY=VALUE: quote"),
    ("--fast", "not KEY=VALUE"),
    ("model=tiny,smollm2_135m", "give one value"),
]


@pytest.mark.parametrize(("override", "mend"), MISTYPED)
def test_mistyped(override, mend):
    """Mistyped keys, choices and values are refused with what was typed and what to type."""
    with pytest.raises(ValueError, match=".") as raised:
        compose([override])
    line = str(raised.value)
    assert mend in line
    assert override in line or "nothing sets it" in line
    assert "\n" not in line


def test_a_mistake_in_a_users_own_file_names_the_file(tmp_path):
    """A folder on Hydra's search path adds choices; the schema holds for them too."""
    (tmp_path / "phase").mkdir()
    (tmp_path / "phase" / "mine.yaml").write_text("fwm: {gruop: 4}\n")
    with pytest.raises(ValueError, match=r"phase.fwm.gruop \(phase/mine.yaml\): no such key: .*phase.fwm.group\?"):
        compose([f"hydra.searchpath=[{tmp_path}]", "phase=mine"])


EMULATED = ("precision.fp8=hybrid", "precision.emulate=true")
OUT_OF_RANGE = [
    (["phase.fwm.group=1"], 1, "phase.fwm.group=1: out of range: it must be at least 2"),
    (
        ["parallel.tensor=2", "parallel.pipeline=2"],
        2,
        "does not divide the world of 2 process(es): start a multiple of 4",
    ),
    (["phase.idm.prompts=6"], 4, "phase.idm.prompts=6: does not divide by 4 (4 data-parallel rank(s) x 1 optimizer"),
    (["phase.fwm.optimizer_steps=3"], 2, "phase.fwm.prompts=16: does not divide by 6 (2 data-parallel rank(s) x 3"),
    (["phase.idm.optimizer_steps=2", "phase.idm.replay_batch=5"], 1, "phase.idm.replay_batch=5: does not divide by 2"),
    (["phase.fwm.optimizer_steps=2", "phase.fwm.mstep_batch=5"], 1, "phase.fwm.mstep_batch=5: does not divide by 2"),
    (["alternation.new_form=0.5"], 1, "alternation.new_form=0.5: out of range: it must be 0 or below"),
    (["phase.fwm.mstep_batch=0"], 1, "phase.fwm.mstep_batch=0: out of range: it must be over 0"),
    (["phase.idm.replay_batch=0"], 1, "phase.idm.replay_batch=0: out of range: it must be over 0"),
    (["warmup.batch=33"], 2, "warmup.batch=33: does not divide by 2 (2 data-parallel rank(s)): give a multiple of 2"),
    (["pretrain.batch=1"], 1, "pretrain.batch=1: out of range: it must be at least 2: a row is read in both roles"),
    (["model.weights=shared", "warmup.batch=1"], 1, "warmup.batch=1: out of range: it must be at least 2"),
    (["parallel.sequence=true"], 1, "parallel.tensor is 1: give parallel.sequence=false"),
    (["parallel.micro_batch=0"], 1, "parallel.micro_batch=0: out of range"),
    (["phase.fwm.sampling.temperature=0"], 1, "phase.fwm.sampling.temperature=0.0: out of range: it must be over 0"),
    (["phase.idm.sampling.top_p=0"], 1, "top_p=0.0: out of range: it must be in (0, 1]"),
    (["phase.idm.sampling.top_p=1.5"], 1, "top_p=1.5: out of range"),
    (["phase.idm.sampling.top_k=-1"], 1, "top_k=-1: out of range"),
    (["phase.fwm.lr=nan"], 1, "phase.fwm.lr=nan: out of range"),
    (["phase.fwm.kl_beta=-0.1"], 1, "phase.fwm.kl_beta=-0.1: out of range"),
    (["phase.fwm.reward_floor=1"], 1, "reward_floor=1.0: out of range: it must be below 0"),
    (["phase.idm.policy_gradient=0", "phase.idm.mstep=0", "phase.idm.replay=0"], 1, "nothing trains"),
    (["alternation.order=[]"], 1, "alternation.order=[]: no role trains: give e.g. [fwm,idm]"),
    (["alternation.baselines=[merged]"], 1, "merged is made of continued_sft: put that before it"),
    (["alternation.baselines=[continued_sft,merged]", "model.weights=shared"], 1, "leave merged out"),
    (["alternation.baselines=[all_labels,all_labels]"], 1, "alternation.baselines=[all_labels,all_labels]: one stands"),
    (["alternation.baselines=[all_labels]", "data.unlabelled_actions=null"], 1, "give data.unlabelled_actions=FILE"),
    (["data.fwm.max_length=256"], 1, "data.fwm.max_length=256: leaves no room for a prompt in model.max_length=256"),
    (["data.idm.min_length=50", "data.idm.max_length=8"], 1, "data.idm.min_length=50: over data.idm.max_length=8"),
    (["data.idm.templates=[]"], 1, "data.idm.templates=[]"),
    (["cluster.backend=mpi"], 1, "cluster.backend=mpi: out of range: it must be gloo on CPUs, nccl on GPUs"),
    (["run.name=../x"], 1, "run.name=../x: out of range"),
    (["precision.emulate=true"], 1, "precision.emulate=true: precision.fp8=none has no FP8: give precision.fp8=hybrid"),
    (["precision.fp8_params=true"], 1, "precision.fp8_params=true: precision.fp8=none has no FP8"),
    (
        ["precision.fp8=hybrid"],
        1,
        "precision.dtype=fp32: FP8 layers take bf16 and give bf16: give precision.dtype=bf16",
    ),
    ([*EMULATED, "parallel.context=2"], 2, "parallel.context=2: not tried with FP8"),
    ([*EMULATED, "precision.fp8_params=true"], 1, "precision.fp8_params=true: emulation keeps weights in"),
    ([*EMULATED, "model.recompute=full"], 1, "model.recompute=full: emulated FP8 would take every pass for two"),
    ([*EMULATED, "precision.fp8_amax_history_len=0"], 1, "fp8_amax_history_len=0: out of range: it must be over 0"),
    ([*EMULATED, "precision.fp8_edge_layers=-1"], 1, "fp8_edge_layers=-1: out of range: it must be 0 or more"),
    (
        [*EMULATED, "kernels.layers=transformer_engine"],
        1,
        "emulated FP8 is made of local layers alone: give",
    ),
    ([*EMULATED, "precision.dtype=bf16", "kernels.gradient_accumulation_fusion=true"], 1, "give kernels=local"),
    (
        ["precision.fp8=hybrid", "precision.dtype=bf16"],
        1,
        "kernels.layers=local: FP8 is Transformer Engine's: give",
    ),
    (["kernels.gradient_accumulation_fusion=true"], 1, "NeMo has it with bf16 weights alone: give precision=bf16"),
    (["kernels.attention=transformer_engine"], 1, "kernels.attention=transformer_engine: takes no float32: give kern"),
    (
        ["kernels.attention=transformer_engine", "precision.dtype=bf16", "parallel.context=2"],
        2,
        "its heads are not divided among parallel.context ranks yet: give kernels.attention=torch",
    ),
]


def changed(cfg: SwirlConfig, *settings: str) -> SwirlConfig:
    """The configuration with KEY=VALUE settings, without composing it again."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cfg), OmegaConf.from_dotlist(list(settings))))


@pytest.mark.parametrize(("settings", "world_size", "mend"), OUT_OF_RANGE)
def test_impossible(default, settings, world_size, mend):
    """What types cannot say is refused for the number of processes it would run on."""
    with pytest.raises(ValueError, match=".") as raised:
        check(changed(default, *settings), world_size)
    assert mend in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_does_not_divide_one_world_divides_another(default):
    """The refusals above are about the combination: 16 and 24 prompts suit 1, 2 and 4 ranks of 2 optimizer steps."""
    twice = changed(default, "phase.fwm.optimizer_steps=2", "phase.idm.optimizer_steps=2")
    for world_size in (1, 2, 4):
        assert check(twice, world_size) is None
    assert check(changed(twice, "parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"), 8) is None


@pytest.fixture
def on_disk(tmp_path, default) -> SwirlConfig:
    """The default configuration, with every file that it names made in tmp_path."""
    for name in ("labelled", "unlabelled", "validation", "test"):
        (tmp_path / name).touch()
    (tmp_path / "tokenizer").mkdir()
    for name in ("fwm", "idm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_config.yaml").write_text(
            "{num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 12, num_layers: 3, "
            "override_vocab_size: 128, max_position_embeddings: 256}"
        )
    files = {name: str(tmp_path / name) for name in ("labelled", "unlabelled", "validation", "test", "tokenizer")}
    models = {name: str(tmp_path / name) for name in ("fwm", "idm")}
    return replace(default, data=replace(default.data, **files), model=replace(default.model, **models))


@pytest.mark.parametrize("key", ["labelled", "unlabelled", "validation", "test", "tokenizer", "image_tokenizer"])
def test_missing_data(on_disk, key):
    check_files(on_disk)
    broken = replace(on_disk, data=replace(on_disk.data, **{key: "nowhere"}))
    with pytest.raises(ValueError, match=f"^data.{key}=nowhere: no such (file|folder): "):
        check_files(broken)


def test_missing_model(on_disk):
    broken = replace(on_disk, model=replace(on_disk.model, idm="nowhere"))
    with pytest.raises(ValueError, match="^model.idm=nowhere: no model_config.yaml in it: .* swirl import"):
        check_files(broken)
    check_files(replace(broken, model=replace(broken.model, weights=Weights.shared)))


@pytest.mark.parametrize(
    ("axis", "size", "what"),
    [("tensor", 8, "4 num_attention_heads"), ("tensor", 4, "2 num_query_groups"), ("pipeline", 2, "3 num_layers")],
)
def test_model_that_cannot_be_split(on_disk, axis, size, what):
    broken = replace(on_disk, parallel=replace(on_disk.parallel, **{axis: size}))
    with pytest.raises(ValueError, match=f"^parallel.{axis}={size}: does not divide the {what} of .*: give a divisor"):
        check_files(broken)


FP8_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "kv_channels": 8, "num_query_groups": 2, "num_layers": 3}
FP8_SIZES |= {"ffn_hidden_size": 64, "max_position_embeddings": 256, "override_vocab_size": 128}


@pytest.mark.parametrize(
    ("sizes", "settings", "what"),
    [
        ({"hidden_size": 24}, [], "hidden_size is 24 in"),
        ({"ffn_hidden_size": 48}, ["parallel.tensor=2"], "ffn_hidden_size / parallel.tensor is 24 in"),
        ({"num_attention_heads": 2}, ["parallel.tensor=2"], "num_attention_heads x kv_channels / parallel.tensor is 8"),
        ({}, ["precision.fp8_edge_layers=2"], "fp8_edge_layers=2: .* has 3 layers, none of which would be in FP8"),
    ],
)
def test_model_whose_layers_fp8_cannot_multiply(tmp_path, on_disk, sizes, settings, what):
    """Sides of matrices that are no multiple of 16 on a rank, and no layer left."""
    file, shared = tmp_path / "fwm" / "model_config.yaml", ["model.weights=shared"]
    OmegaConf.save(FP8_SIZES, file)
    check_files(changed(on_disk, *shared, *EMULATED))
    OmegaConf.save(FP8_SIZES | sizes, file)
    check_files(changed(on_disk, *shared))
    with pytest.raises(ValueError, match=what):
        check_files(changed(on_disk, *shared, *EMULATED, *settings))


def test_fp8_brings_its_kernels_and_others_can_be_asked_for():
    kinds = [compose(["precision=fp8_hybrid", *more]).kernels for more in ([], ["kernels.attention=torch"])]
    assert [kind.layers for kind in kinds] == [Layers.transformer_engine] * 2
    assert [kind.attention for kind in kinds] == [Attention.transformer_engine, Attention.torch]
    assert compose(["experiment=llama3_70b_8x8_fp8"]).kernels == kinds[0]
    assert compose(["experiment=llama3_70b_8x8_fp8", "precision=bf16"]).kernels == compose([]).kernels


NEEDS = [(setting, kernel) for setting, kernel, _ in kernels.NEEDS]


@pytest.mark.parametrize(("setting", "kernel"), NEEDS, ids=lambda item: getattr(item, "name", item))
def test_kernels_that_are_not_here_are_refused(monkeypatch, default, setting, kernel):
    """Without the package, without a GPU and with too old a one, each pretended; and not where all is there."""
    wanted = changed(default, setting)
    check_machine(default)
    check_machine(changed(default, *EMULATED))
    with pytest.raises(ValueError, match=f"^{setting}: {kernel.modules[0]} is not installed: give .*=") as raised:
        check_machine(wanted)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(kernels, "find_spec", lambda module: object())
    with pytest.raises(ValueError, match=f"^{setting}: no GPU is visible: give "):
        check_machine(wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    if kernel is kernels.FP8:
        with pytest.raises(ValueError, match=f"^{setting}: compute capability 8.0, 8.9 is needed: give precision=bf16"):
            check_machine(wanted)
    else:
        check_machine(wanted)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_machine(wanted)


@pytest.mark.parametrize("params", [False, True])
def test_training_asks_for_both(params):
    """For what no machine can train first, then for what this one lacks."""
    told = "precision.fp8_params=true: " if params else "precision.fp8=hybrid: transformer_engine is not installed"
    with pytest.raises(ValueError, match=f"^{told}"):
        load(["precision=fp8_hybrid", f"precision.fp8_params={params}"])


def test_weights_in_fp8_alone_can_be_planned_and_not_trained(default):
    """Whatever the machine has."""
    fp8 = changed(compose(["precision=fp8_hybrid"]), "precision.fp8_params=true")
    check(fp8, 1)
    with pytest.raises(ValueError, match="^precision.fp8_params=true: Megatron Core 0.11's optimizer .*: give false"):
        check_training(fp8)


@pytest.mark.parametrize(
    ("installed", "adam"),
    [
        ((), None),
        (("apex",), None),
        (("apex", "amp_C"), "Apex's FusedAdam"),
        (("apex", "amp_C", "transformer_engine"), "Transformer Engine's FusedAdam"),
    ],
)
def test_adam_is_the_one_that_megatron_finds_first(monkeypatch, installed, adam):
    monkeypatch.setattr(kernels, "find_spec", lambda module: object() if module in installed else None)
    assert kernels.adam() == adam


def test_heads_that_context_parallel_ranks_cannot_divide(on_disk):
    """Two query groups are one for each of two context-parallel ranks, and none are left to divide by tensor too."""
    check_files(replace(on_disk, parallel=replace(on_disk.parallel, context=2)))
    broken = replace(on_disk, parallel=replace(on_disk.parallel, tensor=2, context=2))
    with pytest.raises(
        ValueError, match="^parallel.tensor=2 x parallel.context=2: .* 2 num_query_groups .* --query-gr"
    ):
        check_files(broken)


def test_model_with_too_few_positions(on_disk):
    broken = replace(on_disk, model=replace(on_disk.model, max_length=257))
    with pytest.raises(ValueError, match="^model.max_length=257: .* allows 256 positions: give at most 256"):
        check_files(broken)


@pytest.mark.parametrize(
    ("env", "layout"),
    [
        ({}, None),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "32"}, (2, 8)),
        ({"SLURM_NTASKS": "32"}, None),
    ],
)
def test_layout_is_what_was_launched(monkeypatch, env, layout):
    """torchrun's and srun's own variables decide; a batch script's allocation alone is one process."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launched() == layout
    cluster = compose([]).cluster
    assert (cluster.nodes, cluster.devices) == (layout or (1, 1))


def test_uneven_step_and_wrong_count(monkeypatch):
    with pytest.raises(ValueError, match=r"cluster.devices=2: 1 process\(es\) were started, not 2"):
        load(["cluster.devices=2"])
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    with pytest.raises(ValueError, match="uneven: give --ntasks-per-node"):
        load([])
