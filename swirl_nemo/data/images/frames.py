"""Pictures: files in folders, and frames of videos at a stride; each as uint8 [H, W, 3]."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
VIDEOS = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v"}


@dataclass(frozen=True)
class Clip:
    """States that follow one another: a folder's pictures in the order of their names, or a video."""

    name: str
    files: tuple[Path, ...]  # pictures, or one video

    def frames(self, stride: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Every `stride`-th, fitted to `size`. Raises ValueError, naming the file, for one that cannot be read."""
        if self.files[0].suffix.lower() in VIDEOS:
            yield from (fitted(frame, size) for frame in _video(self.files[0], stride))
        else:
            yield from (read_picture(file, size) for file in self.files[::stride])


def clips(source: Path) -> list[Clip]:
    """Of a video, or of a folder with pictures and videos in it and below.

    Raises ValueError where there is none.
    """
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    root = source.parent if source.is_file() else source
    found = [Clip(str(path.relative_to(root)), (path,)) for path in files if path.suffix.lower() in VIDEOS]
    folders: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in PICTURES:
            folders.setdefault(path.parent, []).append(path)
    found += [Clip(str(folder.relative_to(root.parent)), tuple(pictures)) for folder, pictures in folders.items()]
    if not found:
        raise ValueError(f"{source}: no picture or video in it: give a folder of pictures or videos, or a video")
    return sorted(found, key=lambda clip: clip.name)


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Raises ValueError, naming the file, where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return fitted(picture.convert("RGB"), size)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}): mend it or leave it out") from error


def fitted(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scaled until it covers `size`, height and width, and cut around its middle; one of that size stays as it is."""
    height, width = size
    if (picture.height, picture.width) != size:
        scale = max(height / picture.height, width / picture.width)
        scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        picture = picture.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture)


def _video(path: Path, stride: int) -> Iterator[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{path}: a video needs the package av: install swirl-nemo[images]") from error
    try:
        with av.open(path) as container:
            for frame in islice(container.decode(video=0), 0, None, stride):
                yield frame.to_image()
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error}): mend it or leave it out") from error
