"""Peak memory and throughput of import and export on a made-up model, beside a plain copy of the same bytes.

    python -m workers.conversion FOLDER [GB]        # in tests/, needs four times GB of disk; prints one JSON object

Each measurement is a process of its own, and so is the maker: this process stays small, since Linux counts a parent's
memory as its child's. Seconds include writing everything to the disk (sync); what a command takes to start is measured
apart, on a model of some KB.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, FFN, VOCAB = 2048, 8192, 128_256


def make(folder: Path, gigabytes: float) -> None:
    """A bfloat16 Llama of about that size, in shards, a tensor at a time; its numbers repeat. 0: of some KB."""
    import torch
    from transformers import LlamaConfig
    from workers.families import tokenizer

    from swirl_nemo.checkpoint.families.llama import LLAMA
    from swirl_nemo.checkpoint.mapping import Padding
    from swirl_nemo.checkpoint.safetensors_files import ShardWriter
    from swirl_nemo.checkpoint.spans import Span, gather

    hidden, ffn, vocab = (HIDDEN, FFN, VOCAB) if gigabytes else (32, 64, 128)

    def config(layers: int) -> LlamaConfig:
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
        size = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
        return LlamaConfig(**size, **heads, architectures=["LlamaForCausalLM"], torch_dtype="bfloat16")

    def shapes(layers: int) -> dict:
        weights = LLAMA.weights(config(layers), Padding(vocab=vocab, query_groups=8))
        return {
            name: (torch.bfloat16, shape)
            for weight in weights
            for layer in weight.layers(layers)
            for name, shape in zip(weight.names(layer), weight.sources.values(), strict=True)
        }

    def size(layers: int) -> int:
        return sum(2 * torch.Size(shape).numel() for _, shape in shapes(layers).values())

    layers = max(1, round((gigabytes * 1e9 - size(0)) / (size(1) - size(0))))
    folder.mkdir(parents=True)
    config(layers).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    with (folder / "numbers").open("w+b") as numbers, ShardWriter(folder, shapes(layers), 10**9) as writer:
        torch.randn(vocab * hidden, dtype=torch.bfloat16).view(torch.uint8).numpy().tofile(numbers)
        for name, (dtype, shape) in shapes(layers).items():
            view = torch.empty(shape, dtype=dtype, device="meta")
            gather([Span(numbers, 0, dtype, view)], writer.span(name, view))
        writer.finish()
    (folder / "numbers").unlink()


def measure(verb: str, work: Path, gigabytes: float) -> tuple[float, float, float]:
    """Seconds until all is on the disk, CPU seconds, and the peak resident memory in GB, of this process."""
    from swirl_nemo.checkpoint.export import export_hf
    from swirl_nemo.checkpoint.huggingface import import_hf

    out, run = {
        "copy": ("copy", lambda: subprocess.run(["cp", "-r", work / "hf", work / "copy"], check=True)),
        "import": ("nemo", lambda: import_hf(work / "hf", work / "nemo")),
        "export": ("back", lambda: export_hf(work / "nemo", work / "back")),
    }[verb]
    shutil.rmtree(work / out, ignore_errors=True)
    # The host of a virtual machine takes back pages that lie free, and giving them again is slower than the copy: from
    # 1.2 s for 4 GB to 9. Whoever is measured finds as many pages at hand as it needs.
    touch = f"b'1' * {int(gigabytes * 1.2e9)}"
    subprocess.run([sys.executable, "-c", touch], check=True)
    os.sync()
    before, started = _cpu_seconds(), time.monotonic()
    run()
    os.sync()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return time.monotonic() - started, _cpu_seconds() - before, peak


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def seconds_to_start(work: Path) -> float:
    """Of `swirl import`, the whole command, on a model of some KB."""
    shutil.rmtree(work / "small", ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "swirl_nemo", "import", work / "small_hf", work / "small"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main(work: Path, gigabytes: float = 4.0, repeats: int = 7) -> dict:
    def child(*words) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "workers.conversion", *map(str, words)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    for name, size in (("hf", gigabytes), ("small_hf", 0)):
        if not (work / name).exists():
            child(work / name, size, "make")
    verbs = ("copy", "import", "export")
    measured: dict[str, list[list[float]]] = {verb: [] for verb in verbs}
    for _ in range(repeats):
        for verb in verbs:
            measured[verb].append(json.loads(child(work, gigabytes, verb)))
    seconds, cpu, peak = (
        {verb: [round(run[column], 2) for run in runs] for verb, runs in measured.items()} for column in range(3)
    )
    pairs = {verb: zip(seconds["copy"], seconds[verb], strict=True) for verb in verbs[1:]}
    return {
        "gigabytes": round(size_of(work / "hf") / 1e9, 2),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "throughput_of_copy": {
            verb: round(statistics.median(copy / own for copy, own in paired), 2) for verb, paired in pairs.items()
        },
        "seconds_to_start": round(statistics.median(seconds_to_start(work) for _ in range(3)), 1),
        "peak_gb": {verb: max(values) for verb, values in peak.items()},
        "limit_gb": round(3 * VOCAB * HIDDEN * 2 / 1e9 + 1, 2),
    }


if __name__ == "__main__":
    folder, sizes, verb = Path(sys.argv[1]), [float(word) for word in sys.argv[2:3]], sys.argv[3:]
    if verb == ["make"]:
        make(folder, *sizes)
    elif verb:
        print(json.dumps(measure(*verb, folder, *sizes)))
    else:
        print(json.dumps(main(folder, *sizes), indent=2))
