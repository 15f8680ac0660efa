"""Steps that must not count: a figure that is not finite, and a policy that is not the one that sampled.

Whatever is decided here is decided by all processes alike.
"""

import math

import torch
import torch.distributed as dist

from .config import RunConfig
from .data.transition import Transition
from .runs import Run


def agree(bad: bool, device) -> bool:
    """Whether it is so on any process. Collective."""
    flag = torch.tensor([int(bad)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def rows(kind: str, transitions: list[Transition]) -> list[dict]:
    """Supervised rows of a batch, to be dumped."""
    return [{"kind": kind, **transition.row()} for transition in transitions]


def readable(value):
    """`value` with "nan", "inf" and "-inf" in place of what JSON has no number for, through dicts and lists."""
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def judge(cfg: RunConfig, run: Run, record: dict, batch: list[dict] | None, in_a_row: int, device) -> int:
    """After a step's line of metrics: how many steps in a row, this one included, were not finite.

    `batch`, where it was not finite: what it read, for RUN/nonfinite/. Raises ValueError, one line, after
    run.max_nonfinite of them, and where drift/max is over run.drift_stop; over run.drift_warn one line is logged.
    Collective.
    """
    place = f"{record['phase']} step {record['step']} (optimizer step {record['optimizer_step']})"
    if batch is not None:
        file = run.dump(f"nonfinite/{record['optimizer_step']:08d}.jsonl", readable(batch))
        run.say(f"{place}: loss, reward or gradient norm not finite: skipped, its batch is in {file}")
        if in_a_row + 1 >= cfg.max_nonfinite:
            raise ValueError(
                f"{place}: not finite, the {in_a_row + 1}. step in a row (run.max_nonfinite={cfg.max_nonfinite}): "
                f"look at the batches in {file.parent}, and give a lower learning rate"
            )
        return in_a_row + 1
    if "drift/max" in record:
        drift = torch.tensor([record["drift/max"]], device=device)
        dist.all_reduce(drift, op=dist.ReduceOp.MAX)
        _judge_drift(cfg, run, place, drift.item())
    return 0


def _judge_drift(cfg: RunConfig, run: Run, place: str, drift: float) -> None:
    told = f"{place}: drift/max={drift:.3g}, between the log-probs of sampling and of training"
    if cfg.drift_stop is not None and drift > cfg.drift_stop:
        raise ValueError(
            f"{told}, is over run.drift_stop={cfg.drift_stop}: compare precision and layout, or give a higher one"
        )
    if cfg.drift_warn is not None and drift > cfg.drift_warn:
        run.say(f"{told}, is over run.drift_warn={cfg.drift_warn}")
