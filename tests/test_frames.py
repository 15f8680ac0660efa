"""Pictures drawn in the report, and those that a benchmark's items are answered with, against the tokenizer itself."""

import base64
import io
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from swirl_nemo.config import Tokens
from swirl_nemo.data.images.characters import image_codes, image_text, readable
from swirl_nemo.data.images.vqvae import Shape, VqVae
from swirl_nemo.evaluation import benchmarks
from swirl_nemo.evaluation.frames import strips
from swirl_nemo.evaluation.suites.base import Item, Step
from swirl_nemo.evaluation.suites.generation import Refused, Request

CODES = {"x": [0, 1, 2, 3, 4, 5], "y": [0, 1, 2, 3, 4, 0], "wrong": [5, 5, 5, 5, 5, 5]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> tuple[VqVae, str]:
    """One of random weights, 2 x 3 codes of 4 x 4 pixels, and its folder."""
    torch.manual_seed(0)
    model = VqVae(Shape((8, 12), 4, 8, 4, 6, 0)).eval()
    model.codebook.normal_()
    folder = tmp_path_factory.mktemp("vqvae")
    model.save(folder)
    return model, str(folder)


def pixels(model: VqVae, codes: list[int]) -> np.ndarray:
    return model.decode(torch.tensor([codes]))[0].numpy()


def shown(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def sample(stage: str, prediction: str, role: str = "fwm") -> dict:
    x, y = (readable(image_text(CODES[name])) for name in "xy")
    return {
        **{"stage": stage, "role": role, "x": x, "z": "left", "y": y, "prompt": x, "target": y},
        **{"prediction": prediction, "correct": prediction == y},
    }


def test_frames_stand_side_by_side(tokenizer):
    model, folder = tokenizer
    right, wrong = (readable(image_text(CODES[name])) for name in ("y", "wrong"))
    rows = [sample("test, warmup", wrong), sample("test, warmup", "left", role="idm"), sample("test, swirl", right)]
    rows += [sample("warmup, iteration 0", wrong), sample("rolled forward, swirl", right)]
    found = strips(rows, {"data": {"image_tokenizer": folder, "image_size": None}})
    assert list(found) == ["Next frames", "Rolled forward on its own predictions"]
    (strip,) = found["Next frames"]
    assert strip.action == "left"
    for url, name in ((strip.before, "x"), (strip.truth, "y"), (strip.predictions["warmup"][0], "wrong")):
        assert np.array_equal(shown(url), pixels(model, CODES[name]))
    assert strip.predictions["warmup"][1] is False and strip.predictions["swirl"] == (strip.truth, True)
    (rolled,) = found["Rolled forward on its own predictions"]
    assert rolled.predictions == {"warmup": None, "swirl": (strip.truth, True)}


def test_another_tokenizer_is_one_line(tokenizer):
    row = sample("test, swirl", "a") | {"y": readable(image_text([0, 1, 2, 3, 4, 6]))}
    with pytest.raises(ValueError, match=r"^data.image_tokenizer: draws 2 x 3 of 6 codes, which .* is not: give .*$"):
        strips([row], {"data": {"image_tokenizer": tokenizer[1], "image_size": None}})


def test_runs_on_text_and_runs_without_a_tokenizer_have_no_frames(tokenizer):
    text = sample("test, swirl", "a") | {"x": "a", "y": "b"}
    assert strips([text], {}) == {}
    row = sample("test, swirl", readable(image_text(CODES["y"])))
    assert strips([row], {"data": {"image_tokenizer": None, "image_size": None}}) == {}


def session_of(folder: str | None) -> SimpleNamespace:
    checked = []
    return SimpleNamespace(
        cfg=SimpleNamespace(
            data=SimpleNamespace(
                image_tokenizer=folder, image_size=None, history=1, fwm=SimpleNamespace(tokens=Tokens.image)
            )
        ),
        prompter=SimpleNamespace(check_image_tokenizer=lambda *given: checked.append(given)),
        checked=checked,
    )


def test_a_picture_is_answered_with_a_picture(tokenizer, monkeypatch):
    """What the FWM reads are codes of the picture, fitted to the tokenizer's size; what it says is drawn."""
    model, folder = tokenizer
    seen = []

    def answers(self, requests):
        seen.extend(requests)
        return [image_text(CODES["wrong"]), Refused("too long")]

    monkeypatch.setattr(benchmarks.TextGenerator, "__call__", answers)
    session = session_of(folder)
    generator = benchmarks.PictureGenerator(session)
    assert session.checked == [(generator._tokenizer, folder)]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    item = Item("1", "part", picture, (Step("left", None),))
    large = Request(item, 0, picture.resize((48, 32), Image.Resampling.NEAREST).convert("RGBA"), "left")
    first, second = generator([Request(item, 0, picture, "left", (picture,)), large])
    assert np.array_equal(np.asarray(first), pixels(model, CODES["wrong"])) and second == Refused("too long")
    expected = model.encode(torch.from_numpy(np.asarray(picture).copy())[None])[0].tolist()
    assert image_codes(seen[0].state) == expected == image_codes(seen[0].history[0])
    assert len(image_codes(seen[1].state)) == 6 and seen[1].history == ()


@pytest.mark.parametrize(("window", "read"), [(0, ()), (1, ("c",)), (2, ("b", "c")), (9, ("a", "b", "c"))])
def test_a_request_shows_the_latest_states_that_the_model_reads(monkeypatch, window, read):
    """And one that is too long is refused, without keeping the others from an answer."""
    asked = []

    def prompt(role, row):
        if row.x == "long":
            raise ValueError("too long")

    session = SimpleNamespace(
        cfg=SimpleNamespace(data=SimpleNamespace(history=window)),
        sets=SimpleNamespace(wear=lambda name: nullcontext()),
        set_of=lambda role: role.name,
        prompt=prompt,
    )
    monkeypatch.setattr(benchmarks, "greedy", lambda session, role, rows: asked.extend(rows) or ["y"] * len(rows))
    item = Item("1", "part", "x", (Step("left", None),))
    requests = [Request(item, step, x, "left", ("a", "b", "c")) for step, x in enumerate(["x", "long", "x"])]
    assert benchmarks.TextGenerator(session)(requests) == ["y", Refused("too long"), "y"]
    assert [(row.id, row.history) for row in asked] == [(f"{item.key}/{step}", read) for step in (0, 2)]


def test_pictures_need_a_tokenizer():
    with pytest.raises(ValueError, match="^data.image_tokenizer=null: pictures are to be read: give the folder .*$"):
        benchmarks.PictureGenerator(session_of(None))
