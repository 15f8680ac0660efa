"""Operator calls of a decoded token and of a training step, in a Megatron process of its own: counts, not seconds."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from swirl_nemo.bench import work
from swirl_nemo.bench.config import BenchConfig
from swirl_nemo.data.transition import Transition
from swirl_nemo.settings import compose

SIZES = ("prompts=2", "group=2", "prompt_len=16", "completion_len=8", "micro_batch=4", "threads=1", "steps=1")


class Counter(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def counted(call) -> tuple[int, object]:
    with Counter() as counter:
        result = call()
    return counter.calls, result


def count(session, cfg: BenchConfig, rows) -> dict[str, int]:
    from swirl_nemo import phase as room
    from swirl_nemo.roles import FWM

    transitions = [Transition(str(i), row["x"], row["z"], "", "bench", "", 0) for i, row in enumerate(rows)]
    step, phase = room.Step(transitions, [], [], lr=1e-6, seed=(0,)), session.cfg.phase.fwm

    def generated(length: int):
        session.cfg.data.fwm.max_length = length
        return counted(lambda: room.roll_out(session, FWM, phase, transitions, step))

    generated(cfg.completion_len)  # what is made once
    (fewer, _), (more, rollout) = generated(cfg.completion_len - 1), generated(cfg.completion_len)
    sequences = room._sequences(session, FWM, transitions, rollout, phase.group)
    advantages = room._advantages(phase, torch.linspace(-1, 1, len(sequences)))
    samples = room.Samples(sequences, rollout, advantages.std, rollout.logprobs, advantages, [[0, 1]])

    def train():
        return room.update(session, FWM, phase, samples, transitions, step)

    train()
    return {"token": more - fewer, "training": counted(train)[0]}


def main(out: Path) -> None:
    cfg = compose(list(SIZES), "bench/step", BenchConfig)
    with tempfile.TemporaryDirectory() as folder:
        job = work.make(cfg, Path(folder))
        session, rows = work.open_session(cfg, job, cfg.threads), job.rows[: cfg.prompts]
        out.write_text(json.dumps(count(session, cfg, rows)))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
