"""Learning rate of a step, as a pure function: nothing to save, so a resumed run cannot restart it."""

import math

from .config import Schedule


def learning_rate(step: int, *, peak: float, warmup: int, total: int, schedule: Schedule) -> float:
    """Rate of optimizer step `step`, counted from 0 within a phase of `total` steps.

    Linear from 0 over `warmup` steps, then constant or along half a cosine to 0 at `total`: transformers'
    `get_constant_schedule_with_warmup` and `get_cosine_schedule_with_warmup`, whose first step has rate 0 as well.
    """
    if step < warmup:
        return peak * step / warmup
    if schedule is Schedule.constant:
        return peak
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (1 + math.cos(math.pi * progress)) / 2
