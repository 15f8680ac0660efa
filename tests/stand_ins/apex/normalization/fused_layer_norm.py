import torch.nn.functional as F


def mixed_dtype_fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    """Of the type of its weight, as the original's."""
    return F.rms_norm(input.float(), normalized_shape, weight.float(), eps).to(weight.dtype)


def mixed_dtype_fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    return F.layer_norm(input.float(), normalized_shape, weight.float(), bias.float(), eps).to(weight.dtype)
