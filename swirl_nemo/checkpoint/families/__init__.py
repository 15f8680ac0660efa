"""Architectures that can be imported and exported, by the name that a Hugging Face config.json gives them.

To add one: a short file that says how it differs from `decoder`, a line here, a case in tests/test_families.py.
"""

from ..mapping import Family
from .gemma import GEMMA
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen import QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    "GemmaForCausalLM": GEMMA,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}
