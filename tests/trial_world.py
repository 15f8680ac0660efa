"""A world whose simulator crashes and hangs when it is told to.

The environment tells it, not the configuration, so that one configuration is collected disturbed and undisturbed.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.worlds import World, WorldConfig

VARIABLE = "TRIAL_WORLD"  # {"folder": for its notes, kind of trouble: on which tasks, how often or how long}
THINGS = ("apple", "bread", "cheese")
SPLITS = {"labelled": 20, "unlabelled": 60, "validation": 10, "test": 20, "test_tasks": 12, "test_combinations": 0}


@dataclass
class TrialConfig(WorldConfig):
    most: int = 9  # of each thing that the shelf takes


class Trial(World[TrialConfig]):
    """A shelf with some of each thing; one more is put there, unless there are as many as it takes."""

    name = "trial"
    settings = TrialConfig

    def tasks(self) -> list[str]:
        return [f"shelf {number}" for number in range(8)]

    def reset(self, task: str, rng: Random) -> tuple[str, dict[str, int]]:
        misbehave(task, rng.getrandbits(40))
        return task, {thing: rng.randrange(self.config.most) for thing in THINGS}

    def legal_actions(self, state: tuple[str, dict[str, int]]) -> list[str]:
        return [f"put {thing}" for thing in THINGS]

    def step(self, state: tuple[str, dict[str, int]], action: str) -> tuple[str, dict[str, int]]:
        (task, counts), thing = state, action.removeprefix("put ")
        return task, counts | {thing: min(counts[thing] + 1, self.config.most)}

    def render(self, state: tuple[str, dict[str, int]]) -> str:
        task, counts = state
        return "\n".join([task, *(f"{thing} {count}" for thing, count in counts.items())])


def misbehave(task: str, episode: int) -> None:
    told = json.loads(os.environ.get(VARIABLE, "{}"))
    if not told:
        return
    folder = Path(told["folder"])
    note(folder / "played", str(episode))
    first = claimed(folder / str(episode))
    if task in told.get("raises", ()):
        raise RuntimeError("the simulator\nis cross")
    if task in told.get("crashes", ()) or (task in told.get("crashes_once", ()) and first):
        note(folder / "left", str(subprocess.Popen(["sleep", "600"]).pid))
        os._exit(3)
    if any(claimed(folder / f"hang {number}") for number in range(told.get("hangs", 0))):
        child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        own = [
            subprocess.Popen(["sleep", "600"], **how).pid for how in ({"process_group": 0}, {"start_new_session": True})
        ]
        note(folder / "hung", f"{os.getpid()} {child.pid} {child.stdout.readline().strip()} {own[0]} {own[1]}")
        time.sleep(600)
    time.sleep(told.get("seconds", 0))


def claimed(path: Path) -> bool:
    """Whether this is the first call on that path, of any process."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def configure(out: Path, **changes) -> CollectConfig:
    settings = {"episode_steps": 4, "episode_seconds": 5.0, "gold": 0.0, "max_episodes": 300}
    settings |= {"held_out_combinations": 0, "held_out_tasks": 2, "label_pool": 0, "unseen_states": False}
    world = TrialConfig(**{"name": "trial", **SPLITS, **settings, **changes})
    return CollectConfig(seed=0, out=str(out), processes=2, history=0, vocabulary=300, world=world)


if __name__ == "__main__":
    from trial_world import configure as importable  # the simulators' processes look for the class under its own module

    collect(importable(Path(sys.argv[1])))
