"""Which token ids stand for images: text below, codes above, as in Liquid (Wu et al. 2024, arXiv 2412.04332).

The file image_tokens.json, beside a tokenizer's own, says so; `swirl import` writes it. Code c is token first_code + c,
and nothing comes after the codes but padding. Begin and end of an image stand before the codes: two of the tokenizer's
own tokens, such as Gemma's unused ones, or two rows between text and codes.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from .characters import BEGIN, END, FIRST, IMAGES, MOST_CODES

FILE = "image_tokens.json"


@dataclass(frozen=True)
class ImageTokens:
    begin: int
    end: int
    first_code: int
    codes: int
    rows: int
    columns: int

    @property
    def length(self) -> int:
        """Codes of an image."""
        return self.rows * self.columns

    @property
    def all_codes(self) -> range:
        return range(self.first_code, self.first_code + self.codes)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "ImageTokens | None":
        """Of a tokenizer folder; None where it has no file of them. Raises ValueError for a file that is not sound."""
        path = Path(folder, FILE)
        if not path.is_file():
            return None
        try:
            found = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not as swirl import writes it ({error}): import the model again") from error
        found.check(str(path))
        return found

    def check(self, where: str) -> None:
        """Raises ValueError, naming `where`, for numbers that make no vocabulary."""
        sizes = (self.codes, self.rows, self.columns)
        if any(type(value) is not int or value < 0 for value in asdict(self).values()) or not all(sizes):
            raise ValueError(f"{where}: {asdict(self)}: each must be a whole number, sizes over 0: import again")
        if self.codes > MOST_CODES:
            raise ValueError(f"{where}: {self.codes} codes: at most {MOST_CODES} are supported: take another tokenizer")
        if self.begin == self.end or max(self.begin, self.end) >= self.first_code:
            raise ValueError(f"{where}: begin {self.begin} and end {self.end} must be two tokens below the codes")

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def encode(self, characters: str, transition_id: str) -> list[int]:
        """A token for each character of characters.py. Raises ValueError, naming the transition, for an image of
        another length than the model's, and for a code that it does not have."""
        for image in IMAGES.findall(characters):
            if len(image) != self.length:
                raise ValueError(
                    f"transition {transition_id}: an image of {len(image)} codes, the model's have {self.rows} x "
                    f"{self.columns}: tokenize pictures of the size that it was imported for"
                )
        ends = {BEGIN: self.begin, END: self.end}
        tokens = [ends.get(char, self.first_code + ord(char) - FIRST) for char in characters]
        if max(tokens) not in self.all_codes and max(tokens) >= self.first_code:
            raise ValueError(
                f"transition {transition_id}: image code {max(tokens) - self.first_code}, the model has {self.codes}: "
                "tokenize with the tokenizer that it was imported for"
            )
        return tokens

    def character(self, token: int) -> str | None:
        """The inverse; None for a token of text."""
        if token in (self.begin, self.end):
            return BEGIN if token == self.begin else END
        return chr(FIRST + token - self.first_code) if token in self.all_codes else None
