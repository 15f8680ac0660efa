"""The byte-level BPE that a collection trains: lossless on any text, and blind to where in a line a word stands."""

from random import Random

import pytest

from swirl_nemo.collection.tokenizers import bpe_tokenizer

TEXTS = [
    "in /\ndir archive\nfile archive data.txt final",
    "file data.txt empty\ndir archive",
    "mv data.txt archive",
] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer(TEXTS, 320)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_any_text_decodes_to_itself(tokenizer):
    rng = Random(0)
    for _ in range(2000):
        text = "".join(rng.choices(" \n\tab1é.-{}<", k=rng.randrange(14)))
        assert tokenizer.decode(encode(tokenizer, text)) == text
    for text in TEXTS[:3]:
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_a_word_is_the_same_wherever_it_stands(tokenizer):
    file, archive = encode(tokenizer, "file"), encode(tokenizer, "archive")
    assert len(file) == len(archive) == 1
    assert encode(tokenizer, "archive file") == archive + file
    (newline,) = set(encode(tokenizer, "file\narchive")) - {*file, *archive}
    assert encode(tokenizer, "file\narchive") == [*file, newline, *archive]
    assert encode(tokenizer, "<act>archive<next>")[1:-1] == archive, "behind a tag too"


def test_digits_stand_apart(tokenizer):
    assert len(encode(tokenizer, "file 1234")) == len(encode(tokenizer, "file 1")) + 3
    with pytest.raises(ValueError, match=r"^vocabulary=100: the bytes and the tags alone are \d+ tokens: .*$"):
        bpe_tokenizer(TEXTS, 100)
