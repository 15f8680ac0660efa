"""A word-level Hugging Face tokenizer for worlds whose whole vocabulary is known."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>")
TAGS = ("<fwm>", "<idm>", "<act>", "<next>", "<diff>")  # what prompt templates mark their parts with
MARKS = ("=", "+", "-")  # what data.prompts.difference writes beside facts


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, words divided by spaces, so that decoding and encoding are inverse to each other.

    There is no unknown token: a word outside the vocabulary, say in a prompt template, is an error when it is encoded.
    """
    vocabulary = [*SPECIALS, *TAGS, *MARKS, *words]
    assert len(set(vocabulary)) == len(vocabulary), "a word stands twice in the vocabulary"
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )
