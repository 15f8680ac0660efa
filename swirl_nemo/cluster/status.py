"""`swirl status RUN`: where a run is, from its folder and the scheduler."""

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

from ..records import read_lines
from . import attempts

_FIELDS = "%T|%r|%N|%M|%L"


def status(run: Path) -> list[str]:
    """What is known, a line each. Raises ValueError where the folder is no run's."""
    metrics = run / "metrics.jsonl"
    records, events = read_lines(metrics) if metrics.exists() else [], attempts.read(run)
    if not records and not events and not (run / "config.yaml").exists():
        raise ValueError(f"{run}: no run's folder: give one that swirl train or swirl submit made, such as runs/latest")
    steps = [record for record in records if not record.get("eval")]
    held_out = [record for record in records if record.get("eval")]
    found = [
        ("run", str(run.resolve())),
        *[("job", f"{job} {_state(job)}") for job in _jobs(events)],
        *(_step(steps) if steps else [("at", attempts.place(run))]),
        *([("held out", _held_out(held_out[-1]))] if held_out else []),
        *[("attempt", _attempt(event)) for event in events if event["event"] == "ended"],
        ("finished", "yes" if (run / "summary.json").exists() else "no"),
    ]
    return [f"{what:<9} {text}" for what, text in found]


def _jobs(events: list[dict]) -> list[str]:
    """Those submitted last; or, of a script that was submitted by hand, the last that began."""
    submitted = [event["jobs"] for event in events if event["event"] == "submitted"]
    began = [[event["job"]] for event in events if event["event"] == "began"]
    return (submitted or began or [[]])[-1]


def _state(job: str) -> str:
    if shutil.which("squeue") is None:
        return "(no squeue here)"
    command = ["squeue", "--noheader", f"--jobs={job}", f"--format={_FIELDS}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        return "not in the queue any more"
    state, reason, nodes, used, left = done.stdout.splitlines()[0].split("|")
    return f"{state} on {nodes}, {used} used, {left} left" if nodes else f"{state} ({reason})"


def _step(steps: list[dict]) -> list[tuple[str, str]]:
    """Of the last; supervised steps count no tokens, so speeds are the last phase's."""
    record = steps[-1]
    speeds = next(filter(None, (_numbers(step, "tokens_per_s/") for step in reversed(steps))), [])
    shown = ("loss", "reward/mean", "kl/reference", "grad_norm", "drift/max", "seconds/step")
    figures = [f"{name} {value:.4g}" for name, value in _numbers(record, "") if name in shown]
    place = f"iteration {record['iteration']} · {record['phase']} {record.get('role', '')}".rstrip()
    return [
        ("at", f"{place} · step {record['step']} · optimizer step {record['optimizer_step']}"),
        *(
            [("tokens/s", " · ".join(f"{name.partition('/')[2]} {value:.0f}" for name, value in speeds))]
            if speeds
            else []
        ),
        ("metrics", " · ".join(figures)),
    ]


def _held_out(record: dict) -> str:
    figures = [f"{name} {value:.3f}" for name, value in _numbers(record, "") if name.endswith("exact_match")]
    return f"{record['split']} · {record['model']} · " + " · ".join(figures)


def _numbers(record: dict, prefix: str) -> list[tuple[str, float]]:
    return [(key, value) for key, value in record.items() if key.startswith(prefix) and isinstance(value, int | float)]


def _attempt(event: dict) -> str:
    when = datetime.fromtimestamp(event["time"]).strftime("%m-%d %H:%M:%S")
    code = "" if event["code"] is None else f", {event['during']} ended with code {event['code']}"
    return f"{when} job {event['job']}: {event['outcome']} at {event['at']}{code}"
