"""An image as text, so that states, actions and completions have one type wherever they go.

Code c is the private-use character U+F0000 + c, an image is its codes between BEGIN and END: one character for each
token (vocabulary.py), in an order that no ordinary text holds, since `FORGED` is refused where text comes in and
replaced where a model makes it up.
"""

import re
from collections.abc import Iterable

FIRST = 0xF0000
MOST_CODES = 65_534  # plane 15 has no more
BEGIN, END = "\U0010fffc", "\U0010fffd"
FORGED = re.compile("[\U000f0000-\U0010ffff]")
RUNS = re.compile("([\U000f0000-\U0010ffff]+)")
IMAGES = re.compile(f"{BEGIN}([^{BEGIN}{END}]*){END}")


def image_text(codes: Iterable[int]) -> str:
    return f"{BEGIN}{''.join(map(code_text, codes))}{END}"


def code_text(code: int) -> str:
    return chr(FIRST + code)


def image_codes(text: str) -> list[int] | None:
    """The codes of a text that is one image and nothing else; None for any other."""
    match = IMAGES.fullmatch(text)
    return None if match is None or len(RUNS.findall(match[0])) != 1 else [ord(char) - FIRST for char in match[1]]


def readable(text: str) -> str:
    """For people: an image as [image 3 17 ...], a code by itself as [3]."""
    whole = IMAGES.sub(lambda match: f"[image {' '.join(str(ord(char) - FIRST) for char in match[1])}]", text)
    marks = {BEGIN: "[image", END: "]"}
    return FORGED.sub(lambda match: marks.get(match[0]) or f"[{ord(match[0]) - FIRST}]", whole)


def image_difference(x: str, y: str, columns: int | None) -> str | None:
    """What changed from image x to image y: of each code that did, in order, its row, its column, the code that was
    there and the one that is, such as "3 4 ab 3 5 cd"; "=" where none did. Without `columns` all are in row 0. Where
    more than a quarter did, which would be longer than an image, all codes of y and nothing else.

    None where x and y are not two images of one size.
    """
    before, after = image_codes(x), image_codes(y)
    if before is None or after is None or len(before) != len(after):
        return None
    changes = []
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            row, column = divmod(place, columns or len(before))
            changes.append(f"{row} {column} {code_text(old)}{code_text(new)}")
    if 4 * len(changes) > len(after):
        return "".join(map(code_text, after))
    return " ".join(changes) or "="
