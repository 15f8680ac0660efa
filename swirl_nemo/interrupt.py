"""SIGTERM asks a run to save and stop: schedulers send it before they end or preempt a job."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

SHARE = 0.75  # of the seconds between the signal and the end


class Interrupt:
    """Remembers SIGTERM until the end of the step, or of the batch of annotation or evaluation.

    A process that is still there after SHARE of `seconds`, which the scheduler gives it, writes to the file `stacks`
    where all its threads are: when it has been killed, nobody could tell why it had not stopped.
    """

    def __init__(self, stacks: Path, seconds: float):
        self._asked = False
        stacks.unlink(missing_ok=True)  # an earlier job's
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)  # a handler waits for the main thread, which may be in C++ for good
        signal.signal(signal.SIGTERM, self._ask)
        threading.Thread(target=_tell, args=(woken, stacks, SHARE * seconds), daemon=True).start()

    def _ask(self, *_) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one more must not end a process that is saving or leaving

    def requested(self, device) -> bool:
        """Whether any process was asked. Collective: a signal reaches ranks at different steps."""
        asked = torch.tensor([int(self._asked)], device=device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())


def _tell(woken: int, stacks: Path, seconds: float) -> None:
    while os.read(woken, 1)[0] != signal.SIGTERM:
        pass
    time.sleep(seconds)
    stacks.parent.mkdir(parents=True, exist_ok=True)
    with stacks.open("w") as file:
        faulthandler.dump_traceback(file)
    sys.stderr.write(f"swirl: asked to stop {seconds:.0f} s ago, and still at work: where, {stacks} says\n")
    sys.stderr.flush()
