"""SIGTERM asks a run to save and stop: schedulers send it before they end or preempt a job."""

import signal

import torch


class Interrupt:
    """Remembers SIGTERM until the next step boundary."""

    def __init__(self):
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one more must not end a process that is saving or leaving

    def requested(self, device) -> bool:
        """Whether any process was asked. Collective: a signal reaches ranks at different steps."""
        asked = torch.tensor([int(self._asked)], device=device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())
