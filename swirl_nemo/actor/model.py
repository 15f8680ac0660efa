"""Megatron's GPTModel with the head where SWIRL needs it, and its layers.

Layers are Megatron's local ones with torch's fused attention and norms, which run on CPUs and GPUs alike.
"""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from ..fp8 import BACKWARD, FORWARD, DelayedScaling
from . import context
from .emulated_fp8 import EmulatedColumn, EmulatedRow
from .logprobs import Scored, log_probs
from .norms import Norm
from .packing import Packing


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of [..., d], halves paired; the sign of the turn is in `sin`."""
    return torch.addcmul(values * cos, values.roll(values.shape[-1] // 2, -1), sin)


class CoreAttention(MegatronModule):
    """softmax(q k^T / sqrt(d)) v by torch's fused kernel, grouped-query without repeating keys.

    Prefixes see themselves, and rows their prefix and themselves. The layout comes as Megatron's attention bias.
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, cp_comm_type=None, softmax_scale=None):
        super().__init__(config=config)
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(self, query, key, value, attention_mask, *, attention_bias: Packing, **_):
        """query [n, 1, heads, d], key and value [n, 1, groups, d], n this rank's share of the packing's tokens. Returns
        [n, 1, heads*d]."""
        packing = attention_bias
        query, key, value = (part.squeeze(1) for part in (query, key, value))
        if packing.shards > 1:
            query, key, value = (context.heads_for_tokens(part, packing.shards) for part in (query, key, value))
        (query, own_query), (key, own_key), (value, own_value) = (packing.grid(part) for part in (query, key, value))
        prefixes = self._attend(query, key, value, is_causal=True)
        key, value = (part.index_select(0, packing.prefix_of) for part in (key, value))
        keys, values = torch.cat([key, own_key], 1), torch.cat([value, own_value], 1)
        own = self._attend(own_query, keys, values, attn_mask=packing.visible)
        mixed = packing.pack(prefixes, own)
        if packing.shards > 1:
            mixed = context.tokens_for_heads(mixed, packing.shards)
        return mixed.flatten(1)[:, None]

    def _attend(self, query, key, value, **mask) -> Tensor:
        """[rows, s, heads, d] of [rows, S, groups, d]; either part of a packing may be empty."""
        if not query.numel():
            return query
        shared = query.size(2) != key.size(2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale, enable_gqa=shared, **mask)
        return mixed.transpose(1, 2)


class RotatedSelfAttention(SelfAttention):
    """Self-attention whose tokens have positions of their own, and which leaves prompts' keys in a cache."""

    def _adjust_key_value_for_inference(self, inference_params, query, key, value, rotary_pos_emb, *_):
        """Called by Megatron between projection and attention; `inference_params` is a rollout.cache.KvCache, and
        `rotary_pos_emb` twice what `rotation` gave."""
        cos, sin = rotary_pos_emb[0]
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if inference_params is not None:
            inference_params.keep(self.layer_number, key.squeeze(1), value.squeeze(1))
        return query, key, value, None, self.attn_mask_type


def block_spec(config, scaling: DelayedScaling | None, edge_layers: int) -> TransformerBlockSubmodules:
    """The layers of this stage; with `scaling`, all but the model's first and last `edge_layers` emulate FP8."""
    first, count = get_transformer_layer_offset(config), get_num_layers_to_build(config)
    layers = []
    for number in range(first, first + count):
        inner = edge_layers <= number < config.num_layers - edge_layers
        layers.append(_layer_spec(config, scaling if inner else None))
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm)


def _layer_spec(config, scaling: DelayedScaling | None) -> ModuleSpec:
    column, row = tensor_parallel.ColumnParallelLinear, tensor_parallel.RowParallelLinear
    if scaling is not None:
        column, row = (ModuleSpec(kind, {"scaling": scaling}) for kind in (EmulatedColumn, EmulatedRow))
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=RotatedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=CoreAttention,
                    linear_proj=row,
                    q_layernorm=Norm if config.qk_layernorm else None,
                    k_layernorm=Norm if config.qk_layernorm else None,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
            # Transformer Engine fuses each norm into the linear layer after it; checkpoints keep its names.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )


class ScoringGPTModel(GPTModel):
    """GPTModel that returns log-probabilities of given tokens, or next-token logits, never all logits of a sequence."""

    # Set by the actor that builds the model:
    logit_chunk: int  # positions whose full-vocabulary logits exist at a time
    token_multiple: int  # what the number of packed tokens must be divisible by, for generation too
    scaling: DelayedScaling | None  # of layers that emulate FP8

    def forward(self, packing: Packing, *, scored: Scored | None = None, last: Tensor | None = None, cache=None):
        """N packed tokens; hidden states of the stage before come by Megatron's set_input_tensor.

        Before the last pipeline stage: hidden states [n, 1, H] of this rank's tokens, for the next stage. On the last:
        with `scored`, log-probabilities and entropies [2, K] float32 of its K tokens; without, logits [P, V/tp] float32
        of the packed tokens `last` [P].
        """
        hidden = self._hidden_states(packing, cache)
        if not self.post_process:
            return hidden
        if scored is None:
            return (hidden[last, 0] @ self.head().t()).float()
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        weight = self.head()
        first_token = parallel_state.get_tensor_model_parallel_rank() * len(weight)
        group = parallel_state.get_tensor_model_parallel_group()

        def score(scored: Scored) -> Tensor:
            states = hidden.squeeze(1).index_select(0, scored.positions)
            return torch.stack(log_probs(states, weight, scored, self.logit_chunk, first_token, group))

        return score(scored) if packing.shards == 1 else context.divided_scores(score, scored, packing)

    def head(self) -> Tensor:
        """This rank's rows [V/tp, H] of the vocabulary's head."""
        return self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else (
            self.output_layer.weight
        )  # fmt: skip

    def rotation(self, positions: Tensor, longest: int) -> Tensor:
        """Cosines and signed sines [2, N, 1, 1, d] for `rotate`; positions [N] under `longest`."""
        angles = self.rotary_pos_emb(longest, packed_seq=True)[positions]  # else Megatron takes a part of them
        sign = torch.ones_like(angles[0])
        sign[..., : sign.shape[-1] // 2] = -1
        return torch.stack([angles.cos(), angles.sin() * sign]).to(self.config.params_dtype)

    def _hidden_states(self, packing: Packing, cache) -> Tensor:
        mine = context.share(packing)
        tokens, positions = packing.tokens[mine], packing.positions[mine]
        embedded = self.embedding(input_ids=tokens[None], position_ids=positions[None]) if self.pre_process else None
        trains = self.scaling is not None and torch.is_grad_enabled()
        if trains:  # scales move on when a pass has left the layers, as Transformer Engine's do, in the same group
            group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
            entered = embedded if self.pre_process else self.decoder.input_tensor
            entered.register_hook(lambda _: self.scaling.update(BACKWARD, group))
        hidden = self.decoder(
            hidden_states=embedded,
            attention_mask=None,
            attention_bias=packing,
            inference_params=cache,
            rotary_pos_emb=self.rotation(positions, packing.longest),
        )
        if trains:
            self.scaling.update(FORWARD, group)
        return hidden
