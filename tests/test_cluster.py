"""Batch scripts, the record of a run's jobs, what a preflight finds, and a status: without a scheduler.

test_slurm.py has the same on a real one. Here preflights are real processes; nvidia-smi, where there is one, is a
stand-in, since no machine of these tests has a GPU.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swirl_nemo.cluster import attempts
from swirl_nemo.cluster.preflight import Report, faults
from swirl_nemo.cluster.status import status
from swirl_nemo.cluster.submit import submit
from swirl_nemo.settings import compose

ROOT = Path(__file__).parent.parent
TWO_NODES = ("experiment=quickstart", "cluster.nodes=2", "cluster.devices=2")
GPUS = ("cluster=dgx_h100", "cluster.nodes=2", "phase.idm.prompts=32", "phase.fwm.prompts=32")


def script(*overrides: str, seeds: str | None = None) -> str:
    return "\n".join(submit(list(overrides), seeds=seeds, dry_run=True)) + "\n"


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]


# batch scripts


def test_a_script_asks_for_a_task_a_device_and_a_signal_before_its_end():
    asked = options(script(*TWO_NODES, "cluster.slurm.account=world", 'cluster.slurm.options=["--qos=high"]'))
    expected = ["nodes=2", "ntasks-per-node=2", "time=04:00:00", "signal=TERM@300", "account=world", "qos=high"]
    assert [option for option in expected if option not in asked] == []
    assert "requeue" in asked and not any("gpus" in option for option in asked)


def test_gpus_are_asked_for_where_nccl_runs_on_them():
    assert "gpus-per-node=8" in options(script(*GPUS))


@pytest.mark.parametrize(
    ("runtime", "image", "expected"),
    [
        (
            "pyxis",
            "nvcr.io#nvidia/nemo:25.02",
            "srun --container-image='nvcr.io#nvidia/nemo:25.02' --container-mounts=",
        ),
        ("apptainer", "swirl.sif", "srun apptainer exec --nv --bind "),
    ],
)
def test_a_container_stands_between_srun_and_python(runtime, image, expected):
    image_given = f"cluster.slurm.container.image='{image}'"
    text = script(
        *GPUS,
        f"cluster.slurm.container.runtime={runtime}",
        image_given,
        'cluster.slurm.container.mounts=["/data:/data"]',
    )
    (everywhere,) = [line for line in text.splitlines() if line.startswith("everywhere()")]
    assert expected in everywhere and f"{Path.cwd()}:{Path.cwd()},/data:/data" in everywhere
    assert "everywhere python -m swirl_nemo train" in text and f"export SWIRL_IMAGE={shlex.quote(image)}" in text
    assert f"attempt() {{ srun --nodes=1 --ntasks=1 {everywhere.partition('srun ')[2].partition(' ')[0]}" in text


@pytest.mark.parametrize("overrides", [TWO_NODES, (*GPUS, 'cluster.slurm.setup=["module load cuda"]')])
@pytest.mark.parametrize("seeds", [None, "1-3,7"])
def test_scripts_are_shell_that_shellcheck_and_bash_accept(overrides, seeds, tmp_path):
    file = tmp_path / "script"
    file.write_text(script(*overrides, "run.name=a b $HOME", seeds=seeds))
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--exclude=SC2016", file], check=True)


def ran(tmp_path: Path, *overrides: str, seeds: str | None = None, **codes: int) -> tuple[int, list[str]]:
    """The script run by bash with stand-ins for the scheduler's commands: its exit code, and what was called.

    codes: what the stand-in for Python returns for preflight, train, begin and end.
    """
    calls, bin_ = tmp_path / "calls", tmp_path / "bin"
    bin_.mkdir(parents=True)
    cases = "".join(f"*' {what}'*) exit {code} ;;\n" for what, code in codes.items())
    bodies = {
        "srun": 'exec "$@"',
        "python": f'echo "python $*" >> {calls}\ncase " $*" in\n{cases}esac',
        "scontrol": f'case "$1 $2" in "show hostnames") printf "n1\\nn2\\n" ;; "show node") echo "NodeAddr=10.0.0.1 x" '
        f';; *) echo "scontrol $*" >> {calls} ;; esac',
    }
    for name, body in bodies.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_ / name).chmod(0o755)
    text = script(*overrides, seeds=seeds).replace(sys.executable, "python")
    env = {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = subprocess.run(["bash", "-c", text], env=env | {"SLURM_ARRAY_TASK_ID": "7"}, cwd=tmp_path)
    return done.returncode, calls.read_text().splitlines()


def test_a_value_reaches_python_as_it_was_given(tmp_path):
    given = 'data.fwm.templates=["it\'s {x} $HOME `id` \\\\"]'
    _, calls = ran(tmp_path, *TWO_NODES, given, end=0)
    assert f"{' '.join(TWO_NODES)} {given}" in calls[2]


def test_a_tasks_seed_and_folder_are_its_own(tmp_path):
    _, calls = ran(tmp_path, *TWO_NODES, "run.name=a b", seeds="7", end=0)
    assert calls[0].split(" ", 3)[3].startswith("begin runs/a b-seed7")
    assert calls[2].endswith("run.seed=7 run.name=a b-seed7")


@pytest.mark.parametrize(
    ("chain", "codes", "code", "last"),
    [
        (1, {"end": 10, "train": 0}, 0, "scontrol requeue 12"),
        (2, {"end": 10, "train": 0}, 0, "--during train --code 0"),
        (1, {"end": 1, "train": 9}, 1, "--during train --code 9"),
        (1, {"end": 1, "preflight": 1}, 1, "--during preflight --code 1"),
        (1, {"begin": 3}, 0, "--limit 3"),
        (1, {"begin": 1}, 1, "--limit 3"),
    ],
)
def test_what_a_job_does_after_its_training(tmp_path, chain, codes, code, last):
    found, calls = ran(tmp_path, *TWO_NODES, f"cluster.slurm.chain={chain}", **codes)
    assert found == code and calls[-1].endswith(last)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["cluster.slurm.time=4h"], 'cluster.slurm.time=4h: no time of a job: give "HH:MM:SS"'),
        (['cluster.slurm.time="00:05:00"'], "cluster.slurm.signal_seconds=300: it must be over 0 and under"),
        (["cluster.slurm.container.runtime=pyxis"], "cluster.slurm.container.runtime=pyxis with image=None"),
        (["cluster.slurm.container.image=x"], "cluster.slurm.container.runtime=none with image=x"),
        (["cluster.slurm.chain=0"], "cluster.slurm.chain=0: out of range"),
        (['cluster.slurm.environment=["A B"]'], "cluster.slurm.environment: 'A B' is no NAME=VALUE"),
        (["parallel.tensor=3"], "parallel.tensor=3"),
    ],
)
def test_what_no_job_can_have_is_one_line(overrides, told):
    with pytest.raises(ValueError) as error:
        script(*TWO_NODES, *overrides)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("gpu", "image", "known"), [(True, None, True), (False, None, False), (True, "a.sqsh", False)])
def test_kernels_are_asked_for_where_the_nodes_are_as_this_machine(monkeypatch, gpu, image, known):
    """With a GPU, pretended, and without a container. Else `swirl train` says what a node lacks. A script can be looked
    at all the same."""
    monkeypatch.setattr("swirl_nemo.cluster.submit.sees_gpu", lambda: gpu)
    wanted = ["experiment=quickstart", "cluster=gpu", "precision=fp8_hybrid", "data.labelled=nowhere"]
    if image:
        wanted += ["cluster.slurm.container.runtime=pyxis", f"cluster.slurm.container.image={image}"]
    assert "precision=fp8_hybrid" in script(*wanted)
    refused = "precision.fp8=hybrid: transformer_engine is not installed" if known else "data.labelled=nowhere: no such"
    with pytest.raises(ValueError, match=f"^{refused}"):
        submit(wanted)


def test_what_no_machine_can_train_is_refused_before_the_queue():
    with pytest.raises(ValueError, match="^precision.fp8_params=true: "):
        submit(["experiment=quickstart", "cluster=gpu", "precision=fp8_hybrid", "precision.fp8_params=true"])


def test_bad_seeds_are_one_line():
    with pytest.raises(ValueError, match="--seeds 1..3: no list of seeds"):
        script(*TWO_NODES, seeds="1..3")


# the record of a run's jobs


def step(run: Path, number: int) -> None:
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1, "phase": "fwm", "step": number, "optimizer_step": number}) + "\n")


def attempt(run: Path, code: int, job: str = "12", during: str = "train") -> tuple[int, int | None]:
    begun = attempts.begin(run, 3, job, "n[1-2]")
    return begun, attempts.end(run, 3, job, during, code) if begun == attempts.GO_ON else None


def test_three_failures_at_one_step_are_the_last(tmp_path, capsys):
    run = tmp_path / "run"
    step(run, 4)
    found = [attempt(run, 1)[1], attempt(run, 137)[1], attempt(run, 1)[1]]
    assert found == [attempts.REQUEUE, attempts.REQUEUE, attempts.STOP]
    assert "failed 3 times in a row at iteration 1 fwm step 4 (exit codes 1, 137, 1)" in capsys.readouterr().err
    assert attempt(run, 0)[0] == attempts.STOP  # a job of the same chain


def test_failures_count_only_in_a_row_at_the_same_step_of_the_same_submission(tmp_path):
    run = tmp_path / "run"
    found = [attempt(run, code)[1] for code in (1, 1, 0, 1, 1)]
    step(run, 5)
    found += [attempt(run, code)[1] for code in (1, 1)]
    assert found == [attempts.REQUEUE] * 7
    attempts.write(run, event="submitted", jobs=["13", "14"])
    assert [attempt(run, 1, job)[1] for job in ("13", "14", "13")] == [attempts.REQUEUE] * 2 + [attempts.STOP]


def test_an_attempt_whose_node_died_is_closed_by_the_next_and_counts(tmp_path):
    run = tmp_path / "run"
    for _ in range(3):
        assert attempts.begin(run, 3, "12", "n1") == attempts.GO_ON
    assert attempts.begin(run, 3, "12", "n1") == attempts.STOP
    assert [event["outcome"] for event in attempts.read(run) if event["event"] == "ended"] == ["killed"] * 3


@pytest.mark.parametrize("file", [attempts.FILE, "metrics.jsonl"])
def test_a_damaged_record_is_one_line_and_the_last_attempt(tmp_path, monkeypatch, capsys, file):
    """A line that was cut at the end is none: its writer died."""
    monkeypatch.setattr(os, "environ", {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1"})
    run = tmp_path / "run"
    step(run, 4)
    assert attempts.main(["begin", str(run), "--limit", "3"]) == attempts.GO_ON
    with (run / file).open("a") as damaged:
        damaged.write('{"cut')
    ended = ["end", str(run), "--limit", "3", "--during", "train", "--code", "1"]
    assert attempts.main(ended) == attempts.REQUEUE and "at iteration 1 fwm step 4" in capsys.readouterr().out
    assert (run / attempts.FILE).read_text().count("\n") == len(attempts.read(run)) == 2, "the cut line has gone"
    with (run / file).open("a") as damaged:
        damaged.write("\n{}\n")
    assert attempts.main(ended) == attempts.STOP
    said = capsys.readouterr().err
    assert f"{file}:" in said and "not a line of JSON" in said and said.count("\n") == 1


def test_a_mistake_of_the_user_and_a_bad_node_are_not_tried_again(tmp_path):
    assert attempt(tmp_path / "one", 2)[1] == attempts.STOP
    assert attempt(tmp_path / "two", 1, during="preflight")[1] == attempts.STOP
    assert attempt(tmp_path / "three", 143, during="preflight")[1] == attempts.REQUEUE


def test_a_run_is_finished_when_its_summary_is_written_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text("of an earlier, shorter run")
    assert attempt(run, 0)[1] == attempts.REQUEUE
    assert attempts.begin(run, 3, "12", "n1") == attempts.GO_ON
    os.utime(run / "summary.json", ns=(1, 1))
    assert attempts.end(run, 3, "12", "train", 0) == attempts.GO_ON
    assert attempts.begin(run, 3, "12", "n1") == attempts.NOTHING_TO_DO


def test_attempts_import_nothing_but_the_standard_library():
    code = "import sys, swirl_nemo.cluster.attempts; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert not {"torch", "hydra", "omegaconf", "typer"} & set(eval(loaded))


# preflight


def report(**changes) -> Report:
    devices = [("550.54", 79.0, "0")] * 8
    return Report(**({"free_memory_gb": 900.0, "free_disk_gb": 5000.0, "clock": 1e9, "devices": devices} | changes))


GOOD = ("550.54", 79.0, "0")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"free_memory_gb": 10.0}, "10.0 GB of host memory free, not 64"),
        ({"free_disk_gb": 1.0}, "1.0 GB of disk at runs free, not 100"),
        ({"clock": 1e9 + 7}, "its clock is +7.0 s off the others'"),
        ({"devices": [GOOD] * 7}, "7 GPUs, not 8"),
        ({"devices": []}, "0 GPUs, not 8"),
        ({"devices": [GOOD] * 7 + [("550.54", 20.0, "0")]}, "20.0 GB of memory of GPU 7 free, not 70"),
        ({"devices": [GOOD] * 7 + [("550.54", 79.0, "3")]}, "GPU 7 counts 3 uncorrected ECC errors"),
        ({"devices": [("535.1", 79.0, "[N/A]")] + [GOOD] * 7}, "GPU 0 has driver 535.1, not 550.54"),
    ],
)
def test_a_bad_node_is_named_with_what_is_wrong_and_no_other(changes, told):
    cfg = compose([*GPUS])
    reports = {"n1": report(), "n2": report(**changes), "n3": report()}
    assert faults(reports, cfg) == [f"n2: {told}"]


def test_good_nodes_have_no_fault():
    devices = [("550.54", 79.0, "[N/A]")] * 8
    assert faults({"n1": report(), "n2": report(devices=devices, clock=1e9 + 1)}, compose([*GPUS])) == []


def preflights(tmp_path: Path, *ranks: int, world: int = 4, limit: float = 60, stop=None) -> list[tuple[int, str]]:
    """Exit code and standard error of the processes of two nodes, by rank."""
    command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "preflight", f"run.root={tmp_path}"]
    command += [f"cluster.preflight.seconds={limit}", "cluster.preflight.free_memory_gb=0.1"]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 9000)}
    env |= {"SWIRL_NODES": "n1,n2", "WORLD_SIZE": str(world), "PYTHONWARNINGS": "ignore"}
    started = [
        subprocess.Popen(
            command,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank % (world // 2))},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in ranks
    ]
    return [(process.wait(120), process.stderr.read()) for process in started]


@pytest.mark.slow
def test_all_processes_of_good_nodes_pass(tmp_path):
    assert [code for code, _ in preflights(tmp_path, 0, 1, 2, 3)] == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_named_and_nobody_waits_for_it(tmp_path):
    (code, told), (other, _) = preflights(tmp_path, 0, 1, limit=20)
    assert (code, other) == (1, 1)
    assert told == "swirl: preflight: n2: no answer: it did not start, or cannot reach n1\n"


@pytest.mark.slow
def test_a_process_that_is_missing_from_a_collective_is_named_with_its_node(tmp_path):
    found = preflights(tmp_path, 0, 1, 2, limit=25)
    assert [code for code, _ in found] == [1, 1, 1]
    (told,) = [line for line in found[0][1].splitlines() if line.startswith("swirl: preflight")]
    assert told == "swirl: preflight: n2: collective within its node: rank 3: does not answer"


# status


def test_status_shows_step_speed_metrics_and_attempts(tmp_path):
    run = tmp_path / "run"
    attempt(run, 0)
    line = {"iteration": 1, "phase": "fwm", "step": 7, "optimizer_step": 27, "loss": 0.5, "tokens_per_s/train": 700.4}
    held_out = {"eval": True, "split": "test", "model": "swirl", "iteration": 1, "fwm/exact_match": 0.25, "phase": "x"}
    last = {"iteration": 1, "phase": "continued_sft", "role": "idm", "step": 7, "optimizer_step": 27, "loss": 0.5}
    lines = [json.dumps(record) for record in (line, held_out, last)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    shown = dict(text.split(maxsplit=1) for text in status(run))
    assert (
        shown["at"] == "iteration 1 · continued_sft idm · step 7 · optimizer step 27"
        and shown["tokens/s"] == "train 700"
    )
    assert shown["attempt"].endswith("job 12: saved at the start, train ended with code 0")
    assert "fwm/exact_match 0.250" in "".join(status(run)) and shown["finished"] == "no"


def test_status_of_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no run's folder"):
        status(tmp_path)


# signals


def test_a_second_sigterm_does_not_end_a_process_that_leaves(tmp_path):
    """Python puts a handler of its own back to the default before it has ended. What an earlier job told goes."""
    code = (
        "import os, pathlib, signal; from swirl_nemo.interrupt import Interrupt;"
        f"told = pathlib.Path('{tmp_path / '3.txt'}'); told.touch();"
        "asked = Interrupt(told, 60); assert not told.exists();"
        "os.kill(os.getpid(), signal.SIGTERM); signal.raise_signal(signal.SIGTERM);"
        "assert asked._asked and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT).returncode == 0


def test_a_process_that_does_not_stop_tells_where_it_is(tmp_path):
    """Its main thread is in C, for good, where no handler of Python's runs."""
    stacks, code = tmp_path / "stuck" / "3.txt", (
        "import ctypes, os, pathlib, signal, sys, threading; from swirl_nemo.interrupt import Interrupt\n"
        "threading.Timer(12, os._exit, (1,)).start()\n"
        "def a_collective():\n"
        "    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
        "    lock(mutex), os.kill(os.getpid(), signal.SIGTERM), lock(mutex)\n"
        "signal.signal(signal.SIGUSR1, print)\n"
        "Interrupt(pathlib.Path(sys.argv[1]), 2); os.kill(os.getpid(), signal.SIGUSR1); a_collective()"
    )  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", code, str(stacks)]
    told = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True).stderr
    assert told == f"swirl: asked to stop 2 s ago, and still at work: where, {stacks} says\n"
    assert "in a_collective" in stacks.read_text()
