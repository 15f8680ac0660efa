"""`swirl quickstart`: collect the built-in world, make a tiny model with random weights, train, compare, report."""

from pathlib import Path

from .settings import compose, load

# A Llama of under a million parameters; its size is the quickstart's own, a real run imports a pretrained model.
TINY = {"hidden": 96, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 256, "max_positions": 256, "tied": False}


def run(overrides: list[str]) -> None:
    """Every part of a real run in small. A second call goes on from what the first left."""
    settings = ["experiment=quickstart", *overrides]
    cfg = compose(settings)
    prepare(Path(cfg.data.tokenizer), Path(cfg.model.fwm))
    cfg = load(settings)

    from . import alternation

    alternation.train(cfg)


def prepare(tokenizer: Path, model: Path) -> None:
    """Data and starting model, where they are not there yet."""
    if not tokenizer.exists():
        from . import worlds
        from .worlds.config import CollectConfig

        worlds.collect(compose(["world=household"], "collect", CollectConfig))
    if not model.exists():
        from .checkpoint.huggingface import import_hf
        from .checkpoint.random_init import random_llama

        source = model.with_name(model.name + "_hf")
        if not source.exists():
            random_llama(source, tokenizer, **TINY, seed=0)
        import_hf(source, model)
