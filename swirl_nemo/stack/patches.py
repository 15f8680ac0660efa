"""The table of patches that let the NeMo stack run on CPUs with gloo. One row a name, with its reason and version.

Nothing here changes what is computed: each row replaces a device, a missing import, a signature or a slow kernel. A row
whose target is gone is an error, because an unpatched name would fail later and elsewhere.
"""

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .. import versions
from ..products import Linear
from . import cpu_torch
from .adam import FusedAdam

NEMO, MCORE, TORCH = map(versions.verified, ("nemo-toolkit", "megatron-core", "torch"))


class StackError(ValueError):
    """The installed stack is not the one that the patches were written for."""


@dataclass(frozen=True)
class Patch:
    """Replace `target` ("module:name.attribute") by `make(original)`; `new` names are added where none was."""

    target: str
    version: str
    reason: str
    make: Callable[[Any], Any]
    new: bool = False


def _constant(value):
    return lambda original: value


def _fresh(function):
    """A function object of its own a row: torch._dynamo refuses one object under two names of torch."""

    def make(original):
        return lambda *args, **kwargs: function(*args, **kwargs)

    return make


def _cuda(name: str, function, reason: str) -> Patch:
    return Patch(f"torch:cuda.{name}", TORCH, reason, _fresh(function))


def _torch_in(module: str, version: str = MCORE) -> Patch:
    return Patch(f"{module}:torch", version, "device='cuda' is hard-coded in its factory calls", _constant(CPU_TORCH))


def _tensor_type(original):
    """Answer torch.cuda.* to Megatron's optimizers, which know no other type name."""

    def type_(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        asked_by = sys._getframe(1).f_globals["__name__"]
        if isinstance(result, str) and asked_by.startswith("megatron.core.optimizer"):
            return f"torch.cuda.{result.rpartition('.')[2]}"  # a dry run's are torch.meta.*
        return result

    return type_


def _write_item(original):
    """Megatron 0.11 calls torch's _write_item(stream, data, write_item, storage_key); torch 2.13 wants two more."""
    from torch.distributed.checkpoint import filesystem

    def write_item(stream, data, item, storage_key):
        transforms = filesystem._StorageWriterTransforms()
        return filesystem._write_item(
            transforms, stream, data, item, storage_key, filesystem.SerializationFormat.TORCH_SAVE
        )

    return write_item


def _linear(
    input, weight, bias, gradient_accumulation_fusion, allreduce_dgrad, sequence_parallel, *_buffers, **_options
):
    """Megatron's layer with its communication before and behind the products: gloo has nothing to overlap."""
    from megatron.core.tensor_parallel import mappings

    assert not gradient_accumulation_fusion, "needs Apex's CUDA kernels"
    if sequence_parallel:
        input = mappings.gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True)
    elif allreduce_dgrad:
        input = mappings.copy_to_tensor_model_parallel_region(input)
    output = Linear.apply(input, weight)
    return output if bias is None else output + bias


def _alone(original):
    """Of a group of one, whose part is the whole: Megatron gives the same memory twice, and gloo would copy it."""

    def collective(output, input, *args, group=None, **options):
        if output.data_ptr() == input.data_ptr() and torch.distributed.get_world_size(group) == 1:
            return None
        return original(output, input, *args, group=group, **options)

    return collective


def _listify(original):
    return lambda model: model if isinstance(model, list) else [model]


def _defaults(original):
    from megatron.core.tensor_parallel import layers

    return layers.set_defaults_if_not_set_tensor_model_parallel_attributes


def _distributed_optimizer(original):
    from nemo.core.optim.mcore_optim import McoreDistributedOptimizer

    return McoreDistributedOptimizer


def _apex_optimizer(original):
    return type("MegatronDistributedFusedAdam", (), {})


CPU_TORCH = cpu_torch.CpuTorch()
OVERRIDES = "nemo.collections.nlp.parts.nlp_overrides"
BUILD = "nemo.collections.nlp.modules.common.megatron.build_model"
UTILS = "nemo.collections.nlp.modules.common.megatron.utils"
BASE = "nemo.collections.nlp.models.language_modeling.megatron_base_model"
HAS_NO_DEVICE = "called without asking whether there is a device"

# The torch rows come first: nemo and megatron read some of these names while they are imported.
TABLE = (
    _cuda("current_device", cpu_torch.current_device, HAS_NO_DEVICE),
    _cuda("set_device", cpu_torch.nothing, HAS_NO_DEVICE),
    _cuda("synchronize", cpu_torch.nothing, HAS_NO_DEVICE),
    _cuda("empty_cache", cpu_torch.nothing, HAS_NO_DEVICE),
    Patch("torch:cuda.Stream", TORCH, HAS_NO_DEVICE, _constant(cpu_torch.Stream)),
    _cuda("current_stream", cpu_torch.current_stream, HAS_NO_DEVICE),
    _cuda("default_stream", cpu_torch.current_stream, HAS_NO_DEVICE),
    _cuda("stream", cpu_torch.stream_context, HAS_NO_DEVICE),
    _cuda("manual_seed", torch.manual_seed, "Megatron seeds the device's generator"),
    _cuda("get_rng_state", cpu_torch.get_rng_state, "Megatron forks the device's generator"),
    _cuda("set_rng_state", cpu_torch.set_rng_state, "Megatron forks the device's generator"),
    _cuda("LongTensor", cpu_torch.typed_constructor(torch.long), "NeMo-Aligner builds tensors on the device by type"),
    Patch("torch:Tensor.cuda", TORCH, HAS_NO_DEVICE, _fresh(cpu_torch.same)),
    Patch("torch:nn.Module.cuda", TORCH, HAS_NO_DEVICE, _fresh(cpu_torch.same)),
    Patch("torch:Tensor.type", TORCH, "Megatron's optimizers compare type names with torch.cuda.*", _tensor_type),
    Patch("megatron.core.tensor_parallel.random:_get_cuda_rng_state", MCORE, "CUDA generator states",
          _constant(cpu_torch.get_rng_state)),
    Patch("megatron.core.tensor_parallel.random:_set_cuda_rng_state", MCORE, "CUDA generator states",
          _constant(cpu_torch.set_rng_state)),
    Patch("megatron.core.tensor_parallel.layers:linear_with_grad_accumulation_and_async_allreduce", MCORE,
          "products by oneDNN instead of MKL", _constant(_linear)),
    *(Patch(f"megatron.core.distributed.param_and_grad_buffer:dist_{name}_func", MCORE,
            "gloo copies all weights and gradients where there is one process", _alone)
      for name in ("all_gather", "reduce_scatter")),
    _torch_in("megatron.core.optimizer.clip_grads"),
    _torch_in("megatron.core.optimizer.optimizer"),
    _torch_in("megatron.core.utils"),
    _torch_in("megatron.core.pipeline_parallel.schedules"),
    _torch_in("megatron.core.dist_checkpointing.exchange_utils"),
    Patch("megatron.core.optimizer:Adam", MCORE, "torch's Adam keeps a step per parameter", _constant(FusedAdam)),
    Patch("megatron.core.optimizer.distrib_optimizer:Adam", MCORE, "the same Adam", _constant(FusedAdam)),
    Patch("megatron.core.optimizer.distrib_optimizer:HAVE_APEX_OR_TE", MCORE, "FusedAdam keeps step as theirs do",
          _constant(True)),
    Patch("megatron.core.dist_checkpointing.strategies.filesystem_async:_write_item", MCORE,
          "torch changed its signature", _write_item),
    Patch(f"{OVERRIDES}:HAVE_APEX", NEMO, "its strategy refuses to start without Apex", _constant(True)),
    Patch(f"{OVERRIDES}:McoreDistributedOptimizer", NEMO, "imported only beside Apex",
          _distributed_optimizer, new=True),
    Patch(f"{OVERRIDES}:MegatronDistributedFusedAdam", NEMO, "named in isinstance checks", _apex_optimizer, new=True),
    Patch(f"{BUILD}:set_defaults_if_not_set_tensor_model_parallel_attributes", NEMO, "imported from Apex only",
          _defaults, new=True),
    Patch(f"{UTILS}:listify_model", NEMO, "imported from Apex only", _listify, new=True),
    *(Patch(f"{UTILS}:{name}", NEMO, "Apex's norms, in an isinstance check", _constant(torch.nn.LayerNorm), new=True)
      for name in ("FusedLayerNorm", "FastLayerNorm", "MixedFusedRMSNorm")),
    Patch("nemo.collections.nlp.models.nlp_model:get_megatron_pretrained_bert_models", NEMO,
          "its import chain needs Transformer Engine", _constant(list)),
    Patch(f"{BASE}:MegatronBaseModel._enable_nvidia_optimizations", NEMO, "expects an NGC environment variable",
          _constant(cpu_torch.nothing)),
    Patch("nemo.core.classes.modelPT:ModelPT.cuda", NEMO, HAS_NO_DEVICE, _fresh(cpu_torch.same)),
)  # fmt: skip


def _replace_tensorrt_llm() -> None:
    """nemo_aligner imports tensorrt_llm at module level; generation here is our own (rollout/)."""

    class GPTGenerateTRTLLM:
        def __init__(self, *args, **kwargs):
            raise StackError("TensorRT-LLM generation is not available on CPU: leave model.ppo.trt_llm.enable off")

    module = types.ModuleType("nemo_aligner.utils.trt_llm")
    module.GPTGenerateTRTLLM = GPTGenerateTRTLLM
    sys.modules[module.__name__] = module


def apply(patch: Patch) -> None:
    """Put one row in force. Raises StackError, naming row and reason, where its target is gone."""
    module_name, _, path = patch.target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    if not patch.new and not hasattr(owner, name):
        raise StackError(f"{patch.target} is gone: the patch was written for {patch.version} ({patch.reason})")
    setattr(owner, name, patch.make(getattr(owner, name, None)))


_applied = False


def apply_all() -> None:
    """Apply the table once per process."""
    global _applied
    if _applied:
        return
    for package in versions.STACK:
        if fault := versions.fault(package, gpu=False):
            raise StackError(f"{fault}: without a GPU this project runs on what requirements/ pins")
    _replace_tensorrt_llm()
    for patch in TABLE:
        apply(patch)
    _applied = True
