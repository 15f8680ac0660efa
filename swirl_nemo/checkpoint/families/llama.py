"""Llama: RMSNorm before attention and MLP, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023)."""

from typing import Any

from transformers import LlamaConfig

from ..mapping import LAYERS, Family, Padding, Weight, by_query_group, pad_input_groups, pad_rows, same, stack


def check(config: LlamaConfig) -> None:
    """Raises ValueError, naming the key of config.json, for a variant that Megatron's GPTModel does not compute."""
    if config.rope_scaling is not None:
        raise ValueError(f"rope_scaling {config.rope_scaling} is not supported: import a model without it")
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act {config.hidden_act!r} is not supported: Llama's gated MLP needs 'silu'")
    if config.attention_bias != config.mlp_bias:
        raise ValueError("attention_bias and mlp_bias differ: Megatron has a bias in all linear layers or in none")


def model_config(config: LlamaConfig, padding: Padding) -> dict[str, Any]:
    heads_per_group = config.num_attention_heads // config.num_key_value_heads
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": heads_per_group * padding.query_groups,
        "num_query_groups": padding.query_groups,
        "kv_channels": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "encoder_seq_length": config.max_position_embeddings,
        "position_embedding_type": "rope",
        "rotary_base": config.rope_theta,
        "rotary_percentage": 1.0,
        "rotary_interleaved": False,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "activation": "fast-swiglu",
        "bias": config.attention_bias,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "init_method_std": config.initializer_range,
        # Dropout would make the policy's log-probs differ from those of the rollout that it is trained on.
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def weights(config: LlamaConfig, padding: Padding) -> list[Weight]:
    hidden, ffn, vocabulary = config.hidden_size, config.intermediate_size, (config.vocab_size, config.hidden_size)
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    groups = (config.num_key_value_heads, padding.query_groups)
    linear = (  # target, outputs of each source, inputs, join
        ("self_attention.linear_qkv", qkv, hidden, by_query_group(*groups)),
        ("self_attention.linear_proj", {"self_attn.o_proj": hidden}, queries, pad_input_groups(*groups)),
        ("mlp.linear_fc1", {"mlp.gate_proj": ffn, "mlp.up_proj": ffn}, hidden, stack),
        ("mlp.linear_fc2", {"mlp.down_proj": hidden}, ffn, same),
    )
    layer = "model.layers.{layer}."
    table = [
        Weight("embedding.word_embeddings.weight", {"model.embed_tokens.weight": vocabulary}, pad_rows(padding.vocab)),
        Weight("decoder.final_layernorm.weight", {"model.norm.weight": (hidden,)}, same),
        # Transformer Engine fuses a norm into the linear layer after it, and the checkpoint's keys follow that.
        Weight(
            LAYERS + "self_attention.linear_qkv.layer_norm_weight", {layer + "input_layernorm.weight": (hidden,)}, same
        ),
        Weight(
            LAYERS + "mlp.linear_fc1.layer_norm_weight", {layer + "post_attention_layernorm.weight": (hidden,)}, same
        ),
    ]
    for target, outputs, inputs, join in linear:
        shapes = {f"{layer}{name}.weight": (rows, inputs) for name, rows in outputs.items()}
        table.append(Weight(f"{LAYERS}{target}.weight", shapes, join))
        if config.attention_bias:
            shapes = {f"{layer}{name}.bias": (rows,) for name, rows in outputs.items()}
            table.append(Weight(f"{LAYERS}{target}.bias", shapes, same if len(shapes) == 1 else join))
    if not config.tie_word_embeddings:
        table.append(Weight("output_layer.weight", {"lm_head.weight": vocabulary}, pad_rows(padding.vocab)))
    return table


def ignored(config: LlamaConfig) -> str:
    """Rotary frequencies, which old releases of transformers saved, and the copy of a tied embedding."""
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return rf"{frequencies}|lm_head\.weight" if config.tie_word_embeddings else frequencies


LLAMA = Family(
    config=LlamaConfig,
    check=check,
    model_config=model_config,
    weights=weights,
    ignored=ignored,
    # Megatron's own layers ask for the first four; Transformer Engine's attention and norm for the others too.
    stateful=(
        LAYERS + "self_attention.linear_qkv",
        LAYERS + "self_attention.linear_proj",
        LAYERS + "mlp.linear_fc1",
        LAYERS + "mlp.linear_fc2",
        LAYERS + "self_attention.core_attention",
        "decoder.final_layernorm",
    ),
)
