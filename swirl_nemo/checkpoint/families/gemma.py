"""Gemma, first generation: GeGLU, embeddings times sqrt(hidden), norms whose weight is an offset from one."""

from typing import Any

from transformers import GemmaConfig

from ..mapping import Family, Padding, Weight
from . import decoder


def check(config: GemmaConfig) -> None:
    decoder.check_rope(config)
    if config.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"hidden_act {config.hidden_act!r} is not supported: Gemma's gated MLP needs a 'gelu'")
    decoder.need(config, "tie_word_embeddings", True, "Gemma's embeddings are tied")
    decoder.need(config, "attention_bias", False, "Gemma has no bias")


def model_config(config: GemmaConfig, padding: Padding) -> dict[str, Any]:
    return decoder.model_config(
        config,
        padding,
        activation="fast-geglu",
        openai_gelu=config.hidden_act == "gelu_pytorch_tanh",
        apply_embedding_scaling=True,
        layernorm_zero_centered_gamma=True,
    )


def weights(config: GemmaConfig, padding: Padding) -> list[Weight]:
    return decoder.weights(config, padding)


GEMMA = Family(GemmaConfig, check, model_config, weights, decoder.ignored, decoder.STATEFUL)
