"""What a benchmark suite is: items read from the files of a public release, and what of it cannot be read.

An item that is missing or damaged becomes a Fault, which is named and counted; none is skipped in silence.
"""

import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from PIL import Image, UnidentifiedImageError

from .config import SuiteConfig


class Damaged(Exception):
    """A file of an item is missing or cannot be decoded; the message names the file."""


class Picture(Protocol):
    """An image of a release, decoded when it is asked for."""

    def load(self) -> Image.Image:
        """In RGB. Raises Damaged."""


@dataclass(frozen=True)
class Stored:
    """A picture in a file, or in the bytes of one."""

    source: Path | bytes
    place: str  # where a person finds it

    def load(self) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            raise Damaged(f"{self.place}: no such file") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Damaged(f"{self.place}: not to be decoded ({' '.join(str(error).split())})") from None


@dataclass(frozen=True)
class Step:
    """One transition to predict. `captions`: of the states before and after, where the release describes them."""

    action: str
    target: str | Picture | None  # None: the release has no picture of what should come
    captions: tuple[str, str] | None = None


@dataclass(frozen=True)
class Item:
    """A first state and the steps from it; in a second step the first one's prediction is the state. `id` is the
    release's own, and unique within the part."""

    id: str
    part: str
    start: str | Picture
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        return f"{self.part}/{self.id}"


@dataclass(frozen=True)
class Fault:
    """An item that is not evaluated, and why."""

    id: str
    part: str
    what: str


@dataclass
class Contents:
    """What a release's folder holds: items in its own order, faults, and how many items belong to other parts."""

    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    other_parts: Counter[str] = field(default_factory=Counter)


Config = TypeVar("Config", bound=SuiteConfig)


class Suite(ABC, Generic[Config]):
    """A benchmark, read from the folder `cfg.folder`."""

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[Literal["picture", "text"]]  # of its states
    parts: ClassVar[dict[str, str]]  # names in the release and in tables; a part that is not here goes by its own
    published_gain: ClassVar[float]  # of SWIRL in its paper's abstract, relative

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.folder = Path(cfg.folder)

    @abstractmethod
    def read(self) -> Contents:
        """All items. Raises ValueError, one line, where the release's index itself is missing or no such index."""

    def index(self, name: str) -> Path:
        """A file without which there is no suite. Raises ValueError where the folder has none."""
        path = self.folder / name
        if not path.is_file():
            raise ValueError(
                f"suite.folder={self.folder}: no {name} in it: give the folder of the {self.title} release"
            )
        return path


def read_json(path: Path, kind: type) -> Any:
    """The file's content, of type `kind`. Raises ValueError, one line, where it is no JSON or of another type."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({' '.join(str(error).split())}): fetch it again") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: a {type(found).__name__}, not a {kind.__name__}: fetch the release's own file")
    return found


def text_of(row: Any, *keys: str) -> Iterator[str]:
    """The row's texts under `keys`. Raises Damaged where one is missing, empty or no text."""
    if not isinstance(row, dict):
        raise Damaged(f"not an object but a {type(row).__name__}")
    for key in keys:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise Damaged(f"no {key}" if value in (None, "") else f"{key} is no text: {value!r:.40}")
        yield value
