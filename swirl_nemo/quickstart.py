"""`swirl quickstart`: collect the built-in world, make a tiny model with random weights, train, compare, report."""

import os
import sys
from pathlib import Path

from .checks import check, check_files
from .runs import check_settings
from .settings import compose

# A Llama of under a million parameters; its size is the quickstart's own, a real run imports a pretrained model.
TINY = {"hidden": 96, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 256, "max_positions": 512, "tied": False}
PROCESSES = 2  # so small a model gains from a second process, and nothing from a second thread


def run(overrides: list[str]) -> None:
    """Every part of a real run in small; becomes `torchrun ... train`. A second call goes on where the first ended."""
    settings = ["experiment=quickstart", *overrides]
    cfg = compose(settings)
    check(cfg, PROCESSES)
    prepare(cfg.data.world, Path(cfg.data.tokenizer), Path(cfg.model.fwm))
    check_files(cfg)
    check_settings(cfg)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = [sys.executable, *launcher, "-m", "swirl_nemo", "train", *settings]
    quiet = "ignore:The pynvml package is deprecated:FutureWarning"  # torchrun imports torch before cli.py can say so
    os.execve(sys.executable, command, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": quiet})


def prepare(world: str, tokenizer: Path, model: Path, *collecting: str) -> None:
    """Data, collected with the overrides `collecting`, and starting model, where they are not there yet."""
    if not tokenizer.exists():
        from .collection import CollectConfig, collect

        collect(compose([f"world={world}", *collecting], "collect", CollectConfig))
    if not model.exists():
        from .checkpoint.huggingface import import_hf
        from .checkpoint.random_init import random_llama

        source = model.with_name(model.name + "_hf")
        if not source.exists():
            random_llama(source, tokenizer, **TINY, seed=0)
        import_hf(source, model)
