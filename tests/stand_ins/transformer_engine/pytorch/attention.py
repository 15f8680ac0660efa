"""Attention on sequences of different lengths that lie one behind the other, one after the other."""

import torch

from .module import TransformerEngineBaseModule


class DotProductAttention(TransformerEngineBaseModule):
    def __init__(
        self,
        num_attention_heads,
        kv_channels,
        num_gqa_groups=None,
        attention_dropout=0.0,
        qkv_format="sbhd",
        attn_mask_type="causal",
        window_size=None,
        sequence_parallel=False,
        tp_size=1,
        get_rng_state_tracker=None,
        tp_group=None,
        layer_number=None,
        attention_type="self",
        softmax_scale=None,
    ):
        super().__init__()
        assert attention_type in ("self", "cross") and tp_size == 1 and attention_dropout == 0
        self.heads, self.channels, self.groups = num_attention_heads, kv_channels, num_gqa_groups
        self.qkv_format, self.attn_mask_type, self.softmax_scale = qkv_format, attn_mask_type, softmax_scale

    def forward(
        self,
        query_layer,
        key_layer,
        value_layer,
        attention_mask=None,
        qkv_format=None,
        cu_seqlens_q=None,
        cu_seqlens_kv=None,
        cu_seqlens_q_padded=None,
        cu_seqlens_kv_padded=None,
        max_seqlen_q=None,
        max_seqlen_kv=None,
        attn_mask_type=None,
    ):
        """query [T, heads, d], key and value [U, groups, d]; returns [T, heads * d]."""
        self.prepare_forward()
        mask = attn_mask_type or self.attn_mask_type
        assert (qkv_format or self.qkv_format) == "thd" and mask.startswith("padding_causal")
        assert query_layer.shape[1:] == (self.heads, self.channels) and query_layer.is_contiguous()
        assert key_layer.shape == value_layer.shape and key_layer.shape[1:] == (self.groups, self.channels)
        assert cu_seqlens_q.dtype is cu_seqlens_kv.dtype is torch.int32 and len(cu_seqlens_q) == len(cu_seqlens_kv)
        assert cu_seqlens_q.diff().max() <= max_seqlen_q and cu_seqlens_kv.diff().max() <= max_seqlen_kv
        # flash-attn: with another alignment than the bottom right lengths must be the same
        assert mask == "padding_causal_bottom_right" or torch.equal(cu_seqlens_q, cu_seqlens_kv)
        parts = []
        bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_kv[:-1], cu_seqlens_kv[1:], strict=True)
        for first, last, first_key, last_key in (map(int, bound) for bound in bounds):
            query, key, value = query_layer[first:last], key_layer[first_key:last_key], value_layer[first_key:last_key]
            key, value = (part.repeat_interleave(self.heads // self.groups, 1) for part in (key, value))
            scores = torch.einsum("qhd,khd->hqk", query, key) * self.softmax_scale
            seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            parts.append(torch.einsum("hqk,khd->qhd", weights, value))
        return torch.cat(parts).flatten(1)
