"""Some of a rollout's prompts on their way through the pipeline, token by token.

P prompts and W rows of each that are still in the batch, R = P*W; B rows in the beginning.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import p2p_communication as p2p
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from ..actor.packing import Packing, pack_prefixes
from ..data.batch import padded
from .cache import KvCache
from .decoder import Decoder
from .pipeline import announcement_group
from .result import Rollout
from .sampling import Distribution, pack, sample

_WORTH = 0.75  # rows that have ended leave when no more than this part of the batch is left: moving the rest costs too


class Wave:
    """Made, its prompts are prefilled; each `advance` adds a token to its rows until all have ended."""

    def __init__(
        self,
        model,
        decoder: Decoder,
        prompts: list[list[int]],
        distribution: Distribution,
        group: int,
        max_length: int,
        uniforms: Tensor | None,
    ):
        self._model, self._decoder, self._distribution, self._uniforms = model, decoder, distribution, uniforms
        device, rows = torch.cuda.current_device(), len(prompts) * group
        self.tokens = torch.full((rows, max_length), distribution.end, device=device)
        self.logprobs = torch.zeros(rows, max_length, device=device)
        bits = (rows, max_length, len(distribution.allowed) // 8)
        self.support = torch.zeros(bits, dtype=torch.uint8, device=device) if distribution.truncates else None
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._rows = torch.arange(rows, device=device)  # of those in the batch
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._next = lengths.repeat_interleave(group)  # position of each row's next token
        self._step, self._done = 0, False
        multiple = get_attr_wrapped_model(model, "token_multiple")
        packing = pack_prefixes(padded(prompts).to(device), lengths, multiple)
        self._cache = KvCache(packing, group, max_length, decoder.scale)
        padding = torch.arange(packing.prefix_shape[1], device=device) >= lengths[:, None]
        self._hidden_from = None if packing.slots is None else padding[:, None, None, None]
        self._chosen = self._prefill(packing, lengths.cumsum(0) - 1, group)

    def advance(self) -> None:
        """Write down the tokens that were chosen, and take them through this stage."""
        if self._done:
            return
        chosen, logprobs, kept = self._receive()
        end, at = self._distribution.end, (self._rows, self._step)
        self.tokens[at] = chosen = chosen.masked_fill(self._ended, end)
        self.logprobs[at] = logprobs.masked_fill(self._ended, 0)
        if kept is not None:
            self.support[at] = kept
        self._ended = self._ended | (chosen == end)
        self._step += 1
        left = (~self._ended).view(-1, self._cache.width).sum(1).tolist()
        self._done = self._step == self.tokens.shape[1] or not any(left)
        if not self._done:
            self._drop_ended(left)
            self._chosen = self._decode(self.tokens[self._rows, self._step - 1])

    def result(self) -> Rollout:
        """The wave's rows, columns as many as the longest has."""
        ends = self.tokens == self._distribution.end
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, self.tokens.shape[1]).tolist()
        completions = [row[:length] for row, length in zip(self.tokens.tolist(), lengths, strict=True)]
        return Rollout(completions, self.logprobs, self.support)

    def _drop_ended(self, left: list[int]) -> None:
        """Prompts without a row left leave, and as many rows of each as all of them can spare."""
        prompts = [number for number, count in enumerate(left) if count]
        width = max(left)
        if len(prompts) * width > _WORTH * len(self._rows):
            return
        order = self._ended.view(len(left), -1).int().argsort(dim=1, stable=True)  # rows that go on come first
        order = order + torch.arange(len(left), device=order.device)[:, None] * self._cache.width
        kept = torch.tensor(prompts, device=order.device)
        rows = order[kept, :width].flatten()
        self._cache.select(kept, rows)
        self._rows, self._ended, self._next = self._rows[rows], self._ended[rows], self._next[rows]
        self._hidden_from = None if self._hidden_from is None else self._hidden_from[kept]

    # through this stage

    def _prefill(self, packing: Packing, last: Tensor, group: int):
        config = self._model.config
        set_input = get_attr_wrapped_model(self._model, "set_input_tensor")
        set_input(p2p.recv_forward((len(packing.tokens), 1, config.hidden_size), config))
        output = self._model(packing, last=last, cache=self._cache)
        p2p.send_forward(output, config)
        set_input(None)
        if not parallel_state.is_pipeline_last_stage():
            return None
        return self._choose(output.repeat_interleave(group, 0))

    def _decode(self, tokens: Tensor):
        config = self._decoder.config
        received = p2p.recv_forward((1, len(tokens), config.hidden_size), config)
        output = self._decoder(tokens, self._next, received, self._cache, self._hidden_from)
        p2p.send_forward(output, config)
        self._cache.filled += 1
        self._next = self._next + 1
        return self._choose(output) if parallel_state.is_pipeline_last_stage() else None

    # from the last stage to the others

    def _choose(self, logits: Tensor):
        """Samples [R] from the last stage's logits [R, V/tp], and tells the other stages without waiting for them."""
        steps = torch.full((len(logits),), self._step, device=logits.device)
        weights = self._distribution.log_weights(_whole_vocabulary(logits), steps)
        keep = self._distribution.truncation(weights)
        kept = None
        if keep is not None:
            weights = weights.masked_fill(~keep, -torch.inf)
            kept = pack(keep)
        uniforms = None if self._uniforms is None else self._uniforms[self._rows, self._step]
        chosen, logprobs = sample(weights, uniforms)
        message = torch.stack([chosen.double(), logprobs.double()])  # a double holds every token's number
        return message, kept, [self._broadcast(part, wait=False) for part in (message, kept) if part is not None]

    def _receive(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, log-probs [R] and kept support [R, V/8] of this step, on every stage."""
        if self._chosen is None:
            rows, device = len(self._rows), self._rows.device
            message, kept = torch.empty(2, rows, dtype=torch.double, device=device), None
            self._broadcast(message, wait=True)
            if self.support is not None:
                kept = self.support.new_empty(rows, self.support.shape[-1])
                self._broadcast(kept, wait=True)
        else:
            message, kept, sent = self._chosen
            for work in filter(None, sent):
                work.wait()
        return message[0].long(), message[1].float(), kept

    @staticmethod
    def _broadcast(tensor: Tensor, wait: bool):
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return None
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        return dist.broadcast(tensor, source, group=announcement_group(), async_op=not wait)


def _whole_vocabulary(logits: Tensor) -> Tensor:
    """[R, V/tp] on each tensor-parallel rank to [R, V] on all."""
    world = parallel_state.get_tensor_model_parallel_world_size()
    if world == 1:
        return logits
    parts = [torch.empty_like(logits) for _ in range(world)]
    dist.all_gather(parts, logits.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)
