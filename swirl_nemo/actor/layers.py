"""A stage's layers: Megatron's, with the kernels that conf/kernels names.

Whatever the kernels, parameters have the same names, shapes and tags: checkpoints, weight sets and the rollout's
decoder cannot tell them apart.
"""

from dataclasses import dataclass

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from ..config import Attention, Layers, Norms
from ..fp8 import DelayedScaling
from .attention import CoreAttention, RotatedSelfAttention
from .emulated_fp8 import EmulatedColumn, EmulatedRow
from .norms import Norm

Module = type | ModuleSpec


@dataclass(frozen=True)
class Parts:
    """What a layer is made of."""

    column: Module
    row: Module
    attention: Module
    norm: Module


def block_spec(config, kernels, scaling: DelayedScaling | None, edge_layers: int) -> TransformerBlockSubmodules:
    """The layers of this stage, with `kernels` as in config.KernelsConfig, by name. The model's first and last
    `edge_layers` stay out of FP8, be it Transformer Engine's or, with `scaling`, emulated."""
    inner = _parts(kernels, scaling)
    # Megatron puts Transformer Engine's fp8_autocast around all layers of a stage: local ones do not heed it
    edge = Parts(ColumnParallelLinear, RowParallelLinear, inner.attention, inner.norm)
    first, count = get_transformer_layer_offset(config), get_num_layers_to_build(config)
    layers = []
    for number in range(first, first + count):
        parts = inner if edge_layers <= number < config.num_layers - edge_layers else edge
        layers.append(_layer_spec(config, parts))
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=inner.norm)


def _parts(kernels, scaling: DelayedScaling | None) -> Parts:
    column, row, attention, norm = ColumnParallelLinear, RowParallelLinear, CoreAttention, Norm
    if scaling is not None:
        column, row = (ModuleSpec(kind, {"scaling": scaling}) for kind in (EmulatedColumn, EmulatedRow))
    if kernels.norms == Norms.apex.value:
        from .apex_norms import Norm as norm
    if Layers.transformer_engine.value in (kernels.layers, kernels.attention, kernels.norms):
        from . import transformer_engine as te

        if kernels.layers == Layers.transformer_engine.value:
            column, row = te.ColumnLinear, te.RowLinear
        if kernels.attention == Attention.transformer_engine.value:
            attention = te.CoreAttention
        if kernels.norms == Norms.transformer_engine.value:
            norm = te.Norm
    return Parts(column, row, attention, norm)


def _layer_spec(config, parts: Parts) -> ModuleSpec:
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=parts.norm,
            self_attention=ModuleSpec(
                module=RotatedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=parts.column,
                    core_attention=parts.attention,
                    linear_proj=parts.row,
                    q_layernorm=parts.norm if config.qk_layernorm else None,
                    k_layernorm=parts.norm if config.qk_layernorm else None,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=parts.norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=parts.column, linear_fc2=parts.row)),
            mlp_bda=get_bias_dropout_add,
            # Transformer Engine fuses each norm into the linear layer after it; checkpoints keep its names.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
