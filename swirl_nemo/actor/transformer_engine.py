"""Transformer Engine's layers, attention and norms, in the places of local ones. Imported where conf/kernels asks for
them: it needs Transformer Engine 2.

Megatron has classes for most of this (megatron.core.extensions.transformer_engine). What differs is what weight sets
and checkpoints see. No GPU has run it: it was read beside the sources of release 2.0 and tested with a stand-in for
them (tests/stand_ins/).
"""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
import transformer_engine.pytorch as te
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDelayedScaling,
    TERowParallelLinear,
    _get_extra_te_kwargs,
)
from torch import Tensor
from torch.nn import Module
from transformer_engine.common.recipe import Format

from . import attention
from .packing import Packing

FORWARD, BACKWARD = "scaling_fwd", "scaling_bwd"
# Of a layer's inputs, weights and outputs, and of its gradients of outputs and inputs, a linear layer casts these
CAST = {FORWARD: 2, BACKWARD: 1}


class Fp8State:
    """The scales and amax histories of a linear layer, as emulated FP8 keeps them: a tensor [1 + L, 3].

    Transformer Engine's own extra state is a pickle, which a checkpoint from elsewhere would have run; it is empty
    after a pass without FP8, such as scoring; and an empty one, put into a layer, leaves the scales that another set of
    weights had there. Scales are written in place: Transformer Engine's tables for all layers point to them.
    """

    def __init__(self, *args, config, **options):
        super().__init__(*args, config=config, **options)
        if config.fp8:
            self.fp8_meta["num_gemms"] = 1
            self.init_fp8_meta_tensors(TEDelayedScaling(config=config, fp8_format=Format.HYBRID))

    def forward(self, x: Tensor):
        # A cast weight is kept for a step's micro-batches. Scoring has no steps: sets of weights change between its
        # batches, and what it casts lacks the transpose that a backward pass needs.
        self.disable_parameter_transpose_cache = not self.training
        return super().forward(x)

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        """Scales [k] and histories [L, k] of the forward and of the backward pass, as views."""
        metas = [(self.fp8_meta[key], count) for key, count in CAST.items() if key in self.fp8_meta]
        return [(meta.scale[:count], meta.amax_history[:, :count]) for meta, count in metas]

    def get_extra_state(self) -> Tensor | None:
        parts = self._parts()
        return torch.cat([torch.cat([scale[None], history]) for scale, history in parts], 1).cpu() if parts else None

    def set_extra_state(self, state) -> None:
        """What `get_extra_state` gave, its history cut or filled; else, as from a pass without FP8: as at first."""
        column = 0
        for scale, history in self._parts():
            scale.fill_(1)
            history.zero_()
            if isinstance(state, Tensor) and state.dim() == 2:
                part = state[:, column : column + len(scale)]
                past = part[1:][: len(history)]
                scale.copy_(part[0])
                history[: len(past)] = past
            column += len(scale)


class ColumnLinear(Fp8State, TEColumnParallelLinear):
    pass


class RowLinear(Fp8State, TERowParallelLinear):
    pass


@contextmanager
def unrecorded(modules: Iterable[Module]):
    """Layers forget the amaxes of the passes within, which must be without gradients: scoring moves no scale."""
    histories = [history for module in modules if isinstance(module, Fp8State) for _, history in module._parts()]
    before = [history[0].clone() for history in histories]
    yield
    for history, row in zip(histories, before, strict=True):
        history[0] = row


class _Stateless:
    """Without the extra state that only other uses of FP8 would fill, and that checkpoints of local layers lack."""

    get_extra_state, set_extra_state = Module.get_extra_state, Module.set_extra_state


class _RMSNorm(_Stateless, te.RMSNorm):
    pass


class _LayerNorm(_Stateless, te.LayerNorm):
    pass


class Norm:
    """Megatron's TENorm, stateless."""

    def __new__(cls, config, hidden_size, eps):
        kind = _RMSNorm if config.normalization == "RMSNorm" else _LayerNorm
        return kind(
            hidden_size,
            eps=eps,
            sequence_parallel=config.sequence_parallel,
            zero_centered_gamma=config.layernorm_zero_centered_gamma,
            **_get_extra_te_kwargs(config),
        )


class _Kernel(_Stateless, te.DotProductAttention):
    pass


class CoreAttention(attention.CoreAttention):
    """By kernels for sequences of different lengths (format thd): no padding, no mask in memory.

    A prefix is a causal sequence. A row's queries are its own tokens, its keys the prefix's and its own: counted from
    the end, the last query sees all keys, the one before it all but the last, and so on: a causal mask that is aligned
    at the bottom right.
    """

    def __init__(self, config, layer_number, *args, **options):
        super().__init__(config, layer_number, *args, **options)
        ranks = config.tensor_model_parallel_size
        self.kernel = _Kernel(
            config.num_attention_heads // ranks,
            config.kv_channels,
            num_gqa_groups=config.num_query_groups // ranks,
            qkv_format="thd",
            attn_mask_type="padding_causal",
            layer_number=layer_number,
            attention_type="cross",  # keys are other tokens than queries
            softmax_scale=self.scale,
        )

    def mix(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
        runs, (_, longest), (_, own_longest) = packing.runs, packing.prefix_shape, packing.own_shape
        last = runs.num_prefix + runs.num_own
        parts = []
        if runs.num_prefix:
            first = (part[: runs.num_prefix] for part in (query, key, value))
            starts = runs.prefix_starts
            parts.append(self._run(*first, starts, starts, longest, longest, "padding_causal"))
        if runs.num_own:
            keys, values = (part.index_select(0, runs.seen) for part in (key, value))
            starts = runs.own_starts, runs.seen_starts
            widths = own_longest, longest + own_longest
            own = self._run(
                query[runs.num_prefix : last], keys, values, *starts, *widths, "padding_causal_bottom_right"
            )
            parts.append(own)
        padding = query.new_zeros(len(query) - last, *query.shape[1:])
        return torch.cat([*parts, padding])

    def _run(self, query, key, value, starts, seen_starts, longest, seen_longest, mask: str) -> Tensor:
        mixed = self.kernel(
            query,
            key,
            value,
            cu_seqlens_q=starts,
            cu_seqlens_kv=seen_starts,
            max_seqlen_q=longest,
            max_seqlen_kv=seen_longest,
            attn_mask_type=mask,
        )
        return mixed.view(query.shape)
