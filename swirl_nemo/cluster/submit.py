"""`swirl submit`: a run's settings to a batch script for Slurm, and the script to the scheduler.

slurm/swirl.sbatch is the script, a template: what Slurm does with it, and when, is docs/slurm.md.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2

from ..checks import check, check_files, check_machine, check_training
from ..config import ClusterConfig, ContainerConfig, Runtime, SlurmConfig, SwirlConfig
from ..kernels import sees_gpu
from ..runs import check_settings
from ..settings import compose, shipped
from . import attempts

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)")
_SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def submit(overrides: list[str], *, seeds: str | None = None, dry_run: bool = False) -> list[str]:
    """Give the run to Slurm; lines that say what was done. With `dry_run`, the script is all that is made.

    seeds: "1-3" or "1,4,7": a job array, a task a seed, each with a run of its own, {run.name}-seedN.

    Raises ValueError, one line: settings that `swirl train` would refuse, or that Slurm does.
    """
    cfg = compose(overrides)
    check(cfg, cfg.cluster.nodes * cfg.cluster.devices)
    numbers = _numbers(seeds) if seeds else []
    script = render(cfg, overrides, seeds)
    if dry_run:
        return script.splitlines()
    check_training(cfg)
    if cfg.cluster.slurm.container.runtime is Runtime.none and sees_gpu():
        check_machine(cfg)  # else this machine is not as the nodes are: a job's own `swirl train` says so
    check_files(cfg)
    folder = Path(cfg.run.root, cfg.run.name)
    runs = {seed: folder.with_name(f"{folder.name}-seed{seed}") for seed in numbers} or {None: folder}
    if not seeds:
        check_settings(cfg)
    if shutil.which("sbatch") is None:
        raise ValueError("swirl submit: no sbatch here: run it on a machine of the cluster, or see it with --dry-run")
    for run in runs.values():
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        (run / "slurm" / "swirl.sbatch").write_text(script)
    jobs = _sbatch(next(iter(runs.values())) / "slurm" / "swirl.sbatch", cfg.cluster.slurm.chain)
    lines = []
    for seed, run in runs.items():
        ids = [job if seed is None else f"{job}_{seed}" for job in jobs]
        attempts.write(run, event="submitted", jobs=ids)
        log = run / "slurm" / f"{ids[0]}.log"
        lines += [f"job {', '.join(ids)}: {run}", f"  log     {log}", f"  follow  tail -F {log}"]
        lines += [f"  state   swirl status {run}"]
    return lines


def render(cfg: SwirlConfig, overrides: list[str], seeds: str | None = None) -> str:
    """The batch script of a run.

    Raises ValueError, one line, for values under cluster.slurm that no job can have.
    """
    cluster, slurm = cfg.cluster, cfg.cluster.slurm
    check_slurm(cluster)
    given = [shlex.quote(override) for override in overrides]
    if seeds:
        task = '"$SLURM_ARRAY_TASK_ID"'
        given += [f"run.seed={task}", f"{shlex.quote(f'run.name={cfg.run.name}')}-seed{task}"]
    container = f"{container_options(slurm.container)} ".lstrip()
    return _template().render(
        command=shlex.join(["swirl", "submit", *(["--seeds", seeds] if seeds else []), *overrides]),
        options=sbatch_options(cfg, seeds),
        setup=slurm.setup,
        environment=[_assignment(text) for text in _environment(slurm)],
        run=shlex.quote(str(Path(cfg.run.root, cfg.run.name))),
        seeds=bool(seeds),
        # outside a container Python is there without srun; inside, it takes a task of one node to enter it
        alone=f"srun --nodes=1 --ntasks=1 {container}" if container else "",
        container=container,
        python="python" if container else shlex.quote(sys.executable),
        overrides=" ".join(given),
        max_failures=slurm.max_failures,
        chain=slurm.chain,
    )


def sbatch_options(cfg: SwirlConfig, seeds: str | None) -> list[str]:
    cluster, slurm = cfg.cluster, cfg.cluster.slurm
    folder = str(Path(cfg.run.root, cfg.run.name)).replace("%", "%%")
    log = f"{folder}-seed%a/slurm/%A_%a.log" if seeds else f"{folder}/slurm/%j.log"
    options = {
        "job-name": f"swirl-{cfg.run.name}",
        "account": slurm.account,
        "partition": slurm.partition,
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.devices,
        "gpus-per-node": cluster.devices if cluster.backend == "nccl" else None,
        "time": slurm.time,
        "signal": f"TERM@{slurm.signal_seconds}",
        "array": seeds,
        "chdir": Path.cwd(),
        "output": log,
        "open-mode": "append",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return [*lines, "--requeue", *slurm.options]


def container_options(container: ContainerConfig) -> str:
    """What stands between srun and a command, so that it runs in the container; the working directory is mounted."""
    here = f"{Path.cwd()}:{Path.cwd()}"
    mounts = ",".join([here, *container.mounts])
    if container.runtime is Runtime.none:
        return ""
    if container.runtime is Runtime.pyxis:
        options = {"container-image": container.image, "container-mounts": mounts, "container-workdir": Path.cwd()}
        return " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in options.items())
    words = ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(Path.cwd()), container.image]
    return shlex.join(words)


def check_slurm(cluster: ClusterConfig) -> None:
    """Raises ValueError, one line, for values that no job can have."""
    slurm = cluster.slurm
    limit = seconds(slurm.time)
    if slurm.signal_seconds < 1 or slurm.signal_seconds >= limit:
        raise ValueError(
            f"cluster.slurm.signal_seconds={slurm.signal_seconds}: it must be over 0 and under cluster.slurm.time "
            f"({limit} s): give a longer time, or seconds that a step and a checkpoint take"
        )
    for name in ("chain", "max_failures"):
        if getattr(slurm, name) < 1:
            raise ValueError(f"cluster.slurm.{name}={getattr(slurm, name)}: out of range: it must be 1 or more")
    container = slurm.container
    if (container.runtime is Runtime.none) != (container.image is None):
        raise ValueError(
            f"cluster.slurm.container.runtime={container.runtime.value} with image={container.image}: "
            "give an image with pyxis or apptainer, and none without"
        )
    for value in (slurm.account, slurm.partition, *slurm.options, *slurm.setup):
        if value is not None and (not value.strip() or "\n" in value):
            raise ValueError(f"cluster.slurm: {value!r} is no single line: give one")


def seconds(limit: str) -> int:
    """Of Slurm's HH:MM:SS or D-HH:MM:SS. Raises ValueError, one line, for another form."""
    match = _TIME.fullmatch(limit)
    if match is None:
        raise ValueError(f'cluster.slurm.time={limit}: no time of a job: give "HH:MM:SS" or "D-HH:MM:SS", in quotes')
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _numbers(seeds: str) -> list[int]:
    if _SEEDS.fullmatch(seeds) is None:
        raise ValueError(f"--seeds {seeds}: no list of seeds: give 1-3 or 1,4,7")
    spans = [[int(end) for end in part.split("-")] for part in seeds.split(",")]
    return sorted({seed for span in spans for seed in range(span[0], span[-1] + 1)})


def _environment(slurm: SlurmConfig) -> list[str]:
    return [*slurm.environment, *([f"SWIRL_IMAGE={slurm.container.image}"] if slurm.container.image else [])]


def _assignment(text: str) -> str:
    """For a shell. Raises ValueError, one line, where it is no NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not (name.isascii() and name.isidentifier()):
        raise ValueError(f"cluster.slurm.environment: {text!r} is no NAME=VALUE: give that")
    return f"{name}={shlex.quote(value)}"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(shipped("slurm"))
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options).get_template("swirl.sbatch")


def _sbatch(script: Path, chain: int) -> list[str]:
    """Job numbers, of `chain` jobs of which each waits for the one before."""
    jobs: list[str] = []
    for _ in range(chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        done = subprocess.run(["sbatch", "--parsable", *after, str(script)], capture_output=True, text=True)
        if done.returncode:
            told = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
            given = f"; submitted before: {', '.join(jobs)}" if jobs else ""
            raise ValueError(f"sbatch: {told}{given}: see cluster.slurm in the settings, and {script}")
        jobs.append(done.stdout.strip().partition(";")[0])
    return jobs
