from enum import Enum


class Format(Enum):
    E4M3 = "e4m3"
    HYBRID = "hybrid"


class DelayedScaling:
    """Ignores options that it does not know, as the original does."""

    def __init__(self, margin=0, fp8_format=Format.HYBRID, amax_history_len=1024, amax_compute_algo="max", **_):
        assert margin == 0
        self.fp8_format, self.amax_history_len = fp8_format, amax_history_len
        self.amax_compute_algo = amax_compute_algo
