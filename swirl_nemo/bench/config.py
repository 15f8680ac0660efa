"""The schema of `swirl bench`. Values live in conf/bench/step.yaml."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class BenchConfig:
    model: str = MISSING  # tiny, or a Hugging Face folder of any family that `swirl import` takes
    prompts: int = MISSING  # P
    group: int = MISSING  # G
    prompt_len: int = MISSING  # tokens of state and action together
    action_len: int = MISSING  # of these, the action's
    instruction_len: int = MISSING  # tokens after the predicted state in the counterpart's prompt
    completion_len: int = MISSING  # of every completion: none ends early
    steps: int = MISSING  # measured, after one that is not
    tensor: int = MISSING  # of the processes that torchrun started, tensor-parallel
    pipeline: int = MISSING  # and pipeline-parallel; what is left is data-parallel
    threads: int = MISSING  # of all processes together
    kl_beta: float = MISSING
    micro_batch: int = MISSING  # sequences trained on at a time
    score_batch: int = MISSING  # sequences scored at a time
    rollout_batch: int = MISSING  # sequences decoded at a time
    logit_chunk: int = MISSING  # positions whose full-vocabulary logits exist at a time


ConfigStore.instance().store("bench_schema", BenchConfig)


def check(cfg: BenchConfig, processes: int) -> None:
    """Raises ValueError, one line, for sizes that are no work."""
    for key, value in vars(cfg).items():
        if key not in ("model", "kl_beta") and value < 1:
            raise ValueError(f"{key}={value}: must be at least 1: give another value")
    if cfg.group < 2:
        raise ValueError(f"group={cfg.group}: a group of one has no advantage: give at least 2")
    copies, rest = divmod(processes, cfg.tensor * cfg.pipeline)
    if rest or not copies:
        raise ValueError(
            f"tensor={cfg.tensor} x pipeline={cfg.pipeline}: does not divide {processes} process(es): start a multiple "
            f"with torchrun --nproc-per-node {cfg.tensor * cfg.pipeline} -m swirl_nemo bench ..."
        )
    if cfg.prompts % copies:
        raise ValueError(f"prompts={cfg.prompts}: must be a multiple of {copies}, the copies of the model: give one")
    if cfg.kl_beta < 0:
        raise ValueError(f"kl_beta={cfg.kl_beta}: must not be negative: give 0 to leave the reference out")
    if cfg.action_len + 2 > cfg.prompt_len:
        raise ValueError(f"action_len={cfg.action_len}: leaves no state in prompt_len={cfg.prompt_len}: give less")
