"""Rows for image codes above those of text, in the embedding and the output layer, when a model is imported.

Old rows stay where and as they are, so that logits of text are those of the model that came. A new row is drawn from a
normal distribution with the mean and the deviation that the old rows have in each column (Hewitt 2021, "Initializing
New Word Embeddings for Pretrained Language Models", its diagonal): codes differ from the first step on, and none stands
out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from ..data.images.vocabulary import FILE, ImageTokens
from .mapping import Weight
from .safetensors_files import DTYPES, Tensors
from .spans import Span

VOCABULARIES = ("embedding.word_embeddings.weight", "output_layer.weight")
_SEED = 0
_BLOCK = 1 << 14  # rows in memory at a time


@dataclass(frozen=True)
class ImageOptions:
    """What a user asks for: `shape` is CODES:ROWSxCOLUMNS; `ends`, BEGIN,END, two tokens of the tokenizer, None for
    new ones; `first`, the row of code 0 in a model that has the codes already, None to append them."""

    shape: str
    ends: str | None = None
    first: int | None = None

    def tokens(self, vocab_size: int, tokenizer: Any) -> ImageTokens:
        """Raises ValueError, one line, for options that make no vocabulary."""
        match = re.fullmatch(r"(\d+):(\d+)x(\d+)", self.shape)
        if match is None:
            raise ValueError(f"--images {self.shape}: not CODES:ROWSxCOLUMNS: give e.g. 8192:32x32")
        codes, rows, columns = map(int, match.groups())
        if self.first is None and self.ends is None:
            found = ImageTokens(vocab_size, vocab_size + 1, vocab_size + 2, codes, rows, columns)
        else:
            first = vocab_size if self.first is None else self.first
            found = ImageTokens(*self._ends(tokenizer), first, codes, rows, columns)
        found.check(f"--images {self.shape}")
        if self.first is not None and self.first + codes > vocab_size:
            raise ValueError(
                f"--image-first {self.first}: {codes} codes from there end at {self.first + codes}, the model has "
                f"{vocab_size} rows: leave it out to append them"
            )
        return found

    def _ends(self, tokenizer: Any) -> tuple[int, int]:
        if self.ends is None:
            raise ValueError(f"--image-first {self.first}: which tokens begin and end an image? Give --image-ends")
        names = self.ends.split(",")
        known = tokenizer.get_vocab()
        if len(names) != 2 or not all(name in known for name in names):
            raise ValueError(f"--image-ends {self.ends}: give two tokens that the tokenizer has, BEGIN,END")
        return known[names[0]], known[names[1]]


class NewRows:
    """What stands below the old rows of a vocabulary's tensor; in a file, as everything that is imported."""

    def __init__(self, tensors: Tensors, old: int, new: int):
        self._tensors, self._old, self._new = tensors, old, new
        self._files: list = []

    @classmethod
    @contextmanager
    def opened(cls, tensors: Tensors, old: int, new: int) -> Iterator["NewRows"]:
        rows = cls(tensors, old, new)
        try:
            yield rows
        finally:
            for file in rows._files:
                file.close()

    def spans(self, weight: Weight, whole: Tensor) -> list[Span]:
        """Further sources of a weight; none where it is no vocabulary's."""
        if not self._new or weight.target not in VOCABULARIES:
            return []
        (name,) = weight.names(0)
        mean, deviation = self._columns(name)
        drawn = torch.randn(self._new, len(mean), generator=torch.Generator().manual_seed(_SEED))
        file = TemporaryFile(buffering=0)  # noqa: SIM115 closed when all is written
        self._files.append(file)
        file.write((mean + deviation * drawn).to(whole.dtype).view(torch.uint8).numpy())
        return [Span(file, 0, whole.dtype, whole[self._old : self._old + self._new])]

    def _columns(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each column of a tensor [V, hidden], in float32."""
        entry = self._tensors.entries[name]
        (count, columns), dtype = entry.shape, DTYPES[entry.dtype]
        total, squares = torch.zeros(2, columns, dtype=torch.double)
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            for start in range(0, count, _BLOCK):
                read = bytearray(file.read(min(_BLOCK, count - start) * columns * dtype.itemsize))
                rows = torch.frombuffer(read, dtype=dtype).view(-1, columns).double()
                total += rows.sum(0)
                squares += rows.pow(2).sum(0)
        mean = total / count
        return mean.float(), (squares / count - mean**2).clamp(min=0).sqrt().float()


def image_tokens(hf_dir: Path, options: ImageOptions | None, vocab_size: int, tokenizer: Any) -> ImageTokens | None:
    """Of the options or, without, those that the folder was exported with.

    Raises ValueError where it has some and others are asked for.
    """
    kept = ImageTokens.read(hf_dir)
    if options is None:
        return kept
    if kept is not None:
        raise ValueError(f"--images {options.shape}: {hf_dir / FILE} says which tokens are images: leave it out")
    return options.tokens(vocab_size, tokenizer)
