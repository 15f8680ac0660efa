"""How a suite asks for predictions, and the predictions that somebody has made before."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from PIL import Image

from .base import Damaged, Item, Stored


class Request(NamedTuple):
    """Step `step` of an item, from 0: the next state of `state` by `action`. A state is text, or a picture in RGB;
    `history` holds those before it, the latest last."""

    item: Item
    step: int
    state: str | Image.Image
    action: str
    history: tuple[str | Image.Image, ...] = ()


@dataclass(frozen=True)
class Refused:
    """In place of a prediction: why there is none, as where a prompt is too long. The item is named and counted."""

    why: str


class Generator(Protocol):
    """What makes predictions: of the state's own kind, one for each request, in order."""

    def __call__(self, requests: Sequence[Request]) -> list[str | Image.Image | Refused]: ...


def file_name(item: Item, step: int, ending: str) -> str:
    """PART/ID.png, and PART/ID-2.png of the second step: as the released code names what it generates for one step."""
    part, name = (re.sub(r"[^\w. -]+", "-", text) for text in (item.part, item.id))
    return f"{part}/{name}{f'-{step + 1}' if step else ''}.{ending}"


class Recorded:
    """Predictions in files named by `file_name`, whatever made them. What a request shows is not looked at."""

    def __init__(self, folder: Path, kind: Literal["picture", "text"]):
        self._folder, self._kind = folder, kind
        if not folder.is_dir():
            raise ValueError(
                f"suite.predictions: {folder}: no such folder: give one with MODEL/PART/ID.png (or .txt), MODEL one of "
                "suite.models, or null"
            )

    def __call__(self, requests: Sequence[Request]) -> list[str | Image.Image | Refused]:
        return [self._read(request) for request in requests]

    def _read(self, request: Request) -> str | Image.Image | Refused:
        name = file_name(request.item, request.step, "txt" if self._kind == "text" else "png")
        try:
            if self._kind == "picture":
                return Stored(self._folder / name, name).load()
            return (self._folder / name).read_text(encoding="utf-8")
        except Damaged as error:
            return Refused(f"suite.predictions: {error}")
        except (OSError, UnicodeDecodeError) as error:
            return Refused(f"suite.predictions: {name}: not to be read ({error})")
