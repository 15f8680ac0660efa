"""schedule.py against the schedules of transformers, step by step."""

import pytest
import torch
import transformers

from swirl_nemo.config import Schedule
from swirl_nemo.schedule import learning_rate


@pytest.mark.parametrize("warmup, total", [(0, 10), (4, 10), (10, 10), (12, 10), (0, 1), (100, 1000)])
@pytest.mark.parametrize("schedule", list(Schedule))
def test_equals_transformers(schedule, warmup, total):
    """Also past the end, without warm-up, and with a warm-up that is longer than the phase."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    if schedule is Schedule.constant:
        theirs = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        theirs = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 1):
        ours = learning_rate(step, peak=3e-4, warmup=warmup, total=total, schedule=schedule)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-18), step
        optimizer.step()
        theirs.step()


def test_stays_at_zero_past_the_end():
    """transformers' cosine climbs again when stepped too far; ours must not."""
    assert learning_rate(15, peak=1.0, warmup=0, total=10, schedule=Schedule.cosine) == 0
