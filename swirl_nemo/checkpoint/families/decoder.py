"""What the families share: a norm before attention and before the MLP, rotary positions, grouped-query attention and a
gated MLP, under the names that Llama gave them. A family says how it differs.
"""

from typing import Any

from transformers import PretrainedConfig

from ..mapping import LAYERS, SAME, STACK, Padding, Shape, Weight, by_query_group, pad_input_groups, pad_rows

# Megatron's own layers ask for the first four; Transformer Engine's attention and norm for the others too.
STATEFUL = (
    LAYERS + "self_attention.linear_qkv",
    LAYERS + "self_attention.linear_proj",
    LAYERS + "mlp.linear_fc1",
    LAYERS + "mlp.linear_fc2",
    LAYERS + "self_attention.core_attention",
    "decoder.final_layernorm",
)

# NeMo's keys that are the same for all
SETTLED = {
    "mcore_gpt": True,
    "position_embedding_type": "rope",
    "rotary_percentage": 1.0,
    "rotary_interleaved": False,
    # Dropout would make the policy's log-probs differ from those of the rollout that it is trained on.
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def head_dim(config: PretrainedConfig) -> int:
    """config.json may leave it out, and some configuration classes then leave it out too."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def need(config: PretrainedConfig, key: str, value: Any, why: str) -> None:
    """Raises ValueError, naming the key of config.json, where it has another value."""
    actual = getattr(config, key, value)
    if actual != value:
        raise ValueError(f"{key} {actual!r} is not supported: {why}")


def check_rope(config: PretrainedConfig) -> None:
    """Raises ValueError for a RoPE scaling that `rope` cannot express."""
    scaling = getattr(config, "rope_scaling", None)
    kind = _rope_kind(scaling)
    if kind not in _ROPE_KEYS:
        raise ValueError(f"rope_scaling {scaling} is not supported: import a model with none, 'linear' or 'llama3'")
    for key in _ROPE_KEYS[kind]:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"rope_scaling {scaling}: {key} must be a number over 0")


_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope_kind(scaling: Any) -> Any:
    if scaling is None:
        return "default"
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    return kind if isinstance(kind, str) else None


def rope(config: PretrainedConfig) -> dict[str, Any]:
    """NeMo's keys for a RoPE scaling."""
    scaling = getattr(config, "rope_scaling", None)
    kind = _rope_kind(scaling)
    if kind == "linear":
        return {"seq_len_interpolation_factor": float(scaling["factor"])}
    if kind == "llama3":
        return {
            "scale_positional_embedding": True,
            "scale_factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "old_context_len": scaling["original_max_position_embeddings"],
        }
    return {}


def model_config(config: PretrainedConfig, padding: Padding, **differences: Any) -> dict[str, Any]:
    """NeMo's architecture keys; `differences` are those in which a family is not a Llama."""
    heads_per_group = config.num_attention_heads // config.num_key_value_heads
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": heads_per_group * padding.query_groups,
        "num_query_groups": padding.query_groups,
        "kv_channels": head_dim(config),
        "max_position_embeddings": config.max_position_embeddings,
        "encoder_seq_length": config.max_position_embeddings,
        **SETTLED,
        "rotary_base": config.rope_theta,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "activation": "fast-swiglu",
        "bias": False,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "init_method_std": config.initializer_range,
        **rope(config),
        **differences,
    }


def weights(
    config: PretrainedConfig, padding: Padding, *, qkv_bias: bool = False, bias: bool = False, qk_norm: bool = False
) -> list[Weight]:
    """Every tensor. `qkv_bias`: on the QKV projection; `bias`: on every linear layer; `qk_norm`: a norm on each head's
    query and key."""
    hidden, ffn, vocabulary = config.hidden_size, config.intermediate_size, (config.vocab_size, config.hidden_size)
    queries, keys = (heads * head_dim(config) for heads in (config.num_attention_heads, config.num_key_value_heads))
    qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    groups = (config.num_key_value_heads, padding.query_groups)
    linear = (  # target, outputs of each source, inputs, fusion of weights, fusion of biases where it has any
        ("self_attention.linear_qkv", qkv, hidden, by_query_group(*groups), by_query_group(*groups), qkv_bias or bias),
        ("self_attention.linear_proj", {"self_attn.o_proj": hidden}, queries, pad_input_groups(*groups), SAME, bias),
        ("mlp.linear_fc1", {"mlp.gate_proj": ffn, "mlp.up_proj": ffn}, hidden, STACK, STACK, bias),
        ("mlp.linear_fc2", {"mlp.down_proj": hidden}, ffn, SAME, SAME, bias),
    )
    norms = {  # Transformer Engine fuses a norm into the linear layer after it, and the checkpoint's keys follow that
        "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm", hidden),
        "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm", hidden),
    }
    if qk_norm:
        for kind in "qk":
            norms[f"self_attention.{kind}_layernorm.weight"] = (f"self_attn.{kind}_norm", head_dim(config))
    layer = "model.layers.{layer}."

    def named(outputs: dict[str, int], kind: str, *inputs: int) -> dict[str, Shape]:
        return {f"{layer}{name}.{kind}": (rows, *inputs) for name, rows in outputs.items()}

    table = [
        Weight("embedding.word_embeddings.weight", {"model.embed_tokens.weight": vocabulary}, pad_rows(padding.vocab)),
        Weight("decoder.final_layernorm.weight", {"model.norm.weight": (hidden,)}, SAME),
    ]
    for target, (name, size) in norms.items():
        table.append(Weight(LAYERS + target, named({name: size}, "weight"), SAME))
    for target, outputs, inputs, fusion, bias_fusion, has_bias in linear:
        table.append(Weight(f"{LAYERS}{target}.weight", named(outputs, "weight", inputs), fusion))
        if has_bias:
            table.append(Weight(f"{LAYERS}{target}.bias", named(outputs, "bias"), bias_fusion))
    if not config.tie_word_embeddings:
        table.append(Weight("output_layer.weight", {"lm_head.weight": vocabulary}, pad_rows(padding.vocab)))
    return table


def ignored(config: PretrainedConfig) -> str:
    """Rotary frequencies, which old releases of transformers saved, and the copy of a tied embedding."""
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return rf"{frequencies}|lm_head\.weight" if config.tie_word_embeddings else frequencies
