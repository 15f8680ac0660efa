"""A word-level Hugging Face tokenizer for worlds whose whole vocabulary is known."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers
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
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )
