"""Megatron's GPTModel with the head where SWIRL needs it, and its layers.

Layers are Megatron's local ones with torch's fused attention and norms, which run on CPUs and GPUs alike.
"""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from .logprobs import Scored, log_probs


class OffsetRMSNorm(torch.nn.RMSNorm):
    """Gemma's: the weight is an offset from one, applied in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).type_as(x)


class Norm:
    """An RMSNorm or LayerNorm of torch, tagged so that Megatron reduces its gradients over sequence shards."""

    def __new__(cls, config, hidden_size, eps):
        if config.normalization == "RMSNorm":
            kind = OffsetRMSNorm if config.layernorm_zero_centered_gamma else torch.nn.RMSNorm
        else:
            kind = torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm


class CoreAttention(MegatronModule):
    """softmax(q k^T / sqrt(d)) v by torch's fused kernel, grouped-query without repeating keys."""

    def __init__(self, config, layer_number, attn_mask_type, attention_type, cp_comm_type=None, softmax_scale=None):
        super().__init__(config=config)
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale

    def forward(self, query, key, value, attention_mask, **_):
        """query [s, B, heads, d], key and value [S, B, groups, d]; attention_mask [B or 1, 1, s, S], true where hidden.

        None stands for the causal mask where s = S, and for no mask where one token is decoded. Returns [s, B,
        heads*d].
        """
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None and query.size(2) > 1,
            scale=self.scale,
            enable_gqa=query.size(1) != key.size(1),
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class CachedSelfAttention(SelfAttention):
    """Self-attention whose cache holds rotated keys, so that a decoded token costs one rotation and one copy."""

    def _adjust_key_value_for_inference(self, inference_params, query, key, value, rotary_pos_emb, *_):
        """Called by Megatron between projection and attention; `inference_params` is a rollout.cache.KvCache."""
        if inference_params is None:
            return query, key, value, rotary_pos_emb, self.attn_mask_type
        start = inference_params.sequence_len_offset
        rotation = rotary_pos_emb[0][start : start + len(query)]
        query = apply_rotary_pos_emb(query, rotation, config=self.config)
        key = apply_rotary_pos_emb(key, rotation, config=self.config)
        key, value = (t.permute(2, 0, 1, 3) for t in inference_params.append(self.layer_number, key, value))
        return query, key, value, None, AttnMaskType.no_mask


def block_spec(config) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage."""
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=CachedSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=tensor_parallel.ColumnParallelLinear,
                    core_attention=CoreAttention,
                    linear_proj=tensor_parallel.RowParallelLinear,
                    q_layernorm=Norm if config.qk_layernorm else None,
                    k_layernorm=Norm if config.qk_layernorm else None,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=tensor_parallel.ColumnParallelLinear, linear_fc2=tensor_parallel.RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
            # Transformer Engine fuses each norm into the linear layer after it; checkpoints keep its names.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=Norm)


class ScoringGPTModel(GPTModel):
    """GPTModel that returns log-probabilities of given tokens, or next-token logits, never all logits of a sequence."""

    logit_chunk: int  # positions whose full-vocabulary logits exist at a time; set by the actor that builds the model

    def forward(self, input_ids, position_ids, attention_mask=None, *, scored: Scored | None = None, cache=None):
        """input_ids, position_ids [B, T]; attention_mask as in CoreAttention.

        Before the last pipeline stage: hidden states [T, B, H] for the next stage. On the last: with `scored`,
        log-probabilities and entropies [2, N] float32; without, logits of the last position [B, V/tp] float32.
        """
        hidden = self._hidden_states(input_ids, position_ids, attention_mask, cache)
        if not self.post_process:
            return hidden
        if scored is None:
            return (hidden[-1] @ self.head().t()).float()
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        weight = self.head()
        first_token = parallel_state.get_tensor_model_parallel_rank() * len(weight)
        group = parallel_state.get_tensor_model_parallel_group()
        states = hidden[scored.columns, scored.rows]
        return torch.stack(log_probs(states, weight, scored, self.logit_chunk, first_token, group))

    def head(self) -> Tensor:
        """This rank's rows [V/tp, H] of the vocabulary's head."""
        return self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else (
            self.output_layer.weight
        )  # fmt: skip

    def _hidden_states(self, input_ids, position_ids, attention_mask, cache) -> Tensor:
        embedded = self.embedding(input_ids=input_ids, position_ids=position_ids) if self.pre_process else None
        length = self.rotary_pos_emb.get_rotary_seq_len(cache, self.decoder, embedded, self.config, None)
        return self.decoder(
            hidden_states=embedded,
            attention_mask=attention_mask,
            inference_params=cache,
            rotary_pos_emb=self.rotary_pos_emb(length),
        )
