"""Apex's fused norms. Imported where conf/kernels asks for them: it needs Apex. No GPU has run it."""

import torch
from apex.normalization.fused_layer_norm import mixed_dtype_fused_layer_norm_affine, mixed_dtype_fused_rms_norm_affine
from torch import Tensor

from . import norms


class RMSNorm(norms.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return mixed_dtype_fused_rms_norm_affine(x, self.scale(), self.normalized_shape, self.eps).type_as(x)


class OffsetRMSNorm(RMSNorm):
    scale = norms.OffsetRMSNorm.scale


class LayerNorm(torch.nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return mixed_dtype_fused_layer_norm_affine(x, self.weight, self.bias, self.normalized_shape, self.eps)


class Norm(norms.Norm):
    rms, offset_rms, layer = RMSNorm, OffsetRMSNorm, LayerNorm
