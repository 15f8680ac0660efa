"""Which kernels beside torch's this machine has, and whether they are those that conf/kernels asks for.

Nothing of them is imported: looking for them must not cost a run that wants none.
"""

from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from operator import attrgetter

from .config import SwirlConfig

FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


@dataclass(frozen=True)
class Kernel:
    """What must be importable for it, and the oldest GPU that it runs on."""

    name: str
    modules: tuple[str, ...]
    capability: tuple[int, int] = (0, 0)

    def lack(self) -> str | None:
        """Why this machine cannot run it, or None."""
        import torch

        missing = next((module for module in self.modules if find_spec(module) is None), None)
        if missing:
            return f"{missing} is not installed"
        if not torch.cuda.is_available():
            return "no GPU is visible"
        found = torch.cuda.get_device_capability()
        if found < self.capability:
            return "compute capability {}.{}, {}.{} is needed".format(*found, *self.capability)
        return None


TRANSFORMER_ENGINE = Kernel("Transformer Engine's layers, attention, norms", ("transformer_engine",))
FP8 = Kernel("FP8 by Transformer Engine", ("transformer_engine",), FP8_CAPABILITY)
APEX_NORMS = Kernel("Apex's norms", ("apex", "fused_layer_norm_cuda"))
FUSION = Kernel("gradient accumulation fusion", ("fused_weight_gradient_mlp_cuda",))  # Apex's, for TE's layers as well
KERNELS = (TRANSFORMER_ENGINE, FP8, APEX_NORMS, FUSION)
ADAMS = {"Transformer Engine's FusedAdam": ("transformer_engine",), "Apex's FusedAdam": ("apex", "amp_C")}

# Settings, what each needs, and what to give instead. FP8 comes first: its layers alone are no mend for it.
NEEDS = (
    ("precision.fp8=hybrid", FP8, "precision=bf16"),
    ("kernels.layers=transformer_engine", TRANSFORMER_ENGINE, "kernels.layers=local"),
    ("kernels.attention=transformer_engine", TRANSFORMER_ENGINE, "kernels.attention=torch"),
    ("kernels.norms=transformer_engine", TRANSFORMER_ENGINE, "kernels.norms=torch"),
    ("kernels.norms=apex", APEX_NORMS, "kernels.norms=torch"),
    ("kernels.gradient_accumulation_fusion=true", FUSION, "kernels.gradient_accumulation_fusion=false"),
)


def lack(cfg: SwirlConfig) -> str | None:
    """KEY=VALUE: what this machine lacks for it: how to mend it; None where it has everything."""
    for setting, kernel, instead in NEEDS:
        emulated = kernel is FP8 and cfg.precision.emulate
        if _holds(cfg, setting) and not emulated and (why := kernel.lack()):
            return f"{setting}: {why}: give {instead}, or run in the NeMo image (containers/)"
    return None


def _holds(cfg: SwirlConfig, setting: str) -> bool:
    key, _, wanted = setting.partition("=")
    value = attrgetter(key)(cfg)
    return (value.value if isinstance(value, Enum) else str(value).lower()) == wanted


def adam() -> str | None:
    """Whose Adam Megatron's distributed optimizer takes where there is a GPU; None: torch's, which it cannot save."""
    return next((name for name, modules in ADAMS.items() if all(map(find_spec, modules))), None)


def sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
