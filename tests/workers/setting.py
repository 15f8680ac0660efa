"""What the Megatron processes of these tests run on: a little of the household world, and two small random Llamas.

`fwm` and `idm` have untied embeddings, `tied` has tied ones. All have weights large enough that attention and context
matter: a fresh Llama predicts nearly the same everywhere. Attention is grouped-query.
"""

from pathlib import Path

MODELS = ("fwm", "idm", "tied")
SHAPE = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "max_positions": 128}
ROWS = {"labelled": 24, "unlabelled": 40, "validation": 6, "test": 6, "test_combinations": 0}


def make(work: Path, shape: dict[str, int] = SHAPE) -> None:
    """Household transitions in work/data; each model as work/{name}_hf and, imported, work/{name}
    and, with four query groups, work/{name}_padded."""
    from safetensors.torch import load_file, save_file

    from swirl_nemo.checkpoint.huggingface import import_hf
    from swirl_nemo.checkpoint.random_init import random_llama
    from swirl_nemo.collection import CollectConfig, collect
    from swirl_nemo.settings import compose

    counts = [f"world.{split}={count}" for split, count in ROWS.items()]
    collect(compose(["world=household", f"out={work / 'data'}", *counts], "collect", CollectConfig))
    for seed, name in enumerate(MODELS):
        folder = work / f"{name}_hf"
        random_llama(folder, work / "data" / "tokenizer", **shape, tied=name == "tied", seed=seed)
        tensors = load_file(folder / "model.safetensors")
        sharp = {key: tensor * 10 if tensor.dim() == 2 else tensor for key, tensor in tensors.items()}
        save_file(sharp, folder / "model.safetensors", metadata={"format": "pt"})
        import_hf(folder, work / name)
        import_hf(folder, work / f"{name}_padded", query_groups=4)


def overrides(work: Path) -> list[str]:
    """Settings that every run here shares. Role, layout and steps are the caller's."""
    data = {name: work / "data" / f"{name}.jsonl" for name in ("labelled", "unlabelled", "validation", "test")}
    return [
        *(f"data.{name}={path}" for name, path in data.items()),
        f"data.test_episodes={work / 'data' / 'test_episodes.jsonl'}",
        f"data.collection={work / 'data' / 'collect.json'}",
        f"data.unlabelled_actions={work / 'data' / 'unlabelled_actions.jsonl'}",
        f"data.tokenizer={work / 'data' / 'tokenizer'}",
        f"model.fwm={work / 'fwm'}",
        f"model.idm={work / 'idm'}",
        "model.max_length=128",
        "model.logit_chunk=13",
        "run.tensorboard=false",
        f"run.root={work / 'runs'}",
        "parallel.micro_batch=3",
        "parallel.score_batch=5",
        "optimizer.eps=1e-4",  # with less, Adam makes a gradient that is rounding alone as large as any other
        "cluster.timeout_minutes=3",
    ]
