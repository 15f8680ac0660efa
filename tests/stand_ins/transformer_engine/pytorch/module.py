"""Linear layers and norms. What differs from Megatron's local ones is kept: an empty bias, a tensor-parallel group that
is set later, a pickled extra state that is empty without FP8, cast weights that are kept, activations of one type."""

import pickle

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import mappings
from torch import nn

from . import fp8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class TransformerEngineBaseModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.fp8, self.fp8_meta, self.fp8_meta_tensors_initialized = False, {}, False
        self._fp8_workspaces = {}
        self.tp_group_initialized = False

    def set_tensor_parallel_group(self, tp_group):
        self.tp_group, self.tp_group_initialized = tp_group, True

    def init_fp8_meta_tensors(self, recipe):
        self.fp8_meta["recipe"] = recipe
        if not self.fp8_meta_tensors_initialized:
            for key in fp8.TENSORS:
                self.fp8_meta[key] = fp8.Meta(key, recipe.amax_history_len)
        assert len(self.fp8_meta["scaling_fwd"].amax_history) == recipe.amax_history_len
        self.fp8_meta_tensors_initialized = True

    def prepare_forward(self):
        self.fp8 = fp8.State.enabled
        if self.fp8:
            self.fp8_meta["num_gemms"] = 1
            self.init_fp8_meta_tensors(fp8.State.recipe)
            if "buffer_index_and_autocast_key" not in self.fp8_meta:
                self.fp8_meta["buffer_index_and_autocast_key"] = []
                for key, table in fp8.State.tables.items():
                    table.append(self.fp8_meta[key])

    def get_extra_state(self):
        metas = {key: (self.fp8_meta[key].scale, self.fp8_meta[key].amax_history) for key in fp8.TENSORS if self.fp8}
        return torch.frombuffer(bytearray(pickle.dumps(metas or None)), dtype=torch.uint8)

    def set_extra_state(self, state):
        raise AssertionError("a pickle from a checkpoint")


class Linear(TransformerEngineBaseModule):
    def __init__(
        self,
        in_features,
        out_features,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        rng_tracker_name=None,
        init_method=None,
        bias=True,
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        device="cuda",
    ):
        super().__init__()
        assert device == "cpu" and not fuse_wgrad_accumulation
        self.parallel_mode, self.tp_size = parallel_mode, tp_size
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self.use_bias, self.return_bias = bias, return_bias
        if tp_size == 1 or tp_group is not None:
            self.set_tensor_parallel_group(tp_group)
        out_features //= tp_size if parallel_mode == "column" else 1
        in_features //= tp_size if parallel_mode == "row" else 1
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype))
        self.weight.tensor_model_parallel = True
        self.weight.partition_dim, self.weight.partition_stride = int(parallel_mode == "row"), 1
        init_method(self.weight)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=params_dtype)) if bias else torch.empty(0)

    def forward(self, inp, is_first_microbatch=None):
        assert self.tp_group_initialized and inp.dtype is self.weight.dtype
        assert inp.numel() and inp.is_contiguous()
        self.prepare_forward()
        column = self.parallel_mode == "column"
        if column and self.sequence_parallel:
            inp = mappings.gather_from_sequence_parallel_region(inp, tensor_parallel_output_grad=True)
        elif column:
            inp = mappings.copy_to_tensor_model_parallel_region(inp)
        if self.fp8:
            assert inp.flatten(0, -2).shape[0] % 8 == 0 and inp.shape[-1] % 16 == 0
            out = _Fp8Product.apply(inp, self.weight, self, self.cast_weight(is_first_microbatch))
        else:
            out = F.linear(inp, self.weight)
        if not column and self.sequence_parallel:
            out = mappings.reduce_scatter_to_sequence_parallel_region(out)
        elif not column:
            out = mappings.reduce_from_tensor_model_parallel_region(out)
        if self.return_bias:
            return out, self.bias
        return out + self.bias if self.use_bias else out

    def cast_weight(self, is_first_microbatch):
        """A kept cast is brought up to date in a step's first micro-batch alone; what was cast without gradients has
        no transpose, then and later."""
        kept = self._fp8_workspaces.get("weight")
        if is_first_microbatch is None or kept is None:
            kept = {"transpose": torch.is_grad_enabled(), "values": self.cast("scaling_fwd", 1, self.weight)}
            if is_first_microbatch is not None:
                self._fp8_workspaces["weight"] = kept
        elif is_first_microbatch:
            kept["values"] = self.cast("scaling_fwd", 1, self.weight)
        assert kept["transpose"] or not torch.is_grad_enabled(), "no transpose for the backward pass"
        return kept["values"]

    def cast(self, key, place, values):
        """What FP8 keeps of `values`, and its amax into the history, with gradients or without."""
        meta, kind = self.fp8_meta[key], E4M3 if key == "scaling_fwd" else E5M2
        values = values.detach().float()
        meta.amax_history[0, place] = torch.maximum(meta.amax_history[0, place], values.abs().max())
        largest = torch.finfo(kind).max
        return (values * meta.scale[place]).clamp(-largest, largest).to(kind).float() / meta.scale[place]


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inp, weight, layer, cast_weight):
        cast_input = layer.cast("scaling_fwd", 0, inp)
        ctx.layer, ctx.last = layer, fp8.State.first
        ctx.recipe, ctx.group = fp8.State.recipe, fp8.State.group
        fp8.State.first = False
        ctx.save_for_backward(cast_input, cast_weight)
        return F.linear(cast_input, cast_weight).to(inp.dtype)

    @staticmethod
    def backward(ctx, grad):
        """The first layer of the forward pass is the last of the backward pass, and ends it."""
        cast_input, cast_weight = ctx.saved_tensors
        cast_grad = ctx.layer.cast("scaling_bwd", 0, grad)
        grads = cast_grad @ cast_weight, cast_grad.flatten(0, -2).t() @ cast_input.flatten(0, -2)
        if ctx.last:
            fp8.update("scaling_bwd", ctx.recipe, ctx.group)
        return *(values.to(grad.dtype) for values in grads), None, None


class LayerNormLinear(nn.Module):
    """Named by Megatron when it is imported; none is made."""


class GroupedLinear(nn.Module):
    """The same."""


class _Norm(nn.Module):
    def __init__(self, normalized_shape, eps, sequence_parallel, params_dtype, zero_centered_gamma, device):
        super().__init__()
        assert device == "cpu"
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        start = torch.zeros if zero_centered_gamma else torch.ones
        self.weight = nn.Parameter(start(normalized_shape, dtype=params_dtype))
        self.weight.sequence_parallel = sequence_parallel

    def get_extra_state(self):
        return torch.frombuffer(bytearray(pickle.dumps(None)), dtype=torch.uint8)

    def set_extra_state(self, state):
        raise AssertionError("a pickle from a checkpoint")


class RMSNorm(_Norm):
    def forward(self, x):
        weight = self.weight.float() + self.zero_centered_gamma
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).type_as(x)


class LayerNorm(_Norm):
    pass
