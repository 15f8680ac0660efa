"""Megatron's GPTModel with the head where SWIRL needs it."""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from ..fp8 import BACKWARD, FORWARD, DelayedScaling
from . import context
from .logprobs import Scored, log_probs
from .packing import Packing


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
