"""Random tiny models of every family, and what the actor makes of them alone and at TP2 x PP2.

Run as a module, this is the Megatron process: it imports the stack once and forks each layout's ranks.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

VOCAB = 98  # not a multiple of 128: the padding shows
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # short enough that 24 tokens see all three bands
}
FAMILIES = {
    "llama2": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True)),
    "llama linear": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0})),
    "llama biased": (LlamaForCausalLM, LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=16)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=32, head_dim=16)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, rope_theta=1e6)),
    "qwen3": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SHAPE, head_dim=16)),
    "gemma exact gelu": (GemmaForCausalLM, GemmaConfig(**SHAPE, head_dim=16, hidden_act="gelu")),
}
LAYOUTS = {"single": (), "TP2 PP2": ("parallel.tensor=2", "parallel.pipeline=2")}
LENGTH, GENERATED = 24, 6


class NormedHeads(nn.Module):
    """Qwen3's query or key: a projection, then a norm of each head. transformers 4.48 has Qwen2 only."""

    def __init__(self, projection: nn.Linear, head_dim: int, eps: float):
        super().__init__()
        self.projection = nn.Linear(projection.in_features, projection.out_features, bias=False)
        self.norm = Qwen2RMSNorm(head_dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x).unflatten(-1, (-1, len(self.norm.weight)))).flatten(-2)


QWEN3_NAMES = {
    f"{kind}_proj.{part}": f"{kind}_{new}" for kind in "qk" for part, new in (("projection", "proj"), ("norm", "norm"))
}


def reference(name: str):
    """The random model of transformers, float32; the same at every call."""
    kind, config = FAMILIES[name]
    torch.manual_seed(list(FAMILIES).index(name))
    model = kind(config).eval()
    if name == "qwen3":
        for layer in model.model.layers:
            attention = layer.self_attn
            for role in ("q_proj", "k_proj"):
                normed = NormedHeads(getattr(attention, role), config.head_dim, config.rms_norm_eps)
                nn.init.normal_(normed.projection.weight, std=config.initializer_range)
                setattr(attention, role, normed)
            attention.v_proj = nn.Linear(config.hidden_size, attention.v_proj.out_features, bias=False)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms and biases, which start as ones and zeros
            nn.init.normal_(parameter, mean=0.0 if "bias" in parameter_name else 1.0, std=0.3)
    return model


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """The model of `reference` as a Hugging Face folder."""
    from safetensors.torch import load_file, save_file

    model = reference(name).to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB" if name == "llama2" else "5GB")
    if name == "qwen3":
        from swirl_nemo.checkpoint.families.qwen import Qwen3Config

        config = Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)
        config.architectures, config.torch_dtype = ["Qwen3ForCausalLM"], dtype
        config.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        for old, new in QWEN3_NAMES.items():
            tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", unk_token="w3", pad_token="w2")


def rows() -> list[list[int]]:
    return torch.randint(VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(5)).tolist()


def _visit(work: Path, name: str, layout: str) -> None:
    """Log-probs, greedy completions with the cache, the gradient norm of summed log-probs; a checkpoint as a run's."""
    import torch.distributed as dist

    from swirl_nemo.actor.batch import MicroBatch
    from swirl_nemo.checkpoint.saving import save_weights
    from swirl_nemo.checkpoint.verify import load_actor, megatron_logprobs
    from swirl_nemo.data.batch import collate
    from swirl_nemo.rollout.sampling import unrestricted

    actor = load_actor(work / name, LENGTH + GENERATED, LAYOUTS[layout])
    save_weights(actor, work / name, work / f"{name} {layout}")
    logprobs = megatron_logprobs(actor, rows())
    distribution = unrestricted(VOCAB, actor.padded_vocab_size, VOCAB - 1)
    options = {"group": 1, "max_length": GENERATED, "uniforms": None, "batch": 1000}
    rollout = actor.infer(rows(), distribution, **options)
    batch = collate([row[:1] for row in rows()], [row[1:] for row in rows()])
    loss = MicroBatch(batch, distribution, loss=lambda values, entropies: (-values.sum(), {}))
    norm, _, _ = actor.optimizer_step([loss], lr=0.0, clip_grad=1.0)
    if dist.get_rank() == 0:
        found = {"logprobs": logprobs, "completions": rollout.completions, "grad_norm": norm}
        torch.save(found, work / f"{name} {layout}.pt")


def main(work: Path) -> None:
    from workers.layouts import fork, import_stack

    import_stack()
    for name in FAMILIES:
        for layout, overrides in LAYOUTS.items():
            fork(_visit, work, name, layout, processes=4 if overrides else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
