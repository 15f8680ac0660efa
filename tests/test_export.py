"""Export: from any sharding, in shards and dtypes, with its card; broken and malicious checkpoints."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from workers import families

from swirl_nemo.checkpoint.distributed import PREFIX, DistributedTensors, DistributedWriter
from swirl_nemo.checkpoint.export import export_hf, named_dtype, shard_bytes
from swirl_nemo.checkpoint.huggingface import import_hf
from swirl_nemo.checkpoint.spans import Span, gather


@pytest.fixture
def hf(tmp_path) -> Path:
    families.save("qwen2", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def nemo(hf) -> Path:
    import_hf(hf, hf.parent / "nemo")
    return hf.parent / "nemo"


def test_shards_have_an_index_and_hold_what_one_file_holds(nemo, hf, tmp_path):
    export_hf(nemo, tmp_path / "out", shard_size=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    whole = load_file(hf / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for file in files:
        with safe_open(tmp_path / "out" / file, "pt") as part:  # safetensors' own reader, with its checks
            assert sum(part.get_tensor(name).nbytes for name in part.keys()) <= 20_000  # noqa: SIM118
            for name in part.keys():  # noqa: SIM118
                assert index["weight_map"].pop(name) == file
                assert torch.equal(part.get_tensor(name), whole.pop(name))
    assert not whole and not index["weight_map"]


def test_a_dtype_is_rounded_as_torch_rounds_and_config_says_so(nemo, hf, tmp_path):
    export_hf(nemo, tmp_path / "out", dtype=torch.bfloat16)
    narrow, wide = load_file(tmp_path / "out" / "model.safetensors"), load_file(hf / "model.safetensors")
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (hf, tmp_path / "out"))
    assert after == before | {"torch_dtype": "bfloat16"}


def test_added_tokens_survive_both_ways(hf, tmp_path):
    """Tokens added with transformers' own means: embeddings, head and tokenizer come back with them."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    codes = [f"<image_{number}>" for number in range(40)]  # past 128: another padding
    tokenizer.add_tokens(codes[:30])
    tokenizer.add_special_tokens({"additional_special_tokens": codes[30:]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for folder in (tmp_path / "wide",):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    import_hf(tmp_path / "wide", tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert after["lm_head.weight"].shape == (138, 32)
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.convert_tokens_to_ids(codes) == list(range(98, 138))
    assert back.additional_special_tokens == codes[30:]


def test_an_export_generates_with_transformers(nemo, tmp_path):
    export_hf(nemo, tmp_path / "out")
    model, tokenizer = str(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    written = pipeline("text-generation", model=model, tokenizer=tokenizer)("w5 w6 w7", max_new_tokens=3)
    assert written[0]["generated_text"].startswith("w5 w6 w7 ")


def test_any_sharding_is_read(tmp_path):
    """Chunks of rows and of columns, as tensor parallelism saves them, cast on the way; and a hole, which is named."""
    values, key = torch.randn(2, 4, 6), "decoder.layers.a.weight"
    whole = torch.empty(4, 6, device="meta")
    parts = [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 4)), (slice(2, 4), slice(4, 6))]
    folder = tmp_path / "weights"
    with DistributedWriter(folder, 2) as writer:
        writer.span(key, 0, whole)
        chunks = writer._tensors[PREFIX + key].chunks
        for rows, columns in parts:
            part = values[1:2, rows, columns].clone()
            chunks.append(ChunkStorageMetadata(torch.Size((1, rows.start, columns.start)), part.shape))
            writer._save(MetadataIndex(PREFIX + key, chunks[-1].offsets), part)
        writer.finish()
    with DistributedTensors(folder) as tensors, (tmp_path / "out").open("w+b") as out:
        for view, dtype in ((whole, torch.float32), (whole[1:, 1:5], torch.bfloat16)):
            target = Span(out, 8, dtype, view)
            written = gather(tensors.spans(key, 1, whole), target)
            expected = values[1].as_strided(view.shape, view.stride(), 24 + view.storage_offset()).to(dtype)
            data = bytearray((tmp_path / "out").read_bytes()[8 : 8 + written])
            assert torch.equal(torch.frombuffer(data, dtype=dtype).view(view.shape), expected)
        tensors._tensors[key].chunks.pop()
        with pytest.raises(ValueError, match="a.weight has 20 of 24 values"):
            tensors.spans(key, 1, whole)


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    (tmp_path / "short").write_bytes(bytes(40))
    whole = torch.empty(4, 6, device="meta")
    with (
        (tmp_path / "short").open("rb") as short,
        (tmp_path / "out").open("wb") as out,
        pytest.raises(ValueError, match="short became shorter while it was read"),
    ):
        gather([Span(short, 0, torch.float32, whole)], Span(out, 0, torch.float32, whole))


def test_the_card_says_where_a_model_comes_from(nemo, tmp_path):
    run = tmp_path / "runs" / "ring-1"
    place = run / "checkpoints" / "00000020"
    place.mkdir(parents=True)
    shutil.copytree(nemo, place / "fwm")
    (place.parent / "latest").symlink_to("00000020")
    (run / "env.json").write_text(json.dumps({"seed": 7, "commit": "abc"}))
    (run / "config.yaml").write_text("data: {world: household, labelled: a.jsonl, unlabelled: b.jsonl}\n")
    (place / "state.json").write_text(json.dumps({"iteration": 2, "step": 20, "stage": "fwm", "optimizer": False}))
    figures = {"fwm": {"exact_match": {"warmup": 0.5, "swirl": 0.75}}, "idm": {"token_f1": {"warmup": 0.1}}}
    (run / "summary.json").write_text(json.dumps({"held_out": figures, "commit": "def"}))
    export_hf(place.parent / "latest" / "fwm", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| base model | hf |",
        "| architecture | Qwen2ForCausalLM, 2 layers |",
        "| role | forward world model: state x and action z to the next state y |",
        "| run | ring-1 |",
        "| checkpoint | 00000020, iteration 2, step 20 |",
        "| data | household, a.jsonl, b.jsonl |",
        "| seed | 7 |",
        "| commit | def |",
        "| metric | warmup | swirl |",
        "| exact_match | 0.5000 | 0.7500 |",
    ):
        assert line in card.splitlines()
    assert "token_f1" not in card
    export_hf(nemo, tmp_path / "alone")
    assert "| run | unknown |" in (tmp_path / "alone" / "README.md").read_text()


# --verify


def verify(nemo: Path, *options: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "export", nemo, nemo.parent / "out", "--verify"]
    return subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True, timeout=300)


@pytest.mark.megatron
@pytest.mark.slow
def test_verify_compares_log_probs_on_prompts(nemo, tmp_path):
    (tmp_path / "prompts.txt").write_text("w5 w6 w7 w8\n\nw9 w10\n")
    done = verify(nemo, "--prompts", tmp_path / "prompts.txt")
    assert done.returncode == 0, done.stderr
    said = re.search(r"log-probs differ from Megatron's by at most (\S+)", done.stdout)
    assert float(said[1]) < 1e-4 and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.megatron
@pytest.mark.slow
def test_verify_refuses_an_export_that_computes_something_else(nemo, tmp_path):
    """transformers reads another base of the rotations than the model was trained with."""
    path = nemo / "tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 50.0}))
    done = verify(nemo)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    *_, last = done.stderr.strip().splitlines()
    assert "log-probs of the export differ from Megatron's by" in last and "over 0.0001" in last


def test_prompts_without_a_token_to_score_are_refused(nemo, tmp_path):
    (tmp_path / "prompts.txt").write_text("w5\n")
    with pytest.raises(ValueError, match="prompts.txt: needs lines of two or more tokens"):
        export_hf(nemo, tmp_path / "out", verify=True, prompts=tmp_path / "prompts.txt")
    assert not (tmp_path / "out").exists()


# what can be wrong


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def weights(nemo: Path) -> Path:
    return nemo / "model_weights"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def poison(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def poison_item(nemo: Path) -> None:
    """The pickle of one tensor, inside its archive, in place."""
    path = weights(nemo) / "__0_0.distcp"
    data = path.read_bytes()
    place = data.index(b"ctorch._utils\n_rebuild_tensor_v2\n")
    evil = b"cos\nsystem\n(S'touch hacked'\ntR."
    path.write_bytes(data[:place] + evil + data[place + len(evil) :])


def rewrite_metadata(nemo: Path, edit) -> None:
    path = weights(nemo) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def lead_outside(metadata) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "../" + place.relative_path


KEY = "model.decoder.layers.mlp.linear_fc2.weight"
MISTAKES = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "output exists": (lambda nemo: (nemo.parent / "out").mkdir(), "out exists"),
    "no model config": (lambda nemo: (nemo / "model_config.yaml").unlink(), "has no model_config.yaml"),
    "no weights": (lambda nemo: shutil.rmtree(weights(nemo)), "metadata.json: missing or not JSON"),
    "another format": (
        lambda nemo: (weights(nemo) / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
        r"metadata\.json: format .*zarr",
    ),
    "malicious metadata": (
        lambda nemo: poison(weights(nemo) / ".metadata"),
        r"\.metadata: names (posix|os|builtins)\.",
    ),
    "malicious tensor": (poison_item, "__0_0.distcp: .* cannot be read"),
    "path outside": (lambda nemo: rewrite_metadata(nemo, lead_outside), "outside its folder"),
    "cut metadata": (lambda nemo: cut(weights(nemo) / ".metadata"), r"\.metadata: missing or damaged"),
    "cut weights": (lambda nemo: cut(weights(nemo) / "__0_0.distcp"), "__0_0.distcp: missing or cut"),
    "no weights file": (lambda nemo: (weights(nemo) / "__0_0.distcp").unlink(), "__0_0.distcp: missing or cut"),
    "missing tensor": (
        lambda nemo: rewrite_metadata(nemo, lambda m: m.state_dict_metadata.pop(KEY)),
        "tensor decoder.layers.mlp.linear_fc2.weight is missing",
    ),
    "unknown tensor": (
        lambda nemo: rewrite_metadata(nemo, lambda m: m.state_dict_metadata.update(x=m.state_dict_metadata[KEY])),
        "tensor x is unknown",
    ),
    "wrong shape": (
        lambda nemo: rewrite_metadata(nemo, lambda m: setattr(m.state_dict_metadata[KEY], "size", (2, 3, 4))),
        r"linear_fc2.weight has shape \[2, 3, 4\], its config.json says \[2, 32, 48\]",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(nemo, mistake, monkeypatch):
    spoil, message = MISTAKES[mistake]
    monkeypatch.chdir(nemo.parent)
    spoil(nemo)
    before = sorted(nemo.parent.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        export_hf(nemo, nemo.parent / "out")
    assert "\n" not in str(error.value)
    assert sorted(nemo.parent.iterdir()) == before  # nor a file `hacked`


def test_options_are_read_in_words():
    assert [shard_bytes(text) for text in ("5GB", "1.5 mb", "700")] == [5 * 10**9, 1_500_000, 700]
    for wrong in ("5TB", "", "-1GB", "0"):
        with pytest.raises(ValueError, match="--shard-size"):
            shard_bytes(wrong)
    assert named_dtype("float16") is torch.float16 and named_dtype(None) is None
    with pytest.raises(ValueError, match="--dtype int8: not supported: give one of float32, bfloat16, float16"):
        named_dtype("int8")
