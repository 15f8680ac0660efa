"""A transition (x, z, y): state, action, next state."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .images.characters import image_codes, image_text


@dataclass(frozen=True)
class Transition:
    """One row of a transitions file. States and actions are text, an image too (images/characters.py); `z` is None
    where no action was recorded. `history`: the states before x, the latest last, as many as are to be read."""

    id: str
    x: str
    z: str | None
    y: str
    world: str
    episode: str
    t: int
    history: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: dict[str, Any], read: Callable[[Any], str] = image_text) -> "Transition":
        """Of a transitions file's row; `read` takes what stands under "image"."""

        def text(state: str | dict[str, Any]) -> str:
            return state if isinstance(state, str) else read(state["image"])

        history = tuple(text(state) for state in row.get("history", ()))
        return cls(**row | {"x": text(row["x"]), "y": text(row["y"]), "history": history})

    def row(self) -> dict[str, Any]:
        """As a transitions file has it: images as lists of codes, and no history where there is none."""
        row = asdict(self) | {"x": _written(self.x), "y": _written(self.y)}
        row["history"] = [_written(state) for state in self.history]
        return row if self.history else {key: value for key, value in row.items() if key != "history"}


def _written(state: str) -> str | dict[str, list[int]]:
    codes = image_codes(state)
    return state if codes is None else {"image": codes}
