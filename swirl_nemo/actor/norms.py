"""The norms of Megatron's layers. torch's RMSNorm is five calls on CPUs, and its gradient is seven times as slow."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _scale(x: Tensor, eps: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), float32."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        """LayerNorm's with mean 0, which has a fused kernel, but for the term by which its mean moves."""
        x, weight, scale = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        mean = (grad @ weight)[..., None] / x.shape[-1]
        return grad_x.addcmul_(mean, scale), grad_weight, None


class RMSNorm(torch.nn.RMSNorm):
    def __init__(self, hidden_size: int, eps: float, dtype: torch.dtype):
        super().__init__(hidden_size, eps=eps, dtype=dtype)
        self.register_buffer("_eps", torch.tensor(eps), persistent=False)

    def scale(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale().float()
        if x.dtype is not torch.float32:
            return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).type_as(x)
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, self._eps)
        return (x * _scale(x, self._eps)).mul_(weight)


class OffsetRMSNorm(RMSNorm):
    """Gemma's: the weight is an offset from one."""

    def scale(self) -> Tensor:
        return 1 + self.weight.float()


class Norm:
    """An RMSNorm or torch's LayerNorm, tagged so that Megatron reduces its gradients over sequence shards."""

    rms, offset_rms, layer = RMSNorm, OffsetRMSNorm, torch.nn.LayerNorm

    def __new__(cls, config, hidden_size, eps):
        if config.normalization == "RMSNorm":
            kind = cls.offset_rms if config.layernorm_zero_centered_gamma else cls.rms
        else:
            kind = cls.layer
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
