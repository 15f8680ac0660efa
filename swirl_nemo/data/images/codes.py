"""Codes of many pictures in one memory-mapped file, codes.npy [F, N]; a transitions file names row n "codes.npy#n"."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .characters import MOST_CODES, image_text

FILE, ABOUT = "codes.npy", "codes.json"


class ImageReader:
    """The images of one transitions file as text (characters.py). `folder` is the file's own: paths are from there."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._length: int | None = None

    def text(self, image: str | list[int]) -> str:
        """Of what stands under "image" in a row that was checked."""
        return image_text(self._codes(image))

    def check(self, image: object, where: str) -> None:
        """Raises ValueError, naming `where`, for what is no image, and for one of another length than the first."""
        try:
            codes = self._codes(image)
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(f"{where}: {error}") from error
        self._length = self._length or len(codes)
        if len(codes) != self._length:
            raise ValueError(f"{where}: an image of {len(codes)} codes, the first has {self._length}: give one length")

    def _codes(self, image: object) -> Sequence[int]:
        if isinstance(image, list):
            if image and all(type(code) is int and 0 <= code < MOST_CODES for code in image):
                return image
            raise ValueError(
                f"the image {str(image)[:40]} is no list of codes, which are whole numbers from 0: mend it"
            )
        if not isinstance(image, str):
            raise ValueError(f"the image {json.dumps(image)[:40]} is neither a list of codes nor a path: mend it")
        path, _, number = image.partition("#")
        if Path(path).suffix != ".npy" or not number.isdecimal():
            raise ValueError(
                f"{image} is a picture, not its codes: run swirl tokenize, and read the files that it writes"
            )
        if path not in self._arrays:
            self._arrays[path] = _opened(self._folder / path)
        array = self._arrays[path]
        if int(number) >= len(array):
            raise ValueError(f"{image}: the file has {len(array)} images: tokenize again")
        return array[int(number)].tolist()


def _opened(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as codes ({error}): tokenize again") from error
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(f"{path}: {array.dtype} of shape {list(array.shape)} are no codes: tokenize again")
    return array
