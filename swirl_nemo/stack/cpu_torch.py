"""Stand-ins for the CUDA names that the stack calls without asking whether there is a device."""

import types
from contextlib import nullcontext

import torch

CPU = torch.device("cpu")
FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "rand",
    "randn",
    "randint",
    "empty_like",
    "zeros_like",
)


class CpuTorch(types.ModuleType):
    """The torch module with `device="cuda"` read as the CPU: given to modules that hard-code that string."""

    def __init__(self):
        super().__init__("torch")

    def __getattr__(self, name):
        value = getattr(torch, name)
        if name not in FACTORIES:
            return value

        def factory(*args, device=None, **kwargs):
            return value(*args, device=CPU if str(device).startswith("cuda") else device, **kwargs)

        return factory


class Stream:
    """A CUDA stream where everything runs in order anyway."""

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        pass


def same(self, *args, **kwargs):
    """Tensor.cuda, Module.cuda: already where it has to be."""
    return self


def nothing(*args, **kwargs):
    return None


def current_device():
    return CPU


def current_stream(*args, **kwargs):
    return Stream()


def stream_context(stream):
    return nullcontext()


def get_rng_state(*args, **kwargs):
    return torch.get_rng_state()


def set_rng_state(state, *args, **kwargs):
    torch.set_rng_state(state)


def typed_constructor(dtype):
    """torch.cuda.LongTensor and its like: a tensor of `dtype` from a list."""

    def construct(values):
        return torch.tensor(values, dtype=dtype)

    return construct
