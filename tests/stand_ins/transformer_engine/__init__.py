"""A stand-in for Transformer Engine 2.0, for machines without CUDA: what this project and Megatron Core 0.11 use of it,
in pure torch, with its names and signatures. Written for these tests from the description of its interface; what its
kernels compute is computed here by torch, and is no evidence of them.
"""

from . import common, pytorch  # noqa: F401

__version__ = "2.0.0"
