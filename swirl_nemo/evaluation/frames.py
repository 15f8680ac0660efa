"""Predicted pictures beside true ones, for the report of a run whose states are images."""

import base64
import io
import re
from typing import NamedTuple

from ..data.images.drawing import decoded
from ..data.images.loading import load_image_tokenizer
from ..data.images.tokenizer import ImageTokenizer

MODELS = ("warmup", "swirl")
STRIPS = {
    "test": "Next frames",
    "rolled forward": "Rolled forward on its own predictions",
}  # by the stage's first words
_IMAGE = re.compile(r"\[image ([\d ]+)\]")


class Strip(NamedTuple):
    """One transition; each picture is the URL of a PNG. A model that has not got so far, or said no image, has None."""

    before: str
    action: str
    truth: str
    predictions: dict[str, tuple[str, bool] | None]  # by model: its picture, and whether that is the true one


def strips(samples: list[dict], config: dict) -> dict[str, list[Strip]]:
    """By title, of samples.jsonl's rows; {} where states are no images, or the run's data.image_tokenizer does not say
    how to draw them.

    Raises ValueError, one line, where the tokenizer cannot be read, has no decoder, or is not that of the images.
    """
    rows = [row for row in samples if row["role"] == "fwm" and _IMAGE.fullmatch(row["y"])]
    folder, size = (config["data"][key] for key in ("image_tokenizer", "image_size")) if rows else (None, None)
    if folder is None:
        return {}
    drawn = _Drawn(load_image_tokenizer(folder, size and (size[0], size[1])))
    found = {}
    for stage, title in STRIPS.items():
        by_model = {model: [row for row in rows if row["stage"] == f"{stage}, {model}"] for model in MODELS}
        if most := max(by_model.values(), key=len):
            found[title] = [_strip(number, most[number], by_model, drawn) for number in range(len(most))]
    return found


def _strip(number: int, row: dict, by_model: dict[str, list[dict]], drawn: "_Drawn") -> Strip:
    predictions: dict[str, tuple[str, bool] | None] = {}
    for model, rows in by_model.items():
        picture = drawn(rows[number]["prediction"]) if number < len(rows) else None
        predictions[model] = picture and (picture, rows[number]["correct"])
    return Strip(drawn(row["x"]), row["z"], drawn(row["y"]), predictions)


class _Drawn:
    """PNGs of images as samples.jsonl has them, each drawn once."""

    def __init__(self, tokenizer: ImageTokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str | None:
        """None for what is no image of the tokenizer's codes."""
        match = _IMAGE.fullmatch(text)
        if match is None:
            return None
        if text not in self._known:
            codes, (rows, columns) = [int(code) for code in match[1].split()], self._tokenizer.grid
            if len(codes) != rows * columns or max(codes) >= self._tokenizer.codebook_size:
                raise ValueError(
                    f"data.image_tokenizer: draws {rows} x {columns} of {self._tokenizer.codebook_size} codes, which "
                    f"{text[:40]}... is not: give the one that the images were tokenized with"
                )
            buffer = io.BytesIO()
            decoded(codes, self._tokenizer).save(buffer, "PNG")
            self._known[text] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return self._known[text]
