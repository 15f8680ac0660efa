from . import attention, distributed, fp8, module  # noqa: F401
from .attention import DotProductAttention  # noqa: F401
from .fp8 import fp8_autocast  # noqa: F401
from .module import GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm  # noqa: F401
