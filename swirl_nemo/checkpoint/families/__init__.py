"""Architectures that can be imported, by the name that a Hugging Face config.json gives them."""

from ..mapping import Family
from .llama import LLAMA

FAMILIES: dict[str, Family] = {"LlamaForCausalLM": LLAMA}
