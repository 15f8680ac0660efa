"""Which image tokenizer a folder holds."""

import json
import os
from pathlib import Path

from .tokenizer import ImageTokenizer


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
