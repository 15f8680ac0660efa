"""Whether a job's nodes can train: a look at each, then two collectives, all within one time limit.

A bad node that training finds is a hang, or a crash of all, hours into a queue's turn. Here the first process of each
node reports to a store on the first node, where faults are found and named; then every process adds numbers with those
of its node, and with all. Who has not answered when the time is over is named too, and every process ends by itself.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist

from ..config import PreflightConfig, SwirlConfig
from ..settings import export_ranks

BAD = 1
GRACE = 5.0  # seconds that others wait longer than the first process, which says what is wrong
LINGER = 1.0  # seconds: the store ends with the first process, and others may still read it
ELEMENTS = 1 << 20  # of a collective, float32
_QUERY = "driver_version,memory.free,ecc.errors.uncorrected.volatile.total"


@dataclass
class Report:
    """What a node has. A device: driver, free memory in GB, uncorrected ECC errors ("[N/A]" where it counts none)."""

    free_memory_gb: float
    free_disk_gb: float
    clock: float  # when all were told to look
    devices: list[tuple[str, float, str]]


def preflight(cfg: SwirlConfig) -> NoReturn:
    """Ends the process: with 0 where all is well; with BAD, after a line on standard error for each fault.

    Started once a process as training is, by srun or torchrun: finds the first node by MASTER_ADDR and MASTER_PORT.
    SWIRL_NODES, of the batch script, names the nodes in the order of their ranks.
    """
    rank, local, world = export_ranks()
    limit = cfg.cluster.preflight.seconds + (GRACE if rank else 0)
    watchdog = threading.Timer(limit + 3 * GRACE, os._exit, (BAD,))  # a collective may wait in C++ and never come back
    watchdog.daemon = True
    watchdog.start()
    nodes = os.environ.get("SWIRL_NODES", socket.gethostname()).split(",")
    try:
        meeting = Meeting(nodes, rank, world, time.monotonic() + limit)
        found = meeting.lead(cfg, local) if rank == 0 else meeting.follow(cfg, local)
    except dist.DistError as error:
        found = [f"{socket.gethostname()}: rank {rank}: {str(error).splitlines()[0]}"]
    for fault in found:
        sys.stderr.write(f"swirl: preflight: {fault}\n")
    sys.stderr.flush()
    os._exit(BAD if found else 0)  # threads wait in C++, and an ordinary end would abort


class Meeting:
    """The processes of a job around a store on the first node."""

    def __init__(self, nodes: list[str], rank: int, world: int, deadline: float):
        self._nodes, self._rank, self._world, self._deadline = nodes, rank, world, deadline
        self._devices = world // len(nodes)
        self.node = nodes[rank // self._devices]
        self._store = self._connect(serve=rank == 0)

    def lead(self, cfg: SwirlConfig, local: int) -> list[str]:
        """Faults: of nodes first, of collectives where nodes have none."""
        silent = self._answers("here", self._nodes[1:])[1]
        self._store.set("look", "")
        if silent:
            why = f"it did not start, or cannot reach {self.node}"
            return self._verdict([f"{node}: no answer: {why}" for node in silent])
        self._report(cfg)
        answers, silent = self._answers("report", self._nodes)
        reports = {node: Report(**json.loads(text)) for node, text in answers.items()}
        late = [f"{node}: no report: a disk or a device there does not answer" for node in silent]
        if found := self._verdict([*late, *faults(reports, cfg)]):
            return found
        threading.Thread(target=self._collectives, args=(cfg, local), daemon=True).start()
        found = self._added("within its node") or self._added("across nodes")
        time.sleep(LINGER)
        return found

    def follow(self, cfg: SwirlConfig, local: int) -> list[str]:
        """Nothing, or what only this process knows."""
        if local == 0:
            self._store.set(f"here/{self.node}", "")
            self._store.wait(["look"], self._left())
            self._report(cfg)
        self._store.wait(["verdict"], self._left())
        if self._store.get("verdict") != b"":
            os._exit(BAD)
        return self._collectives(cfg, local)

    def _report(self, cfg: SwirlConfig) -> None:
        self._store.set(f"report/{self.node}", json.dumps(asdict(look(cfg))))

    def _verdict(self, found: list[str]) -> list[str]:
        self._store.set("verdict", "\n".join(found))
        if found:
            time.sleep(LINGER)
        return found

    def _collectives(self, cfg: SwirlConfig, local: int) -> list[str]:
        """Add numbers in the node, then in all; say to the store how that went."""
        what = "within its node"
        threading.Thread(target=self._answer_roll_call, daemon=True).start()
        try:
            device = torch.device("cuda", local) if cfg.cluster.backend == "nccl" else torch.device("cpu")
            if device.type == "cuda":
                torch.cuda.set_device(device)
            store = dist.PrefixStore("collectives", self._connect(serve=False))
            # longer than the first process looks: who waits for another is no fault to report
            timeout = self._left() + timedelta(seconds=2 * GRACE)
            dist.init_process_group(
                cfg.cluster.backend, store=store, rank=self._rank, world_size=self._world, timeout=timeout
            )
            first = self._rank - self._rank % self._devices
            group = dist.new_group(range(first, first + self._devices), use_local_synchronization=True)
            _add(device, group, self._devices)
            self._store.set(f"{what}/{self._rank}", "")
            what = "across nodes"
            _add(device, None, self._world)
            self._store.set(f"{what}/{self._rank}", "")
        except Exception as error:  # of any kind: it is what the first process should say
            told = " ".join(str(error).split())
            self._store.set(f"{what}/{self._rank}", told)
            return [f"{self.node}: rank {self._rank}: collective {what}: {told}"]
        return []

    def _answer_roll_call(self) -> None:
        """So that a process which is gone or stopped is told from those that wait for it."""
        store = self._connect(serve=False)
        with suppress(dist.DistError):
            store.wait(["roll call"], self._left() + timedelta(seconds=GRACE))
            store.set(f"alive/{self._rank}", "")

    def _added(self, what: str) -> list[str]:
        """Faults of one of the two collectives: the first error, else who is gone, else who waits."""
        answers, waiting = self._answers(what, range(self._world), stop_at_error=True)
        errors = {rank: text for rank, text in answers.items() if text}
        if not errors and waiting:
            self._store.set("roll call", "")
            self._deadline += GRACE
            gone = self._answers("alive", waiting)[1]
            errors = dict.fromkeys(gone or waiting, "does not answer" if gone else "waits for the others")
        return [
            f"{self._nodes[rank // self._devices]}: collective {what}: rank {rank}: {text}"
            for rank, text in errors.items()
        ]

    def _answers(self, what: str, of, stop_at_error: bool = False) -> tuple[dict, list]:
        """What each of `of` said, "" if there is nothing to say, and who said nothing until the deadline."""
        waiting, answers = list(of), {}
        while waiting and time.monotonic() < self._deadline and not (stop_at_error and any(answers.values())):
            time.sleep(0.1)
            for one in [one for one in waiting if self._store.check([f"{what}/{one}"])]:
                answers[one] = self._store.get(f"{what}/{one}").decode()
                waiting.remove(one)
        return answers, waiting

    def _connect(self, serve: bool) -> dist.TCPStore:
        address, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", "29400"))
        return dist.TCPStore(address, port, is_master=serve, timeout=self._left(), wait_for_workers=False)

    def _left(self) -> timedelta:
        return timedelta(seconds=max(0.1, self._deadline - time.monotonic()))


def look(cfg: SwirlConfig) -> Report:
    """This node's."""
    root = Path(cfg.run.root).absolute()
    there = next(path for path in (root, *root.parents) if path.exists())
    memory, disk = psutil.virtual_memory().available / 1e9, shutil.disk_usage(there).free / 1e9
    return Report(memory, disk, time.time(), _devices() if cfg.cluster.backend == "nccl" else [])


def faults(reports: dict[str, Report], cfg: SwirlConfig) -> list[str]:
    """All that reports show, each "NODE: what is wrong"."""
    needs, found = cfg.cluster.preflight, []
    clock = sorted(report.clock for report in reports.values())[len(reports) // 2]
    drivers = Counter(driver for report in reports.values() for driver, *_ in report.devices)
    driver = needs.driver or (drivers.most_common(1)[0][0] if drivers else None)
    for node, report in reports.items():
        said = [
            *_short("host memory", report.free_memory_gb, needs.free_memory_gb),
            *_short(f"disk at {cfg.run.root}", report.free_disk_gb, needs.free_disk_gb),
        ]
        if abs(report.clock - clock) > needs.clock_seconds:
            said.append(f"its clock is {report.clock - clock:+.1f} s off the others'")
        if cfg.cluster.backend == "nccl":
            said += _device_faults(report, cfg.cluster.devices, driver, needs)
        found += [f"{node}: {text}" for text in said]
    return found


def _device_faults(report: Report, devices: int, driver: str | None, needs: PreflightConfig) -> list[str]:
    said = []
    if len(report.devices) != devices:
        said.append(f"{len(report.devices)} GPUs, not {devices}")
    for index, (version, free_gb, errors) in enumerate(report.devices):
        said += _short(f"memory of GPU {index}", free_gb, needs.free_device_memory_gb)
        if version != driver:
            said.append(f"GPU {index} has driver {version}, not {driver}")
        if errors.isdigit() and int(errors):
            said.append(f"GPU {index} counts {errors} uncorrected ECC errors")
    return said


def _short(what: str, free_gb: float, needed_gb: float) -> list[str]:
    return [f"{free_gb:.1f} GB of {what} free, not {needed_gb:g}"] if free_gb < needed_gb else []


def _devices() -> list[tuple[str, float, str]]:
    """None where nvidia-smi is missing, fails or hangs: a node without GPUs that can be used."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
        return [(driver, float(mebibytes) * 2**20 / 1e9, errors) for driver, mebibytes, errors in rows]
    return []


def _add(device: torch.device, group, size: int) -> None:
    numbers = torch.ones(ELEMENTS, device=device)
    dist.all_reduce(numbers, group=group)
    if not (numbers == size).all():
        raise ArithmeticError(f"{size} ones added up to {numbers.min().item():g}")
