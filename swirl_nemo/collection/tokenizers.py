"""Hugging Face tokenizers for models that start from random weights: a world's own words, or a BPE of its rows."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
TAGS = ("<fwm>", "<idm>", "<act>", "<next>", "<diff>")  # what prompt templates mark their parts with
MARKS = ("=", "+", "-")  # what data.prompts.difference writes beside facts


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, words divided by spaces, so that decoding and encoding are inverse to each other.

    A word outside the vocabulary becomes <unk>, which NeMo asks of a tokenizer; no completion may hold it.
    """
    vocabulary = [*SPECIALS, *TAGS, *MARKS, *words]
    assert len(set(vocabulary)) == len(vocabulary), "a word stands twice in the vocabulary"
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(backend)


def bpe_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens, trained on `texts`; any text is encoded, and decodes to itself.

    Digits stand apart, so that numbers that the texts do not have are read as the others are. Each line is given a
    space to begin with, which decoding takes away: a word is the same tokens at the start of a line and within it, as
    a small model that copies would otherwise have to learn.

    Raises ValueError for a size that does not hold the 256 bytes and the tags.
    """
    least = 256 + len(SPECIALS) + len(TAGS)
    if size < least:
        raise ValueError(f"vocabulary={size}: the bytes and the tags alone are {least} tokens: set it to more")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace("\n", "\n ")])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", left=1, right=0)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [*SPECIALS, *TAGS]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=sorted(alphabet), special_tokens=specials, show_progress=False
        ),
    )
    return _fast(backend)


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )
