"""One token of each row through this pipeline stage: Megatron's weights without what training needs around them.

A decoded token is so little work that calls cost as much as products: through Megatron's modules a model of four layers
takes 354 operator calls. Families differ in norms, biases and activation, and those are the model's own.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from ..actor.attention import rotate
from ..actor.emulated_fp8 import EmulatedFp8
from ..products import packed_linear
from .cache import KvCache


class Decoder:
    """Made once for a rollout of at most `capacity` positions; weights are those that are live when it is made."""

    def __init__(self, model, capacity: int):
        self.model = get_attr_wrapped_model(model, "decoder", return_model_obj=True)
        self.config = self.model.config
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._split = parallel_state.get_tensor_model_parallel_world_size() > 1
        attention = self.model.decoder.layers[0].self_attention
        self.scale = attention.core_attention.scale
        self._queries = attention.num_attention_heads_per_partition // attention.num_query_groups_per_partition
        positions = torch.arange(capacity, device=torch.cuda.current_device())
        # [2, positions, 1, queries and key, d]: a key is scaled where it is rotated
        tables = self.model.rotation(positions, capacity).repeat(1, 1, 1, self._queries + 1, 1)
        tables[..., -1, :] *= self.scale
        self._cos, self._sin = tables
        self._layers = [_Products(layer, self._split) for layer in self.model.decoder.layers]
        self._head = packed_linear(self.model.head(), None) if self.model.post_process else None

    def __call__(
        self, tokens: Tensor, positions: Tensor, received: Tensor | None, cache: KvCache, hidden_from: Tensor | None
    ) -> Tensor:
        """tokens, positions [B]; received [1, B, H] from the stage before; hidden_from bool [P, 1, 1, 1, L], where
        prompts are padding, None where none is. Returns hidden states [1, B, H] for the next stage, or on the last
        logits [B, V/tp] float32."""
        model = self.model
        if model.pre_process:
            hidden = model.embedding(input_ids=tokens[:, None], position_ids=positions[:, None])[0]
        else:
            hidden = received[0].to(self.config.params_dtype)
        cos, sin = self._cos[positions], self._sin[positions]
        for layer, products in zip(model.decoder.layers, self._layers, strict=True):
            hidden = self._attention(layer, products, hidden, cos, sin, cache, hidden_from)
            hidden = self._mlp(layer, products, hidden)
        if not model.post_process:
            return hidden[None]
        return self._head(model.decoder.final_layernorm(hidden)).float()

    def _attention(self, layer, products, hidden: Tensor, cos, sin, cache: KvCache, hidden_from) -> Tensor:
        """[B, H] with the attention of [B, H] added."""
        attention, rows, queries = layer.self_attention, len(hidden), self._queries
        mixed = products.qkv(layer.input_layernorm(hidden))
        mixed = mixed.view(rows, attention.num_query_groups_per_partition, queries + 2, -1)  # queries, key, value
        turned = mixed[:, :, :-1]
        if attention.q_layernorm is not None:
            turned = torch.cat([attention.q_layernorm(mixed[:, :, :-2]), attention.k_layernorm(mixed[:, :, -2:-1])], 2)
        turned = rotate(turned, cos, sin)
        # Under the number that the prefill used: the layer's own counts the stages before, its attention's does not
        number = attention.layer_number
        own = cache.append(number, turned[:, :, -1], mixed[:, :, -1])
        context = _attend(turned[:, :, :-1], *cache.prompts[number], *own, cache.width, hidden_from)
        return self._added(products.proj, _bias(attention.linear_proj), context.view(rows, -1), hidden)

    def _mlp(self, layer, products, hidden: Tensor) -> Tensor:
        inner = products.fc1(layer.pre_mlp_layernorm(hidden))
        if self.config.gated_linear_unit:
            gate, inner = inner.chunk(2, -1)
            inner = self.config.activation_func(gate).mul_(inner)
        else:
            inner = self.config.activation_func(inner)
        return self._added(products.fc2, _bias(layer.mlp.linear_fc2), inner, hidden)

    def _added(self, product, bias: Tensor | None, part: Tensor, residual: Tensor) -> Tensor:
        """A row-parallel layer: the sum of all tensor-parallel ranks' products, the bias once, and the residual."""
        if not self._split:
            return product(part, residual)
        output = product(part)
        dist.all_reduce(output, group=self._group)
        return residual + (output if bias is None else output + bias)


def _attend(query: Tensor, shared_keys, shared_values, keys, values, width: int, hidden_from: Tensor | None) -> Tensor:
    """softmax over prompt and own keys of query [B, groups, q, d]: B rows are `width` for each of P prompts.

    shared_* [P, groups, L, d], *keys* scaled; keys, values [B, groups, t, d]. Returns [B, groups, q, d].
    """
    prompts, groups, columns, head = shared_keys.shape
    queries = query.shape[2]
    grouped = (prompts, width, groups, queries)

    def by_prompt(part: Tensor) -> Tensor:
        """[P, width, groups, q, n] as [P, groups, width*q, n]: one product for a prompt's rows."""
        return part.transpose(1, 2).reshape(prompts, groups, width * queries, -1)

    def by_row(part: Tensor) -> Tensor:
        return part.view(prompts, groups, width, queries, -1).transpose(1, 2)

    scores = by_row(by_prompt(query.view(*grouped, head)) @ shared_keys.transpose(2, 3))
    if hidden_from is not None:
        scores = scores.masked_fill(hidden_from, -torch.inf)
    own = (query @ keys.transpose(2, 3)).view(*grouped, -1)
    weights = torch.cat([scores, own], -1).softmax(-1, dtype=torch.float32).to(values.dtype)
    context = weights[..., columns:].flatten(0, 1) @ values
    context.view(*grouped, head).add_(by_row(by_prompt(weights[..., :columns]) @ shared_values))
    return context


class _Products:
    """A layer's four matrix products."""

    def __init__(self, layer, split: bool):
        attention, mlp = layer.self_attention, layer.mlp
        self.qkv, self.fc1 = (_packed(linear, _bias(linear)) for linear in (attention.linear_qkv, mlp.linear_fc1))
        # Of a sum over ranks the bias comes after
        self.proj, self.fc2 = (
            _packed(linear, None if split else _bias(linear)) for linear in (attention.linear_proj, mlp.linear_fc2)
        )


def _bias(linear) -> Tensor | None:
    """Transformer Engine's layers without one have an empty tensor in its place."""
    return None if linear.bias is None or not linear.bias.numel() else linear.bias


def _packed(linear, bias: Tensor | None):
    if isinstance(linear, EmulatedFp8) and linear.scaling.enabled:
        return linear.scaling.packed(linear.place, linear.weight, bias)
    return packed_linear(linear.weight, bias)
