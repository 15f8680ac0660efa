"""Megatron's local linear layers with operands rounded to FP8 (fp8.py), and the state that goes with their weights.

Rounding stands around the product, inside Megatron's own communication: what is gathered or reduced is what Transformer
Engine gathers and reduces.
"""

from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from ..fp8 import DelayedScaling


class EmulatedFp8:
    """For a ColumnParallelLinear or RowParallelLinear; they call `_forward_impl`, which they set at each call."""

    weight: Tensor

    def __init__(self, *args, scaling: DelayedScaling, **options):
        super().__init__(*args, **options)
        self.scaling, self.place = scaling, scaling.add()

    @property
    def _forward_impl(self):
        return self._rounded if self.scaling.enabled else self._product

    @_forward_impl.setter
    def _forward_impl(self, product):
        self._product = product

    def _rounded(self, input: Tensor, weight: Tensor, bias: Tensor | None, **options) -> Tensor:
        def product(values: Tensor, weight: Tensor) -> Tensor:
            return self._product(input=values, weight=weight, bias=None, **options)

        output = self.scaling.linear(self.place, product, input, weight)
        return output if bias is None else output + bias

    def get_extra_state(self) -> Tensor:
        return self.scaling.state(self.place)

    def set_extra_state(self, state: Any) -> None:
        self.scaling.load(self.place, state)


class EmulatedColumn(EmulatedFp8, ColumnParallelLinear):
    pass


class EmulatedRow(EmulatedFp8, RowParallelLinear):
    pass
