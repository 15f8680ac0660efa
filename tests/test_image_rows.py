"""Image rows above those of text: what `swirl import --images` adds, keeps and refuses, through an export and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from swirl_nemo.checkpoint.export import export_hf
from swirl_nemo.checkpoint.huggingface import import_hf, read_model_config
from swirl_nemo.checkpoint.image_rows import ImageOptions
from swirl_nemo.checkpoint.random_init import random_llama
from swirl_nemo.collection.tokenizers import word_tokenizer
from swirl_nemo.data.images.vocabulary import ImageTokens

WORDS = [f"w{number}" for number in range(40)] + ["<boi>", "<eoi>"]
TINY = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 48, "max_positions": 64, "seed": 1}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def hf(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    word_tokenizer(WORDS).save_pretrained(folder / "tokenizer")
    random_llama(folder / "model", folder / "tokenizer", tied=request.param, **TINY)
    return folder / "model"


def vocabulary(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name in ("model.embed_tokens.weight", "lm_head.weight")}


def test_text_keeps_its_logits_and_codes_are_drawn_like_words(hf, tmp_path):
    """Logits of an exported model in transformers; 54 rows of text, begin, end, 200 codes."""
    import_hf(hf, tmp_path / "nemo", images=ImageOptions("200:3x4"))
    model = read_model_config(tmp_path / "nemo")
    assert (model.vocab_size, model.override_vocab_size) == (256, 256)
    assert ImageTokens.read(tmp_path / "nemo" / "tokenizer") == ImageTokens(54, 55, 56, 200, 3, 4)
    export_hf(tmp_path / "nemo", tmp_path / "back")
    text = torch.randint(0, 54, (2, 20))
    with torch.no_grad():
        before, after = (AutoModelForCausalLM.from_pretrained(path)(text).logits for path in (hf, tmp_path / "back"))
    assert after.shape[-1] == 256 and torch.equal(before, after[..., :54])
    for name, tensor in vocabulary(tmp_path / "back").items():
        old, new = tensor[:54], tensor[54:]
        assert torch.equal(old, vocabulary(hf)[name])
        torch.testing.assert_close(new.mean(0), old.mean(0), atol=5 * old.std().item() / 200**0.5, rtol=0)
        torch.testing.assert_close(new.std(0), old.std(0, unbiased=False), atol=0, rtol=0.25)
        assert len(new.unique(dim=0)) == 202


def test_an_export_comes_back_with_its_images(hf, tmp_path):
    import_hf(hf, tmp_path / "nemo", images=ImageOptions("100:3x4"))
    export_hf(tmp_path / "nemo", tmp_path / "back")
    import_hf(tmp_path / "back", tmp_path / "again")
    export_hf(tmp_path / "again", tmp_path / "twice")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "twice" / "model.safetensors"
    ).read_bytes()
    assert ImageTokens.read(tmp_path / "again" / "tokenizer") == ImageTokens(54, 55, 56, 100, 3, 4)
    with pytest.raises(ValueError, match=r"image_tokens\.json says which tokens are images"):
        import_hf(tmp_path / "back", tmp_path / "third", images=ImageOptions("100:3x4"))


def test_padding_divides_whatever_the_codes(hf, tmp_path):
    for codes in (1, 71, 74, 500):
        import_hf(hf, tmp_path / str(codes), images=ImageOptions(f"{codes}:1x1"))
        model = read_model_config(tmp_path / str(codes))
        assert model.vocab_size == 56 + codes and model.override_vocab_size % 128 == 0
        assert model.override_vocab_size - model.vocab_size < 128


def test_ends_can_be_words_of_the_tokenizer_and_codes_be_there_already(hf, tmp_path):
    """As in Liquid: 264,192 rows are 256,000 of text, two of them the ends, and 8,192 codes."""
    import_hf(hf, tmp_path / "a", images=ImageOptions("10:1x2", ends="<boi>,<eoi>"))
    assert ImageTokens.read(tmp_path / "a" / "tokenizer") == ImageTokens(52, 53, 54, 10, 1, 2)
    assert read_model_config(tmp_path / "a").vocab_size == 64
    export_hf(tmp_path / "a", tmp_path / "liquid")
    (tmp_path / "liquid" / "image_tokens.json").unlink()
    import_hf(tmp_path / "liquid", tmp_path / "b", images=ImageOptions("10:1x2", ends="<boi>,<eoi>", first=54))
    assert read_model_config(tmp_path / "b").vocab_size == 64
    assert ImageTokens.read(tmp_path / "b" / "tokenizer") == ImageTokens(52, 53, 54, 10, 1, 2)
    export_hf(tmp_path / "b", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == 64
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "liquid" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImageOptions("8192"), r"--images 8192: not CODES:ROWSxCOLUMNS"),
        (ImageOptions("0:1x1"), r"sizes over 0"),
        (ImageOptions("70000:1x1"), r"at most 65534"),
        (ImageOptions("8:2x2", ends="<boi>"), r"--image-ends <boi>: give two tokens"),
        (ImageOptions("8:2x2", ends="<boi>,<none>"), r"give two tokens that the tokenizer has"),
        (ImageOptions("8:2x2", ends="<boi>,<boi>"), r"must be two tokens below the codes"),
        (ImageOptions("8:2x2", first=40), r"--image-first 40: which tokens begin and end"),
        (ImageOptions("8:2x2", ends="<boi>,<eoi>", first=40), r"must be two tokens below the codes"),
        (ImageOptions("8:2x2", ends="w1,w2", first=50), r"codes from there end at 58, the model has 54 rows"),
    ],
)  # fmt: skip
def test_options_that_make_no_vocabulary_are_one_line_and_leave_nothing(hf, tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        import_hf(hf, tmp_path / "nemo", images=options)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())
