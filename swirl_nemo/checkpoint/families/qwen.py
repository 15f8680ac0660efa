"""Qwen2 and 2.5: a Llama with a bias on the QKV projection. Qwen3, dense: without it, a norm on each query and key."""

from typing import Any

from transformers import PretrainedConfig, Qwen2Config

from ..mapping import LAYERS, Family, Padding, Weight
from . import decoder


class Qwen3Config(Qwen2Config):
    """Qwen3's keys, for releases of transformers that do not know it yet."""

    model_type = "qwen3"

    def __init__(self, head_dim: int = 128, attention_bias: bool = False, **keys: Any):
        super().__init__(**keys)
        self.head_dim, self.attention_bias = head_dim, attention_bias


def check(config: PretrainedConfig) -> None:
    decoder.check_rope(config)
    decoder.need(config, "hidden_act", "silu", "Qwen's gated MLP needs 'silu'")
    decoder.need(config, "use_sliding_window", False, "attention here has no window")
    decoder.need(config, "attention_bias", False, "Qwen3 has no bias")


def qwen2_config(config: Qwen2Config, padding: Padding) -> dict[str, Any]:
    return decoder.model_config(config, padding, qkv_bias=True)


def qwen2_weights(config: Qwen2Config, padding: Padding) -> list[Weight]:
    return decoder.weights(config, padding, qkv_bias=True)


def qwen3_config(config: Qwen3Config, padding: Padding) -> dict[str, Any]:
    return decoder.model_config(config, padding, qk_layernorm=True)


def qwen3_weights(config: Qwen3Config, padding: Padding) -> list[Weight]:
    return decoder.weights(config, padding, qk_norm=True)


QWEN2 = Family(Qwen2Config, check, qwen2_config, qwen2_weights, decoder.ignored, decoder.STATEFUL)
QWEN3 = Family(
    Qwen3Config,
    check,
    qwen3_config,
    qwen3_weights,
    decoder.ignored,
    (*decoder.STATEFUL, LAYERS + "self_attention.q_layernorm", LAYERS + "self_attention.k_layernorm"),
)
