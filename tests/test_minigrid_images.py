"""MiniGrid in pictures: what is drawn against MiniGrid's own picture, and a collection's files."""

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from collected import read, splits
from PIL import Image

from swirl_nemo.collection import CollectConfig, collect
from swirl_nemo.settings import compose
from swirl_nemo.worlds.minigrid import MOVES, load, parse_state
from swirl_nemo.worlds.minigrid_images import MiniGridImages

COUNTS = {"labelled": 12, "unlabelled": 30, "validation": 6, "test": 8, "test_combinations": 0, "test_tasks": 0}


def configure(out: Path, *overrides: str) -> CollectConfig:
    counts = [f"world.{split}={rows}" for split, rows in COUNTS.items()]
    counts += ["world.tasks=[Fetch-6x6-N2,DoorKey-5x5]", "world.held_out_tasks=0", "processes=1"]
    return compose(["world=minigrid_images", f"out={out}", *counts, *overrides], "collect", CollectConfig)


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("minigrid", reason="needs swirl-nemo[worlds]")
    return MiniGridImages(configure(Path("unused")).world)


def test_a_picture_is_minigrid_s_own(world):
    for seed in range(5):
        rng = Random(seed)
        state = world.reset("DoorKey-5x5", rng)
        for _ in range(4):
            state = world.step(state, world.sample_action(state, rng))
        picture = world.picture(world.render(state))
        assert picture.shape == (72, 64, 3) and picture.dtype == np.uint8
        env = load(state)
        assert (picture[:40, :40] == env.get_frame(highlight=False, tile_size=8)).all()
        assert not picture[:, 40:].any() and not picture[40:64].any()


def test_what_is_held_is_seen_below_the_grid(world):
    text = "agent b3\nfacing south\nahead b4\nkey yellow b2\ngoal d4\ncorner e5"
    held = text.replace("yellow b2", "yellow held")
    there, carried = world.picture(text), world.picture(held)
    assert not there[64:].any() and (carried[64:, :8] == there[16:24, 8:16]).mean() > 0.7, "but for the cell's edges"
    changed = (there != carried).any(-1)
    assert changed[16:24, 8:16].any() and changed[64:, :8].any() and changed.sum() < 128
    assert load(parse_state(held)).carrying.type == "key"


def test_rooms_that_the_canvas_cannot_hold_are_named(world):
    config = configure(Path("unused"), "world.columns=5").world
    with pytest.raises(ValueError, match=r"world\.columns=5, world\.rows=8: Fetch-6x6-N2 has 6 columns"):
        MiniGridImages(config).check()
    world.check()


@pytest.mark.slow
def test_collected_rows_name_pictures(world, tmp_path):
    collect(configure(tmp_path, "history=2"))
    rows = [row for found in splits(tmp_path, {k: v for k, v in COUNTS.items() if v}).values() for row in found]
    names = {row[key]["image"] for row in rows for key in ("x", "y")}
    pictures = {name: np.asarray(Image.open(tmp_path / name)) for name in names}
    assert {picture.shape for picture in pictures.values()} == {(72, 64, 3)}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(names), "a picture for each state"
    for row in rows:
        x, y = (pictures[row[key]["image"]].reshape(9, 8, 8, 8, 3) for key in ("x", "y"))
        assert 1 <= (x != y).any(axis=(1, 3, 4)).sum() <= 6, "an action changes few cells"
        assert set(row["z"].split()) <= set(MOVES)
        assert len(row["history"]) == min(row["t"], 2) and all(
            (tmp_path / h["image"]).is_file() for h in row["history"]
        )
    for one, two in pairwise(read(tmp_path / "test_episodes.jsonl")):
        if (one["episode"], one["t"] + 1) == (two["episode"], two["t"]):
            assert two["history"] == [*one["history"], one["x"]][-2:]
