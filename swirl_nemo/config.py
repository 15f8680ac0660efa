"""The schema: every key that a run can set, its type and its meaning.

Values live in conf/ alone. A field without a default here must be set there, so that each default has one home; Hydra
composes conf/ over this schema and refuses an unknown key or an ill-typed value. `swirl_nemo.settings` composes and
checks what types cannot say.
"""

from dataclasses import dataclass
from enum import Enum

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from .evaluation.suites.config import SuiteConfig


class Weights(Enum):
    """Whether FWM and IDM are two weight sets or one that plays both roles."""

    separate = "separate"
    shared = "shared"


class Kl(Enum):
    """Estimators of KL(policy || reference) from one sample (Schulman 2020, "Approximating KL divergence")."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class Aggregation(Enum):
    """How token losses become one loss: mean of sequence means (GRPO), or mean over all tokens (DAPO)."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"


class Schedule(Enum):
    constant = "constant"
    cosine = "cosine"


class Dtype(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Recompute(Enum):
    """Activations made again in the backward pass: none, those of attention's core, or all but a layer's input
    (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models")."""

    none = "none"
    selective = "selective"
    full = "full"


class Fp8(Enum):
    """Linear layers' operands: not in FP8, or e4m3 forward and e5m2 for gradients (Micikevicius et al. 2022)."""

    none = "none"
    hybrid = "hybrid"


class AmaxAlgorithm(Enum):
    """How delayed scaling makes one amax of its history, as Transformer Engine names it."""

    max = "max"
    most_recent = "most_recent"


class ScoringPrecision(Enum):
    """Of rewards and reference log-probs: `dtype` without FP8, or as in training."""

    dtype = "dtype"
    training = "training"


class Layers(Enum):
    """Whose linear layers: Megatron's local ones, or Transformer Engine's, which FP8 needs."""

    local = "local"
    transformer_engine = "transformer_engine"


class Attention(Enum):
    """torch's fused attention on a grid with padding, or Transformer Engine's on sequences of different lengths."""

    torch = "torch"
    transformer_engine = "transformer_engine"


class Norms(Enum):
    torch = "torch"
    transformer_engine = "transformer_engine"
    apex = "apex"


class RoleName(Enum):
    fwm = "fwm"
    idm = "idm"


class NextState(Enum):
    """What the FWM writes: the whole next state, or what changes of the state before (data/facts.py)."""

    whole = "whole"
    changes = "changes"


class Tokens(Enum):
    """What a role may emit: every ordinary token of the tokenizer and the end token, or an image's codes alone."""

    text = "text"
    image = "image"


@dataclass
class RunConfig:
    name: str = MISSING  # the run's folder is {root}/{name}
    root: str = MISSING
    seed: int = MISSING
    save_every: int = MISSING  # steps between checkpoints; 0: only at the end of a phase and on SIGTERM
    save_in_background: bool = MISSING  # train on while a checkpoint is written; its memory may grow by what is saved
    keep: int = MISSING  # newest checkpoints kept
    keep_best: int = MISSING  # and those of the highest exact match on data.validation, mean of both roles
    max_nonfinite: int = MISSING  # a run stops after so many steps in a row with a loss, reward or norm not finite
    drift_warn: float | None = MISSING  # one line where drift/max is over it; null: never
    drift_stop: float | None = MISSING  # the run stops where drift/max is over it; null: never
    tensorboard: bool = MISSING
    wandb_project: str | None = MISSING  # null: no W&B


@dataclass
class ArchitectureConfig:
    """A model's dimensions, under the names that they have in a NeMo checkpoint's model_config.yaml."""

    num_layers: int = MISSING
    hidden_size: int = MISSING
    ffn_hidden_size: int = MISSING
    num_attention_heads: int = MISSING
    num_query_groups: int = MISSING
    kv_channels: int = MISSING  # of one head
    max_position_embeddings: int = MISSING
    vocab_size: int = MISSING
    override_vocab_size: int = MISSING  # rows of the embedding: vocab_size and padding
    share_embeddings_and_output_weights: bool = MISSING
    bias: bool = MISSING  # on every linear layer
    qkv_bias: bool = MISSING  # on the QKV projection
    qk_layernorm: bool = MISSING  # a norm on each head's query and key
    normalization: str = MISSING
    layernorm_epsilon: float = MISSING
    activation: str = MISSING
    rotary_base: float = MISSING


@dataclass
class ModelConfig:
    fwm: str = MISSING  # NeMo checkpoint folder that `swirl import` wrote
    idm: str = MISSING  # the same; ignored when weights are shared
    # Dimensions for `swirl plan` and a dry run, which need no checkpoint; null: of model.fwm's model_config.yaml
    architecture: ArchitectureConfig | None = MISSING
    weights: Weights = MISSING
    max_length: int = MISSING  # longest prompt plus completion, tokens
    logit_chunk: int = MISSING  # positions whose full-vocabulary logits exist at a time
    recompute: Recompute = MISSING


@dataclass
class RoleDataConfig:
    # {x} {y} {z} {diff} {was} {history}; one is drawn per prompt and held within its group
    templates: list[str] = MISSING
    tokens: Tokens = MISSING
    min_length: int = MISSING
    max_length: int = MISSING


@dataclass
class DataConfig:
    world: str = MISSING
    labelled: str = MISSING  # transitions file with z
    unlabelled: str = MISSING  # transitions or state sequences; z, where present, is not read
    unlabelled_actions: str | None = MISSING  # {"id", "z"} lines, the true actions of those: for baseline all_labels
    validation: str = MISSING
    test: str = MISSING
    further_tests: list[str] = MISSING  # read at the end beside `test`, such as combinations that no label has
    test_episodes: str | None = MISSING  # transitions step by step, for eval.horizon
    collection: str | None = MISSING  # collect.json, for eval.plans
    tokenizer: str = MISSING  # Hugging Face tokenizer folder
    image_tokenizer: str | None = MISSING  # folder with which images were tokenized, to draw them and to read pictures
    image_size: list[int] | None = MISSING  # height and width, for an image tokenizer that takes any
    # What divides a state's text into facts, for {diff} and {was}, and states in {history}
    fact_separator: str = MISSING
    next_state: NextState = MISSING
    history: int = MISSING  # states before x that are read, for {history}
    max_labels: int | None = MISSING  # use the first N labelled rows
    max_unlabelled: int | None = MISSING  # and the first N state-only transitions
    fwm: RoleDataConfig = MISSING
    idm: RoleDataConfig = MISSING


@dataclass
class OptimizerConfig:
    beta1: float = MISSING
    beta2: float = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    clip_grad: float = MISSING


@dataclass
class SftConfig:
    """Supervised steps: warm-up, pre-training on state-only pairs, or the continued-SFT baseline."""

    steps: int = MISSING  # of warm-up: for each role; one set of weights takes those of both, half a batch of each
    batch: int = MISSING
    lr: float = MISSING
    lr_warmup: int = MISSING
    schedule: Schedule = MISSING
    renamed: float = MISSING  # share of a row's words, each another wherever it stands (data/renaming.py)


@dataclass
class PretrainConfig(SftConfig):
    """State-only pairs; the action is what differs between the two states, or nothing at all."""

    without_action: float = MISSING  # share of the FWM's rows: they teach what can follow a state
    rehearsed: int = MISSING  # the FWM's rows that each step of its warm-up and of its baselines has, too


@dataclass
class AnnotateConfig:
    greedy: bool = MISSING
    candidates: int = MISSING  # of which the one that both models find likeliest is taken
    pool: int = MISSING  # state-only transitions annotated an iteration; 0: all of them
    certainty_ceiling: float | None = MISSING  # put last what a policy knows: log-probs over this (annotation.py)


@dataclass
class SamplingConfig:
    temperature: float = MISSING
    top_k: int = MISSING  # 0: off
    top_p: float = MISSING  # 1: off


@dataclass
class PhaseConfig:
    steps: int = MISSING
    prompts: int = MISSING  # P, over all data-parallel ranks
    group: int = MISSING  # G
    optimizer_steps: int = MISSING  # mini-batches a rollout batch is split into
    lr: float = MISSING
    lr_warmup: int = MISSING
    schedule: Schedule = MISSING
    clip_grad: float = MISSING
    sampling: SamplingConfig = MISSING
    kl_beta: float = MISSING
    kl: Kl = MISSING
    clip_low: float = MISSING
    clip_high: float = MISSING
    divide_by_std: bool = MISSING
    permute_advantages: bool = MISSING  # a control: dealt out at random within their group, they say nothing
    std_epsilon: float = MISSING
    dead_std: float = MISSING  # groups whose reward spread is under this leave the loss
    aggregation: Aggregation = MISSING
    reward_floor: float = MISSING
    policy_gradient: float = MISSING  # weight of the GRPO loss; 0 leaves replay and M-step alone
    mstep: float = MISSING  # weight of the supervised loss on plausible annotations; for the FWM the ELBO's gradient
    mstep_batch: int = MISSING  # annotations a step, over all data-parallel ranks and optimizer steps
    plausibility_floor: float | None = MISSING  # of annotations, keep where summed log P(y|x,z) is at least this
    confidence_floor: float | None = MISSING  # and where the IDM's summed log Q(z|x,y) is at least this
    replay: float = MISSING  # weight of the supervised loss on labelled rows
    replay_batch: int = MISSING


@dataclass
class PhasesConfig:
    fwm: PhaseConfig = MISSING
    idm: PhaseConfig = MISSING


class Baseline(Enum):
    """What to compare SWIRL with. Each has as many optimizer steps a role as SWIRL, at the phases' rates, and as many
    rows in each as the phase's M-step and replay together, but no fewer than warm-up."""

    continued_sft = "continued_sft"  # on the labels
    pseudo_labels = "pseudo_labels"  # on state-only transitions with the warmed-up IDM's actions, unfiltered
    merged = "merged"  # one model for both roles: the mean of the two of continued_sft
    all_labels = "all_labels"  # on data.unlabelled_actions too: what labels alone could reach


@dataclass
class AlternationConfig:
    iterations: int = MISSING
    order: list[RoleName] = MISSING  # roles trained within an iteration
    # log p(z) in nats, beside 0, of an action whose first word or number of words no labelled one has (prior.py): in
    # Phase II's reward, and where an annotation is chosen and judged. 0: all actions are alike
    new_form: float = MISSING
    only_better: bool = MISSING  # an iteration that lowers a model's exact match on validation is taken back for it
    baselines: list[Baseline] = MISSING  # made as well, from the warmed-up models


@dataclass
class ParallelConfig:
    tensor: int = MISSING
    pipeline: int = MISSING
    context: int = MISSING  # ranks that a micro-batch's tokens are divided among
    sequence: bool = MISSING
    overlap_grad_reduce: bool = MISSING  # gradients are reduced while the last backward pass of a step runs
    micro_batch: int = MISSING  # sequences a rank trains on at a time
    score_batch: int = MISSING  # sequences a rank scores at a time
    rollout_batch: int = MISSING  # sequences a rank decodes at a time

    @property
    def processes(self) -> int:
        """Of one model copy; what is more of them is data parallel."""
        return self.tensor * self.pipeline * self.context


@dataclass
class PrecisionConfig:
    dtype: Dtype = MISSING
    fp8: Fp8 = MISSING
    fp8_amax_history_len: int = MISSING
    fp8_amax_compute_algo: AmaxAlgorithm = MISSING
    fp8_params: bool = MISSING  # keep linear layers' weights in FP8
    fp8_edge_layers: int = MISSING  # of the first and of the last layers, so many stay in dtype
    emulate: bool = MISSING  # FP8 by rounding to torch's float8 types and back: numbers without the speed
    scoring: ScoringPrecision = MISSING


@dataclass
class KernelsConfig:
    """What computes layers. Transformer Engine and Apex need a GPU and come with the NeMo image."""

    layers: Layers = MISSING
    attention: Attention = MISSING
    norms: Norms = MISSING
    gradient_accumulation_fusion: bool = MISSING  # a weight's gradient is added up where it is computed; needs Apex


@dataclass
class EvalConfig:
    transitions: int = MISSING  # held-out transitions read; 0: all
    batch: int = MISSING
    samples: int = MISSING  # predictions kept for the report
    horizon: int = MISSING  # at the end the FWM is rolled forward over so many steps; 0: off
    plans: int = MISSING  # and chooses actions for so many goals in the world itself; 0: off


class Runtime(Enum):
    """What starts a job's container on a node: Slurm's Pyxis plug-in over Enroot, Apptainer, or nothing."""

    none = "none"
    pyxis = "pyxis"
    apptainer = "apptainer"


@dataclass
class ContainerConfig:
    runtime: Runtime = MISSING
    image: str | None = MISSING  # an image's name or its .sqsh or .sif file
    mounts: list[str] = MISSING  # HOST:CONTAINER; the working directory is mounted at its own path beside them


@dataclass
class SlurmConfig:
    """What `swirl submit` asks the scheduler for."""

    account: str | None = MISSING
    partition: str | None = MISSING
    time: str = MISSING  # of one job, as sbatch takes it: HH:MM:SS or D-HH:MM:SS
    options: list[str] = MISSING  # further #SBATCH options of the site, such as --qos=high or --exclusive
    signal_seconds: int = MISSING  # SIGTERM before the time limit: for a step or batch, and a checkpoint
    chain: int = MISSING  # jobs in all, each after the one before
    max_failures: int = MISSING  # after so many in a row at the same step a run is not requeued any more
    setup: list[str] = MISSING  # shell lines before anything else: modules, an environment to activate
    environment: list[str] = MISSING  # NAME=VALUE, exported to every task
    container: ContainerConfig = MISSING


@dataclass
class PreflightConfig:
    """What each node must have before a job trains on it."""

    seconds: float = MISSING  # all checks together
    free_memory_gb: float = MISSING  # of the host
    free_device_memory_gb: float = MISSING
    free_disk_gb: float = MISSING  # where runs are written
    driver: str | None = MISSING  # the NVIDIA driver that all nodes must have; null: one and the same
    clock_seconds: float = MISSING  # by which two nodes' clocks may differ


@dataclass
class HardwareConfig:
    """What a vendor's data sheet says of one device and what surrounds it, for `swirl plan`. GB are 10^9 bytes."""

    device: str = MISSING
    memory_gb: float = MISSING
    bf16_tflops: float = MISSING  # dense
    fp8_tflops: float = MISSING
    memory_gb_s: float = MISSING
    link_gb_s: float = MISSING  # between devices of a node, one direction
    network_gb_s: float = MISSING  # between nodes, a device's part, one direction
    host_memory_gb: float = MISSING  # of a node
    host_link_gb_s: float = MISSING  # between a device and its host, one direction
    storage_gb_s: float = MISSING  # a node's writing to the file system that holds runs


@dataclass
class ClusterConfig:
    backend: str = MISSING  # gloo on CPUs, nccl on GPUs
    timeout_minutes: float = MISSING
    nodes: int = MISSING
    devices: int = MISSING  # processes a node
    hardware: HardwareConfig = MISSING
    slurm: SlurmConfig = MISSING
    preflight: PreflightConfig = MISSING


@dataclass
class SwirlConfig:
    run: RunConfig = MISSING
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    pretrain: PretrainConfig = MISSING  # 0 steps: off
    warmup: SftConfig = MISSING
    annotate: AnnotateConfig = MISSING
    alternation: AlternationConfig = MISSING
    phase: PhasesConfig = MISSING
    parallel: ParallelConfig = MISSING
    precision: PrecisionConfig = MISSING
    kernels: KernelsConfig = MISSING
    eval: EvalConfig = MISSING
    suite: SuiteConfig | None = MISSING  # a benchmark that `swirl eval` reads instead of data.test
    cluster: ClusterConfig = MISSING


ConfigStore.instance().store(name="schema", node=SwirlConfig)
