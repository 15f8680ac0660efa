"""What an image tokenizer is, and which one a folder holds."""

import json
import os
from pathlib import Path
from typing import Protocol

from torch import Tensor


class ImageTokenizer(Protocol):
    """Pictures of one size as a grid of codes and back. B pictures, H x W = `size`, N = rows * columns of `grid`."""

    codebook_size: int
    size: tuple[int, int]  # height and width of a picture
    grid: tuple[int, int]  # rows and columns of its codes

    def encode(self, images: Tensor) -> Tensor:
        """int64 [B, N], row by row, of uint8 [B, H, W, 3]."""
        ...

    def to(self, device: str) -> "ImageTokenizer":
        """Itself, there; pictures and codes are then taken from there too."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] of int64 [B, N]. Raises ValueError where the folder had an encoder alone."""
        ...


def load_image_tokenizer(folder: str | os.PathLike[str], size: tuple[int, int] | None = None) -> ImageTokenizer:
    """The tokenizer in a local folder: Chameleon's or Emu3's as transformers saves them, alone or within the whole
    model, or one of `swirl train-tokenizer`.

    `size` is the pictures' where the tokenizer takes any; None: what its configuration states, which Emu3's does not.
    Raises ValueError, one line, for a folder that holds none and for a size that it cannot take.
    """
    from . import published, vqvae  # transformers takes seconds to import

    path = Path(folder, "config.json")
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json in it: give the folder of an image tokenizer")
    try:
        config = json.loads(path.read_text())
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: states no model_type ({error}): give the folder of an image tokenizer") from error
    makers = {"swirl_vqvae": vqvae.load, **published.MAKERS}
    if kind not in makers:
        raise ValueError(f"{path}: model_type {kind!r} is no image tokenizer: give one of {', '.join(makers)}")
    return makers[kind](Path(folder), config, size)
