"""What the NeMo stack needs to run without a GPU. On a GPU none of this is imported but `prepare`."""

import ctypes
import os
import platform
import sys
import warnings

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**31 - 1


def on_cpu() -> bool:
    """Whether this process runs without CUDA: no device, or a device hidden with CUDA_VISIBLE_DEVICES=''."""
    return not torch.cuda.is_available()


def prepare() -> None:
    """Make nemo, nemo_aligner and megatron importable and usable here. Call before the first import of any of them.

    Idempotent. Raises StackError where the installed stack is not the one the patches were written for.
    """
    os.environ.setdefault("NEMO_TESTING", "1")  # nemo's own switch against writing log files beside the caller
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # checkpoint writers fork
    if on_cpu():
        # Megatron says so at each of its modules' imports; `swirl doctor` says it once.
        warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")
        from .patches import apply_all

        apply_all()
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is allocated next. It gives large blocks back at once, and every pass over
    a large tensor would begin with page faults: 100,000 of them in a step of SmolLM2-135M."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, _LARGE)
