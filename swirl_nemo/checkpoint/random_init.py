"""A Llama with random weights, as a Hugging Face folder: where training from scratch starts."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def random_llama(
    folder: Path,
    tokenizer_dir: Path,
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    max_positions: int,
    tied: bool,
    seed: int,
) -> None:
    """Write a float32 Llama and the tokenizer of `tokenizer_dir` into the new folder `folder`.

    The same arguments give the same weights; the caller's random state stays as it was. Raises ValueError where
    `folder` exists or the heads do not divide.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name a new folder, or remove it")
    if hidden % heads or heads % kv_heads:
        raise ValueError(f"hidden {hidden}, heads {heads}, kv_heads {kv_heads}: each must be a multiple of the next")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
