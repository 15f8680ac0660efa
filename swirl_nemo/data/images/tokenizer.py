"""What an image tokenizer is."""

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
