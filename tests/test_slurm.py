"""Jobs on a real Slurm of two nodes, both this machine (slurm.sh): run, ended, preempted, requeued, given up.

Training is four real processes with gloo. What Slurm sends is what a cluster's would; that a node is gone is a slurmd
killed and its tasks stopped, that it is bad is a file system of its own, which has no room.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from workers import faults, setting

from swirl_nemo.cluster import attempts
from swirl_nemo.records import first_difference

TESTS = Path(__file__).parent
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd starts tasks as another user only as root"),
    pytest.mark.timeout(3600),
]
STEPS = 16  # a phase: several are left when a signal comes
TWO_BY_TWO = ("cluster.nodes=2", "cluster.devices=2", "parallel.tensor=2")
ENDED = ("", "COMPLETED", "FAILED", "TIMEOUT")
LONGEST = 1500.0  # seconds for anything here on a busy machine


class Cluster:
    """Two nodes, and `swirl` run against them."""

    def __init__(self, folder: Path):
        self.folder, self.work = folder / "slurm", folder / "work"
        self.work.mkdir()
        self.folder.mkdir()
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONWARNINGS": "ignore"}

    def slurm(self, *arguments: str) -> None:
        subprocess.run(["bash", str(TESTS / "slurm.sh"), arguments[0], str(self.folder), *arguments[1:]], check=True)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, cwd=TESTS.parent)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def swirl(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "swirl_nemo", *arguments)

    def submit(self, name: str, *extra: str) -> str:
        """The job's number."""
        settings = [*setting.overrides(self.work), *faults.SETTINGS, "run.save_every=5", f"run.name={name}"]
        settings += [f"phase.{role}.steps={STEPS}" for role in ("idm", "fwm")]
        settings += ["cluster.preflight.free_memory_gb=1", "cluster.slurm.signal_seconds=60"]
        settings += ['cluster.slurm.time="02:00:00"', 'cluster.slurm.environment=["OMP_NUM_THREADS=1"]']
        return self.swirl("submit", *settings, *extra).split()[1].rstrip(":").partition("_")[0]

    def path(self, name: str) -> Path:
        return self.work / "runs" / name

    def steps(self, name: str) -> int:
        metrics = self.path(name) / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def ends(self, name: str) -> list[dict]:
        return [event for event in attempts.read(self.path(name)) if event["event"] == "ended"]

    def state(self, job: str) -> str:
        """As squeue has it; empty when the job has left the queue."""
        done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0 or "Invalid job id" in done.stderr, done.stderr
        return done.stdout.strip()

    def wait(self, until: Callable[[], bool], job: str) -> None:
        end = time.monotonic() + LONGEST
        while not until():
            over = self.state(job) in ENDED and not until()
            assert not over and time.monotonic() < end, self.log(job)
            time.sleep(0.5)

    def ended(self, job: str) -> None:
        self.wait(lambda: self.state(job) in ENDED, job)

    def lose(self, node: str) -> list[psutil.Process]:
        """As without power: no daemon, and tasks that neither run nor hang up. They must be dead when it is back, or
        the requeued job, whose steps have the same numbers, would meet them."""
        subprocess.run(["pkill", "-KILL", "-f", f"slurmd -N {node}"], check=True)
        found = [process for process in psutil.process_iter(["environ"]) if _runs_on(process, node)]
        stopped = []
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # a checkpoint's writer that has just ended
                parent = process.parent()
                process.suspend()
                stopped.append(process)
                if parent and parent.name().startswith("slurmstepd") and parent not in stopped:
                    parent.suspend()
                    stopped.append(parent)
        return stopped

    def bring_back(self, node: str, stopped: list[psutil.Process]) -> None:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stopped, timeout=60)
        self.slurm("node", node)

    def difference(self, *names: str) -> str | None:
        """Where two runs' metrics first differ in any bit."""
        return first_difference(*(self.path(name) / "metrics.jsonl" for name in names))

    def log(self, job: str) -> str:
        """With where processes were that did not stop when asked to."""
        said = [*self.work.glob(f"runs/*/slurm/{job}*.log"), *self.work.glob("runs/*/stuck/*")]
        return "\n".join(path.read_text() for path in said)


def _runs_on(process: psutil.Process, node: str) -> bool:
    environ = process.info["environ"] or {}
    return environ.get("SLURMD_NODENAME") == node and "SLURM_PROCID" in environ


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(folder)
    setting.make(cluster.work)
    cluster.slurm("start")
    yield cluster
    cluster.slurm("stop")


@pytest.fixture(scope="module")
def whole(cluster) -> Path:
    """A run of two nodes and four ranks that nothing disturbed."""
    cluster.ended(cluster.submit("whole", *TWO_BY_TWO))
    return cluster.path("whole")


def test_a_job_of_two_nodes_and_four_ranks_trains_to_its_end(cluster, whole):
    assert [(end["outcome"], end["code"], end["during"]) for end in cluster.ends("whole")] == [("finished", 0, "train")]
    layout = json.loads((whole / "env.json").read_text())["layout"]
    assert (layout["nodes"], layout["devices"], layout["tensor"]) == (2, 2, 2)
    assert set(json.loads((whole / "summary.json").read_text())["held_out"]) == {"fwm", "idm"}


def test_a_run_ended_by_its_time_limit_a_signal_and_a_lost_node_ends_as_if_nothing_had_been(cluster, whole):
    """Each time it is requeued and goes on by itself from the newest checkpoint."""
    job = cluster.submit("disturbed", *TWO_BY_TWO)

    def steps_done(count: int) -> None:
        before = cluster.steps("disturbed")
        cluster.wait(lambda: cluster.steps("disturbed") >= before + count, job)

    steps_done(5)
    # Slurm looks every 30 s and counts in minutes: with two, the signal 60 s before the limit is soon
    minutes_used = int(cluster.run("squeue", "-h", "-j", job, "-o", "%M").strip().split(":")[-2])
    cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes_used + 2}")
    cluster.wait(lambda: len(cluster.ends("disturbed")) == 1, job)
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=120")
    steps_done(3)
    cluster.run("scancel", "--signal=TERM", job)
    cluster.wait(lambda: len(cluster.ends("disturbed")) == 2, job)
    steps_done(6)
    stopped = cluster.lose("n2")
    assert sum("swirl_nemo" in process.cmdline() for process in stopped) >= 2  # writers of a checkpoint, too
    cluster.wait(lambda: cluster.state(job) != "RUNNING", job)
    cluster.bring_back("n2", stopped)
    cluster.ended(job)

    told = [(end["outcome"], end["code"]) for end in cluster.ends("disturbed")]
    assert told == [("saved", 0), ("saved", 0), ("killed", None), ("finished", 0)]
    assert {end["job"] for end in cluster.ends("disturbed")} == {job}
    assert cluster.difference("whole", "disturbed") is None
    shown = cluster.swirl("status", str(cluster.path("disturbed")))
    assert f"job {job}: killed at iteration 1" in shown and "tokens/s" in shown and "finished  yes" in shown


def test_an_array_trains_a_run_a_seed(cluster):
    job = cluster.submit("array", "--seeds", "3,5", "alternation.iterations=0", "alternation.baselines=[]")
    cluster.ended(job)
    for seed in (3, 5):
        run = cluster.path(f"array-seed{seed}")
        (end,) = cluster.ends(run.name)
        assert (end["outcome"], end["job"]) == ("finished", f"{job}_{seed}")
        assert json.loads((run / "summary.json").read_text())["seed"] == seed
        assert (run / "slurm" / f"{job}_{seed}.log").exists()
    assert cluster.difference("array-seed3", "array-seed5") is not None


def test_a_run_that_fails_three_times_at_the_same_step_is_not_requeued_any_more(cluster):
    """Its process is killed, as by a kernel without memory, whenever it is there."""
    kill = "pkill -KILL -f '^[^ ]*python -m swirl_nemo train .*run.name=stuck'"
    loop = f"while kill -0 $$ 2>/dev/null && sleep 0.2; do {kill}; done &"
    job = cluster.submit("stuck", f'cluster.slurm.setup=["{loop}"]')
    cluster.ended(job)
    told = [(end["outcome"], end["code"], end["at"]) for end in cluster.ends("stuck")]
    assert told == [("failed", 137, "the start")] * 3
    last = "failed 3 times in a row at the start (exit codes 137, 137, 137): not requeued any more"
    assert cluster.log(job).rstrip().endswith(last)


def test_a_node_without_room_is_named_before_training_in_under_two_minutes(cluster):
    """The second node's runs lie on a file system of its own, of 1 MB."""
    subprocess.run(["pkill", "-KILL", "-f", "slurmd -N n2"], check=True)
    cluster.path("").mkdir(exist_ok=True)
    alone = f"mount -t tmpfs -o size=1m none {cluster.path('')} && slurmd -N n2"
    subprocess.run(["unshare", "--mount", "sh", "-c", alone], env=cluster.env, check=True)
    begun = time.monotonic()
    job = cluster.submit("small", *TWO_BY_TWO)
    cluster.ended(job)
    assert time.monotonic() - begun < 120
    (told,) = [line for line in cluster.log(job).splitlines() if line.startswith("swirl: preflight:")]
    assert told.startswith("swirl: preflight: n2: 0.0 GB of disk at ") and told.endswith("free, not 2")
    (end,) = cluster.ends("small")
    assert (end["outcome"], end["during"]) == ("stopped", "preflight") and cluster.steps("small") == 0
