"""Llama 2 and 3: RMSNorm, rotary positions with or without scaling, grouped-query attention, SwiGLU."""

from typing import Any

from transformers import LlamaConfig

from ..mapping import Family, Padding, Weight
from . import decoder


def check(config: LlamaConfig) -> None:
    decoder.check_rope(config)
    decoder.need(config, "hidden_act", "silu", "Llama's gated MLP needs 'silu'")
    if config.attention_bias != config.mlp_bias:
        raise ValueError("attention_bias and mlp_bias differ: Megatron has a bias in all linear layers or in none")


def model_config(config: LlamaConfig, padding: Padding) -> dict[str, Any]:
    return decoder.model_config(config, padding, bias=config.attention_bias)


def weights(config: LlamaConfig, padding: Padding) -> list[Weight]:
    return decoder.weights(config, padding, bias=config.attention_bias)


LLAMA = Family(LlamaConfig, check, model_config, weights, decoder.ignored, decoder.STATEFUL)
