"""From a picture to the text of its codes (characters.py), and back."""

import torch
from PIL import Image

from .characters import image_codes, image_text
from .frames import fitted
from .tokenizer import ImageTokenizer


def text_of_picture(picture: Image.Image, tokenizer: ImageTokenizer) -> str:
    """Of the picture, fitted to the tokenizer's size."""
    pixels = torch.from_numpy(fitted(picture.convert("RGB"), tokenizer.size).copy())[None]
    return image_text(tokenizer.encode(pixels)[0].tolist())


def picture_of(text: str, tokenizer: ImageTokenizer) -> Image.Image:
    """Raises ValueError where the tokenizer has no decoder."""
    codes = image_codes(text)
    assert codes is not None, "not an image"
    return decoded(codes, tokenizer)


def decoded(codes: list[int], tokenizer: ImageTokenizer) -> Image.Image:
    return Image.fromarray(tokenizer.decode(torch.tensor([codes]))[0].cpu().numpy())
