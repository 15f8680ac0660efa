"""The record of a run's jobs, RUN/slurm/attempts.jsonl, and what a job does when its training ends.

A batch script calls `begin` before and `end` after. Slurm itself starts a job again whose node failed or that was
preempted; one that ended in another way, its own script requeues, if `end` says so. Only the standard library is
imported: a script runs this beside the training and must not wait for the stack.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from ..records import append, read_lines

FILE = Path("slurm", "attempts.jsonl")
GO_ON, STOP, NOTHING_TO_DO, REQUEUE = 0, 1, 3, 10
USERS_ERROR = 2  # of `swirl`: the next attempt would say the same


def read(run: Path) -> list[dict]:
    """All events, the oldest first.

    {"event": "submitted", "jobs": [ID, ...]}; {"event": "began", "job", "nodes"}; {"event": "ended", "job", "code",
    "during", "at", "outcome"}, outcome "finished", "saved", "failed", "stopped" or "killed". All have "time", seconds.
    """
    path = run / FILE
    return read_lines(path) if path.exists() else []


def write(run: Path, **event) -> dict:
    event["time"] = time.time()
    append(run / FILE, event)
    return event


def begin(run: Path, limit: int, job: str, nodes: str) -> int:
    """GO_ON; NOTHING_TO_DO where an earlier job of the chain finished the run; STOP where jobs failed too often."""
    events = read(run)
    last = events[-1] if events else {}
    if last.get("event") == "began":  # its node died, or the scheduler killed it: nobody wrote its end
        ended = {"event": "ended", "job": last["job"], "code": None, "during": "train"}
        events.append(write(run, **ended, at=place(run), outcome="killed"))
    ours = ended_attempts(events, job)
    if any(event["outcome"] == "finished" for event in ours):
        return _say(run, "finished already", NOTHING_TO_DO)
    if any(event["outcome"] == "stopped" for event in ours) or failures(ours) >= limit:
        return _say(run, _given_up(ours), STOP)
    write(run, event="began", job=job, nodes=nodes, summary=_summary(run))
    return GO_ON


def end(run: Path, limit: int, job: str, during: str, code: int) -> int:
    """GO_ON where the run is finished, REQUEUE where another attempt should follow, STOP where none should."""
    events = read(run)
    finished = code == 0 and _summary(run) != next(e["summary"] for e in reversed(events) if e["event"] == "began")
    bad_node = during == "preflight" and code == 1
    outcome = "finished" if finished else "saved" if code == 0 else "failed"
    if code == USERS_ERROR or bad_node:
        outcome = "stopped"
    event = {"event": "ended", "job": job, "code": code, "during": during}
    events.append(write(run, **event, at=place(run), outcome=outcome))
    if outcome == "finished":
        return _say(run, "finished", GO_ON)
    if outcome == "saved":
        return _say(run, f"saved at {place(run)}: goes on in another job", REQUEUE)
    if outcome == "stopped":
        mend = "submit without that node (--exclude)" if bad_node else "mend what it says above, then submit again"
        return _say(run, f"{during} ended with code {code}: not requeued: {mend}", STOP)
    if failures(ended_attempts(events, job)) >= limit:
        return _say(run, _given_up(ended_attempts(events, job)), STOP)
    return _say(run, f"{during} ended with code {code} at {place(run)}: tried again in another job", REQUEUE)


def ended_attempts(events: list[dict], job: str) -> list[dict]:
    """Ends of the attempts of `job` and of the jobs that were submitted with it."""
    together = next((e["jobs"] for e in events if e["event"] == "submitted" and job in e["jobs"]), [job])
    return [event for event in events if event["event"] == "ended" and event["job"] in together]


def failures(ended: list[dict]) -> int:
    """How many attempts, the last ones in a row, failed or were killed at one and the same step."""
    count = 0
    for event in reversed(ended):
        if event["outcome"] not in ("failed", "killed") or event["at"] != ended[-1]["at"]:
            break
        count += 1
    return count


def place(run: Path) -> str:
    """The last step whose line of metrics is whole, as "iteration 1 fwm step 7"; "the start" before any."""
    path = run / "metrics.jsonl"
    for record in reversed(read_lines(path) if path.exists() else []):
        if not record.get("eval"):
            return " ".join(f"iteration {record['iteration']} {record['phase']} step {record['step']}".split())
    return "the start"


def _given_up(ended: list[dict]) -> str:
    last = ended[-1]
    if last["outcome"] == "stopped":
        return f"{last['during']} ended with code {last['code']}: not tried again: mend that, then submit again"
    codes = ", ".join("killed" if e["code"] is None else str(e["code"]) for e in ended[-failures(ended) :])
    return f"failed {failures(ended)} times in a row at {last['at']} (exit codes {codes}): not requeued any more"


def _summary(run: Path) -> int | None:
    """When summary.json was written, by the file system's own clock."""
    path = run / "summary.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _say(run: Path, text: str, code: int) -> int:
    print(f"swirl: {run}: {text}", file=sys.stderr if code == STOP else sys.stdout, flush=True)
    return code


def job_id(env) -> str:
    """A job's number; with its task's, in an array: what squeue shows and scontrol takes."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--limit", type=int, required=True, help="failures in a row at one step")
    parser.add_argument("--during", help="the part that ended: preflight or train")
    parser.add_argument("--code", type=int, help="and its exit code")
    asked = parser.parse_args(arguments)
    job = job_id(os.environ)
    try:
        if asked.what == "begin":
            return begin(asked.run, asked.limit, job, os.environ["SLURM_JOB_NODELIST"])
        return end(asked.run, asked.limit, job, asked.during, asked.code)
    except ValueError as error:  # a damaged line of the run's records
        return _say(asked.run, str(error), STOP)


if __name__ == "__main__":
    sys.exit(main())
