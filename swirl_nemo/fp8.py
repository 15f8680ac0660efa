"""FP8 linear layers by emulation: operands are rounded to torch's float8 types and back, products stay in float32.

Scaling is Transformer Engine's recipe `DelayedScaling` with margin 0: a tensor is cast with the scale that the largest
absolute values (amax) of earlier passes gave; its own amax counts from the next pass on. Inputs and weights are e4m3,
gradients of outputs e5m2 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"). Pure torch.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .config import AmaxAlgorithm
from .products import packed_linear

INPUT, WEIGHT, GRADIENT = range(3)
FORWARD, BACKWARD = slice(INPUT, GRADIENT), slice(GRADIENT, GRADIENT + 1)
FORMATS = (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)
LARGEST = tuple(torch.finfo(dtype).max for dtype in FORMATS)


def rounded(values: Tensor, scale: Tensor, kind: int) -> Tensor:
    """float32 of what FP8 keeps of `values * scale`, divided by `scale` []; what is too large becomes the largest."""
    scaled = values.float() * scale
    return scaled.clamp_(-LARGEST[kind], LARGEST[kind]).to(FORMATS[kind]).float().mul_(scale.reciprocal())


def updated(scale: Tensor, history: Tensor, algorithm: AmaxAlgorithm, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [M, K] and histories [M, L, K] after a pass: row 0 of a history is that pass's, row 1 the oldest.

    scale = largest / amax, `largest` [K] being the formats'. An infinite amax leaves the scale; a pass with amax zero
    leaves the history too, as if it had not been.
    """
    last = history[:, 0]
    amax = history.amax(1) if algorithm is AmaxAlgorithm.max else last
    fresh = (largest / amax).clamp(max=torch.finfo(torch.float32).max)
    rolled = history.roll(-1, 1)
    rolled[:, 0] = 0
    seen = last > 0
    return torch.where(seen & amax.isfinite(), fresh, scale), torch.where(seen[:, None], rolled, history)


class DelayedScaling:
    """Scales and amax histories of the M linear layers that a pipeline stage holds, each with an input, a weight and a
    gradient of the output. `enabled` is for the layers that use it to heed."""

    def __init__(self, length: int, algorithm: AmaxAlgorithm, device):
        self._algorithm = algorithm
        self._largest = torch.tensor(LARGEST, device=device)
        self.enabled = True
        self.scale = torch.ones(0, len(FORMATS), device=device)
        self.history = torch.zeros(0, length, len(FORMATS), device=device)

    def add(self) -> int:
        """A linear layer more; its place among them."""
        self.scale = torch.cat([self.scale, self.scale.new_ones(1, len(FORMATS))])
        self.history = torch.cat([self.history, self.history.new_zeros(1, *self.history.shape[1:])])
        return len(self.scale) - 1

    def state(self, place: int) -> Tensor:
        """A copy [1 + L, 3] of a layer's scales and history."""
        return torch.cat([self.scale[place, None], self.history[place]])

    def load(self, place: int, state: Tensor | None) -> None:
        """What `state` gave, its history cut or filled up to the length here; None: as before the first pass."""
        self.scale[place], self.history[place] = 1, 0
        if state is not None:
            past = state[1:][: self.history.shape[1]]
            self.scale[place], self.history[place, : len(past)] = state[0], past

    def linear(self, place: int, product: Callable[[Tensor, Tensor], Tensor], values: Tensor, weight: Tensor) -> Tensor:
        """`product(values, weight)` in the type of `values`, operands rounded, and in the backward pass its gradient.

        Where gradients are recorded, amaxes are too: scoring and sampling leave scales as they are.
        """
        operands = []
        for kind, operand in ((INPUT, values), (WEIGHT, weight)):
            if torch.is_grad_enabled():
                self._record(place, kind, operand)
            operands.append(_Rounded.apply(operand, self.scale[place, kind], kind))
        return _RoundedGradient.apply(product(*operands), self, place).to(values.dtype)

    def packed(self, place: int, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
        """products.packed_linear of rounded operands, for weights and scales that do not change."""
        product = packed_linear(rounded(weight, self.scale[place, WEIGHT], WEIGHT), None)

        def rounded_product(values: Tensor, residual: Tensor | None = None) -> Tensor:
            output = product(rounded(values, self.scale[place, INPUT], INPUT)).to(values.dtype)
            output = output if bias is None else output + bias
            return output if residual is None else residual + output

        return rounded_product

    def update(self, columns: slice, group: dist.ProcessGroup) -> None:
        """Scales from what the pass recorded: FORWARD after each forward pass that trains, BACKWARD after its backward
        pass. Collective over the processes that hold parts of the same tensors, or see other samples."""
        seen = self.history[:, 0, columns].contiguous()
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=group)
        self.history[:, 0, columns] = seen
        self.scale[:, columns], self.history[..., columns] = updated(
            self.scale[:, columns], self.history[..., columns], self._algorithm, self._largest[columns]
        )

    def _record(self, place: int, kind: int, values: Tensor) -> None:
        """As the kernels' fmaxf does, past every nan."""
        current = self.history[place, 0, kind]
        amax = values.detach().abs().nan_to_num_(nan=0.0, posinf=math.inf).amax()
        torch.maximum(current, amax.float(), out=current)


class _Rounded(torch.autograd.Function):
    """Rounding whose gradient passes through unchanged."""

    @staticmethod
    def forward(ctx, values, scale, kind):
        ctx.dtype = values.dtype
        return rounded(values, scale, kind)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype), None, None


class _RoundedGradient(torch.autograd.Function):
    """Values unchanged, their gradient rounded."""

    @staticmethod
    def forward(ctx, values, scaling, place):
        ctx.scaling, ctx.place = scaling, place
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad):
        scaling, place = ctx.scaling, ctx.place
        scaling._record(place, GRADIENT, grad)
        return rounded(grad, scaling.scale[place, GRADIENT], GRADIENT), None, None
