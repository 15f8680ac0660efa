"""Linear layers: torch's, but float32 on CPUs by oneDNN, which torch leaves to MKL. It is faster but for the gradients
of weights, most of all with few rows and packed weights (docs/performance.md)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _by_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and torch.backends.mkldnn.is_available()


def product(values: Tensor, weight: Tensor) -> Tensor:
    """values [..., k] times weight [n, k] transposed."""
    if _by_onednn(weight) and values.numel():
        return torch.ops.mkldnn._linear_pointwise(values, weight, None, "none", [], "")
    return F.linear(values, weight)


class Linear(torch.autograd.Function):
    """values [..., k] and weight [n, k] to [..., n], with gradients."""

    @staticmethod
    def forward(ctx, values, weight):
        ctx.save_for_backward(values, weight)
        return product(values, weight)

    @staticmethod
    def backward(ctx, grad):
        values, weight = ctx.saved_tensors
        return product(grad, weight.t()), grad.flatten(0, -2).t() @ values.flatten(0, -2)


def packed_linear(weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    """A function of values [rows, k], and a residual [rows, n] to add, where weights do not change: rows are few."""
    if not _by_onednn(weight):

        def plain(values: Tensor, residual: Tensor | None = None) -> Tensor:
            output = F.linear(values, weight, bias)
            return output if residual is None else residual + output

        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)

    def packed_product(values: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(values, residual, packed, bias, "add")

    return packed_product
