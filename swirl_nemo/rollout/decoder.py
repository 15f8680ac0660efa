"""One token of each row through this pipeline stage: Megatron's weights without what training needs around them.

A decoded token is so little work that calls cost as much as products: through Megatron's modules a model of four layers
takes 354 operator calls, here 258. Families differ in norms, biases and activation, and those are the model's own.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from .cache import KvCache


class Decoder:
    """Made once for a rollout, of at most `capacity` positions; reads the live weights."""

    def __init__(self, model, capacity: int):
        self.model = get_attr_wrapped_model(model, "decoder", return_model_obj=True)
        self.config = self.model.config
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._split = parallel_state.get_tensor_model_parallel_world_size() > 1
        angles = self.model.rotary_pos_emb(capacity)[:, 0, 0]  # [positions, d], each angle in both halves
        half = angles.shape[-1] // 2
        sign = torch.ones_like(angles[0])
        sign[:half] = -1
        dtype = self.config.params_dtype
        self._cos, self._sin = angles.cos().to(dtype), (angles.sin() * sign).to(dtype)
        self._half = half

    def __call__(self, tokens: Tensor, received: Tensor | None, cache: KvCache, visible: Tensor | None) -> Tensor:
        """tokens [B], received [1, B, H] from the stage before; visible [B, positions so far and this one], None where
        all are. Returns hidden states [1, B, H] for the next stage, or logits [B, V/tp] float32 on the last."""
        model = self.model
        if model.pre_process:
            positions = tokens.new_full((len(tokens), 1), cache.sequence_len_offset)
            hidden = model.embedding(input_ids=tokens[:, None], position_ids=positions)[0]
        else:
            hidden = received[0].to(self.config.params_dtype)
        hidden_from = None if visible is None else ~visible[:, None, None]
        for layer in model.decoder.layers:
            hidden = hidden + self._attention(layer, hidden, cache, hidden_from)
            hidden = hidden + self._mlp(layer, hidden)
        if not model.post_process:
            return hidden[None]
        return (model.decoder.final_layernorm(hidden) @ model.head().t()).float()

    def _attention(self, layer, hidden: Tensor, cache: KvCache, hidden_from: Tensor | None) -> Tensor:
        """[B, H] to [B, H]. A group's queries see the same keys, which need no repeating."""
        attention, rows = layer.self_attention, len(hidden)
        projection, groups = attention.linear_qkv, attention.num_query_groups_per_partition
        mixed = F.linear(layer.input_layernorm(hidden), projection.weight, projection.bias)
        mixed = mixed.view(rows, groups, -1, attention.hidden_size_per_attention_head)  # queries, key, value
        if attention.q_layernorm is not None:
            normed = attention.q_layernorm(mixed[:, :, :-2]), attention.k_layernorm(mixed[:, :, -2:-1])
            mixed = torch.cat([*normed, mixed[:, :, -1:]], 2)
        at, turned = cache.sequence_len_offset, mixed[:, :, :-1]
        turned = torch.addcmul(turned * self._cos[at], turned.roll(self._half, -1), self._sin[at])
        # Under the number that the prefill used: the layer's own counts the stages before, its attention's does not
        keys, values = cache.append(attention.layer_number, turned[None, :, :, -1], mixed[None, :, :, -1])
        # Of one query a group's product is too thin for torch's fused kernel, which takes twice as long on CPUs
        scores = (turned[:, :, :-1] * attention.core_attention.scale) @ keys.transpose(2, 3)
        if hidden_from is not None:
            scores = scores.masked_fill(hidden_from, -torch.inf)
        context = scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
        return self._whole(attention.linear_proj, context.view(rows, -1))

    def _mlp(self, layer, hidden: Tensor) -> Tensor:
        up, down = layer.mlp.linear_fc1, layer.mlp.linear_fc2
        inner = F.linear(layer.pre_mlp_layernorm(hidden), up.weight, up.bias)
        if self.config.gated_linear_unit:
            gate, inner = inner.chunk(2, -1)
            return self._whole(down, self.config.activation_func(gate) * inner)
        return self._whole(down, self.config.activation_func(inner))

    def _whole(self, linear, part: Tensor) -> Tensor:
        """A row-parallel layer: the sum of all tensor-parallel ranks' products, and the bias once."""
        if not self._split:
            return F.linear(part, linear.weight, linear.bias)
        output = F.linear(part, linear.weight)
        dist.all_reduce(output, group=self._group)
        return output if linear.bias is None else output + linear.bias
