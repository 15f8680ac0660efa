"""The other processes of a bench on several: each does the same steps, and waits in the collectives of the first.

python -m swirl_nemo.bench.crew TASK_JSON     # started by `swirl bench processes=N`
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import work
from .config import BenchConfig


@contextmanager
def crew(cfg: BenchConfig, place: Path, rows: list[dict[str, str]], instruction: str) -> Iterator[None]:
    """Within, this process is the first of cfg.processes, and the others are started."""
    if cfg.processes == 1:
        yield
        return
    task = place / "crew.json"
    task.write_text(json.dumps({"cfg": vars(cfg), "place": str(place), "rows": rows, "instruction": instruction}))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}
    size = {"WORLD_SIZE": str(cfg.processes), "LOCAL_WORLD_SIZE": str(cfg.processes)}

    def environment(rank: int) -> dict[str, str]:
        return address | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)}

    command = [sys.executable, "-W", "ignore", "-m", __name__, str(task)]
    others = [subprocess.Popen(command, env=os.environ | environment(rank)) for rank in range(1, cfg.processes)]
    os.environ.update(environment(0))
    try:
        yield
    except BaseException:
        for process in others:
            process.kill()
        raise
    finally:
        for process in others:
            process.wait()


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    cfg = BenchConfig(**task["cfg"])
    session = work.open_session(cfg, Path(task["place"]), task["instruction"])
    for _ in work.steps(session, cfg, task["rows"]):
        pass
    os._exit(0)  # at once: the first process may be gone before the groups would be


if __name__ == "__main__":
    main()
