"""From a NeMo checkpoint's model_config.yaml and a run's configuration to a live actor on this process's device."""

import logging
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch.distributed import distributed_c10d

from ..checkpoint.huggingface import read_model_config
from ..config import Dtype, Fp8, PrecisionConfig, Recompute, ScoringPrecision, SwirlConfig
from ..settings import export_ranks
from ..stack import on_cpu, prepare

# What NeMo's classes ask for beside the architecture. `transformer_engine` is NeMo's own choice of layers; ours are
# actor/layers.py. SWIRL's own loop owns the learning rate, the data and generation, so NeMo's parts for those get the
# least that they accept.
RUNTIME = {
    "mcore_gpt": True,
    "transformer_engine": False,
    "name": "megatron_gpt_full_te_layer_autocast",
    "gradient_as_bucket_view": True,
    "bias_dropout_add_fusion": False,
    "bias_activation_fusion": False,
    "masked_softmax_fusion": False,
    "get_attention_mask_from_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "peft": {"peft_scheme": "none", "restore_from_path": None},
    "ppo": {
        "length_params": {},
        "sampling_params": {},
        "offload_adam_states": False,
        "entropy_bonus": 0.0,
        "ratio_eps": 0.0,
        "forward_micro_batch_size": 1,
    },
    "data": {"data_impl": "jsonl", "splits_string": None, "seq_length": 0},
}


def model_config(cfg: SwirlConfig, checkpoint: Path) -> DictConfig:
    """The architecture that the checkpoint states, with this run's layout, precision and optimizer merged in."""
    architecture = read_model_config(checkpoint)
    granularity = None if cfg.model.recompute is Recompute.none else cfg.model.recompute.value
    full = cfg.model.recompute is Recompute.full
    layout = {
        "tensor_model_parallel_size": cfg.parallel.tensor,
        "pipeline_model_parallel_size": cfg.parallel.pipeline,
        "context_parallel_size": cfg.parallel.context,
        "sequence_parallel": cfg.parallel.sequence,
        "micro_batch_size": cfg.parallel.micro_batch,
        "global_batch_size": cfg.parallel.micro_batch * data_parallel_size(cfg),
        "use_cpu_initialization": on_cpu(),
        "seed": cfg.run.seed,
        "precision": precision(cfg),
        "megatron_amp_O2": cfg.precision.dtype is Dtype.bf16,
        "encoder_seq_length": cfg.model.max_length,
        "activations_checkpoint_granularity": granularity,
        "activations_checkpoint_method": "uniform" if full else None,
        "activations_checkpoint_num_layers": 1 if full else None,
        "activations_checkpoint_layers_per_pipeline": None,
        "gradient_accumulation_fusion": cfg.kernels.gradient_accumulation_fusion,
        "swirl_kernels": {name: getattr(cfg.kernels, name).value for name in ("layers", "attention", "norms")},
        "swirl_logit_chunk": cfg.model.logit_chunk,
        "optim": {
            "name": "mcore_distributed_optim",
            "lr": 0.0,
            "weight_decay": cfg.optimizer.weight_decay,
            "betas": [cfg.optimizer.beta1, cfg.optimizer.beta2],
            "eps": cfg.optimizer.eps,
            "overlap_grad_sync": cfg.parallel.overlap_grad_reduce,
        },
    }
    return OmegaConf.merge(architecture, RUNTIME, layout, _fp8(cfg.precision))


def precision(cfg: SwirlConfig):
    return "bf16" if cfg.precision.dtype is Dtype.bf16 else 32


def _fp8(precision: PrecisionConfig) -> dict:
    """NeMo's keys, which are for Transformer Engine's layers, and ours. Its margin stays 0."""
    hybrid = precision.fp8 is Fp8.hybrid
    return {
        "fp8": hybrid and not precision.emulate,
        "fp8_hybrid": hybrid and not precision.emulate,
        "fp8_amax_history_len": precision.fp8_amax_history_len,
        "fp8_amax_compute_algo": precision.fp8_amax_compute_algo.value,
        "fp8_params": precision.fp8_params,
        "swirl_fp8_emulated": precision.emulate,
        "swirl_fp8_edge_layers": precision.fp8_edge_layers,
        "swirl_fp8_scoring": precision.scoring is ScoringPrecision.training,
    }


def data_parallel_size(cfg: SwirlConfig) -> int:
    return cfg.cluster.nodes * cfg.cluster.devices // cfg.parallel.processes


def init_process_group(cfg: SwirlConfig) -> None:
    """Join the processes that torchrun or srun started; alone, be a group of one without a network port."""
    timeout = timedelta(minutes=cfg.cluster.timeout_minutes)
    backend = "gloo" if on_cpu() else "nccl"
    if cfg.cluster.nodes * cfg.cluster.devices > 1:
        export_ranks()
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def limit_waiting(cfg: SwirlConfig) -> None:
    """Megatron gives its groups a time-out of its own, half an hour: let all have the run's."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(minutes=cfg.cluster.timeout_minutes), group)


def quiet() -> None:
    """The run's own lines are what a log should hold: NeMo and Lightning speak up for errors only."""
    from nemo.utils import logging as nemo_logging

    nemo_logging.set_verbosity(nemo_logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def build_actor(cfg: SwirlConfig, checkpoint: Path):
    """A SwirlActor with the architecture of `checkpoint`, wrapped by Megatron's DDP and distributed optimizer.

    Its weights are whatever initialisation gave: load a checkpoint into it (checkpoint.run_state.load_weights).
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    prepare()
    quiet()
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from nemo_aligner.utils import train_script_utils as aligner

    from ..rollout.pipeline import announcement_group
    from .actor import SwirlActor

    if not dist.is_initialized():
        init_process_group(cfg)
    model = model_config(cfg, checkpoint)
    trainer_cfg = {
        "num_nodes": cfg.cluster.nodes,
        "devices": cfg.cluster.devices,
        "accelerator": "cpu" if on_cpu() else "gpu",
        "precision": precision(cfg),
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "max_epochs": 1,
        "gradient_clip_val": cfg.optimizer.clip_grad,
        "swirl": {},
    }
    tree = OmegaConf.create({"trainer": trainer_cfg, "exp_manager": None, "model": model})
    trainer = aligner.resolve_and_create_trainer(tree, "swirl")
    actor = SwirlActor(tree.model, trainer)
    aligner.init_peft(actor, tree.model)
    aligner.init_distributed(trainer, actor, False)
    placeholder = [0]
    aligner.init_using_ptl(trainer, actor, torch.utils.data.DataLoader(placeholder), placeholder)
    model_parallel_cuda_manual_seed(cfg.run.seed)
    announcement_group()
    limit_waiting(cfg)
    return actor
