"""Mistral 7B: a Llama whose attention may look back over a window only."""

from typing import Any

from transformers import MistralConfig

from ..mapping import Family, Padding
from . import decoder


def check(config: MistralConfig) -> None:
    decoder.check_rope(config)
    decoder.need(config, "hidden_act", "silu", "Mistral's gated MLP needs 'silu'")


def model_config(config: MistralConfig, padding: Padding) -> dict[str, Any]:
    """Attention here has no window: sequences may be as long as the window, for which it makes no difference."""
    longest = min(config.max_position_embeddings, config.sliding_window or config.max_position_embeddings)
    return decoder.model_config(config, padding, max_position_embeddings=longest, encoder_seq_length=longest)


MISTRAL = Family(MistralConfig, check, model_config, decoder.weights, decoder.ignored, decoder.STATEFUL)
