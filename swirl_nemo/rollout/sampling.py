"""The distribution a role samples from, and sampling from it. Pure torch: B rows, V tokens of the padded vocabulary.

The policy *is* the distribution sampled from (ALGORITHM.md): temperature and token mask are applied here, and by the
same object where behaviour, current and reference log-probs are computed. Where truncation is on, the kept support is
recorded as packed bits and given back.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BITS = 8
_POWERS = 2 ** torch.arange(BITS, dtype=torch.uint8)


@dataclass(frozen=True)
class Distribution:
    """softmax(mask(logits) / temperature), renormalised over the top-k and top-p tokens where those are on.

    allowed [V] bool; `end` may not come before `min_length` completion tokens. top_k 0 and top_p 1 are off.
    """

    allowed: Tensor
    temperature: float
    end: int
    min_length: int
    top_k: int
    top_p: float

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    def to(self, device) -> "Distribution":
        return replace(self, allowed=self.allowed.to(device))

    def log_weights(self, logits: Tensor, steps: Tensor, first_token: int = 0, support: Tensor | None = None) -> Tensor:
        """Masked, tempered logits [n, v], float32, in place where `logits` already is.

        logits are those of tokens first_token .. first_token + v; steps [n]: how many completion tokens come before;
        support [n, V/8] packed bits of the tokens that truncation kept.
        """
        end = self.end - first_token
        logits = logits.float()
        if self.temperature != 1:
            logits.div_(self.temperature)
        hidden = ~self.allowed[first_token : first_token + logits.shape[-1]]
        if support is not None:
            hidden = hidden | ~unpack(support)[:, first_token : first_token + logits.shape[-1]]
        logits.masked_fill_(hidden, -torch.inf)
        if self.min_length and 0 <= end < logits.shape[-1]:
            logits[:, end].masked_fill_(steps < self.min_length, -torch.inf)
        return logits

    def truncation(self, log_weights: Tensor) -> Tensor | None:
        """Bool [B, V], the tokens that top-k and top-p keep, the likeliest always; None where both are off.

        Top-p shares out what top-k has left, as transformers' samplers do.
        """
        if not self.truncates:
            return None
        order = log_weights.sort(dim=-1, descending=True)
        if self.top_k:
            order.values[:, self.top_k :] = -torch.inf
        probabilities = order.values.softmax(-1)
        kept = (probabilities.cumsum(-1) - probabilities < self.top_p) & order.values.isfinite()
        return torch.zeros_like(kept).scatter_(-1, order.indices, kept)


def unrestricted(vocab_size: int, padded_size: int, end: int) -> Distribution:
    """The model's own distribution over real tokens: for rewards, supervision and held-out log-probs."""
    return Distribution(torch.arange(padded_size) < vocab_size, 1.0, end, min_length=0, top_k=0, top_p=1.0)


def sample(log_weights: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] from masked, tempered logits [B, V].

    One uniform number a row, by inversion of the cumulative distribution: no full-vocabulary draw, and the same numbers
    give the same tokens whatever the layout. None takes the likeliest token.
    """
    logprobs = log_weights.log_softmax(-1)
    if uniforms is None:
        tokens = logprobs.argmax(-1)
    else:
        cumulative = logprobs.double().exp_().cumsum_(-1)
        point = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_(max=logprobs.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def pack(mask: Tensor) -> Tensor:
    """Bool [..., V] as bits, uint8 [..., V/8]."""
    return (mask.unflatten(-1, (-1, BITS)).to(torch.uint8) * _POWERS.to(mask.device)).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor) -> Tensor:
    """Inverse of `pack`."""
    return (bits[..., None] & _POWERS.to(bits.device)).ne(0).flatten(-2)
