"""Attention between the tokens of a packing: prefixes see themselves, and rows their prefix and themselves."""

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from . import context
from .packing import Packing


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of [..., d], halves paired; the sign of the turn is in `sin`."""
    return torch.addcmul(values * cos, values.roll(values.shape[-1] // 2, -1), sin)


class CoreAttention(MegatronModule):
    """softmax(q k^T / sqrt(d)) v by torch's fused kernel, grouped-query without repeating keys. The layout comes as
    Megatron's attention bias."""

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
        mixed = self.mix(query, key, value, packing)
        if packing.shards > 1:
            mixed = context.tokens_for_heads(mixed, packing.shards)
        return mixed.flatten(1)[:, None]

    def mix(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
        """[N, heads, d] of query [N, heads, d], key and value [N, groups, d]."""
        (query, own_query), (key, own_key), (value, own_value) = (packing.grid(part) for part in (query, key, value))
        prefixes = self._attend(query, key, value, is_causal=True)
        key, value = (part.index_select(0, packing.prefix_of) for part in (key, value))
        keys, values = torch.cat([key, own_key], 1), torch.cat([value, own_value], 1)
        own = self._attend(own_query, keys, values, attn_mask=packing.visible)
        return packing.pack(prefixes, own)

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
