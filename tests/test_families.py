"""Every family, from random tiny models: weights back bit for bit, and transformers' log-probs from the actor."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from workers import families

from swirl_nemo.checkpoint.distributed import DistributedTensors
from swirl_nemo.checkpoint.export import export_hf
from swirl_nemo.checkpoint.families import FAMILIES
from swirl_nemo.checkpoint.huggingface import import_hf


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_model(one: Path, other: Path) -> None:
    """The same tensors bit for bit, and the same configuration and tokenizer byte for byte."""
    left, right = tensors(one), tensors(other)
    assert left and left.keys() == right.keys()
    for name in left:
        assert left[name].dtype is right[name].dtype
        assert torch.equal(left[name], right[name]), name
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (one / file).exists():  # Qwen3 has no generation_config.json here
            assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_there_and_back_is_bitwise(tmp_path, name, dtype):
    """With a query group added, so that padding of every kind comes off again."""
    families.save(name, tmp_path / "hf", dtype)
    import_hf(tmp_path / "hf", tmp_path / "nemo", query_groups=3)
    export_hf(tmp_path / "nemo", tmp_path / "back")
    assert_same_model(tmp_path / "hf", tmp_path / "back")
    with DistributedTensors(tmp_path / "nemo" / "model_weights") as stored:
        assert stored.shape("embedding.word_embeddings.weight") == (128, 32)
        embedding = {"model.embedding.word_embeddings.weight": torch.ones(128, 32, dtype=dtype)}
        dcp.load(embedding, checkpoint_id=tmp_path / "nemo" / "model_weights", no_dist=True)
        (rows,) = embedding.values()
        assert rows[97].any() and not rows[98:].any()
        head_dim = 16 if name not in ("llama2", "llama3", "llama linear", "qwen2") else 8
        assert stored.shape("decoder.layers.self_attention.linear_qkv.weight") == (2, 3 * 4 * head_dim, 32)


def test_every_architecture_has_a_case(tmp_path):
    saved = set()
    for name in families.FAMILIES:
        families.save(name, tmp_path / name)
        saved |= set(json.loads((tmp_path / name / "config.json").read_text())["architectures"])
    assert saved == set(FAMILIES)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Each family imported and looked at in each layout: two minutes."""
    from workers.layouts import run_module

    folder = tmp_path_factory.mktemp("families")
    for name in families.FAMILIES:
        families.save(name, folder / f"{name} hf")
        import_hf(folder / f"{name} hf", folder / name)
    run_module("workers.families", folder)
    return folder


@pytest.mark.megatron
@pytest.mark.slow
@pytest.mark.parametrize("layout", families.LAYOUTS)
@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_actor_computes_what_transformers_computes(work, name, layout):
    """Log-probs within 1e-4, the same greedy completions from the cache, the same gradient norm."""
    found = torch.load(work / f"{name} {layout}.pt")
    model, prompts = families.reference(name), torch.tensor(families.rows())
    scores = model(prompts).logits[:, :-1].log_softmax(-1)
    logprobs = scores.gather(2, prompts[:, 1:, None])[..., 0]
    assert scores.std(dim=1).mean() > 0.1  # context matters
    torch.testing.assert_close(torch.stack(found["logprobs"]), logprobs, atol=1e-4, rtol=0)
    (-logprobs.sum()).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    completed = prompts
    with torch.no_grad():
        for _ in range(families.GENERATED):
            completed = torch.cat([completed, model(completed).logits[:, -1:].argmax(-1)], 1)
    assert found["completions"] == completed[:, families.LENGTH :].tolist()


@pytest.mark.megatron
@pytest.mark.slow
@pytest.mark.parametrize("layout", families.LAYOUTS)
@pytest.mark.parametrize("name", families.FAMILIES)
def test_what_a_run_saves_is_exported_bitwise(work, tmp_path, name, layout):
    """Megatron's own save, sharded by rows, columns and layers at TP2 x PP2, is the model that was imported."""
    saved = work / f"{name} {layout}"
    writers = {file.name.split("_")[2] for file in (saved / "model_weights").glob("*.distcp")}
    assert len(writers) == (4 if families.LAYOUTS[layout] else 1), writers
    export_hf(saved, tmp_path / "back")
    assert_same_model(work / f"{name} hf", tmp_path / "back")
