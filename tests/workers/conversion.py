"""Peak memory and throughput of import and export on a made-up model, beside a plain copy of the same bytes.

    python -m workers.conversion FOLDER [GB]        # in tests/, needs four times GB of disk; prints one JSON object

Each verb is a process of its own, and so is the maker: this process stays small, since Linux counts a parent's memory
as its child's. Seconds include writing everything to the disk (sync), for the copy too; CPU seconds say more where the
machine has other work.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, FFN, VOCAB = 2048, 8192, 128_256


def make(folder: Path, gigabytes: float) -> None:
    """A bfloat16 Llama of about that size, in shards, a tensor at a time; its numbers repeat."""
    import torch
    from transformers import LlamaConfig
    from workers.families import tokenizer

    from swirl_nemo.checkpoint.families.llama import LLAMA
    from swirl_nemo.checkpoint.mapping import Padding
    from swirl_nemo.checkpoint.safetensors_files import ShardWriter

    def config(layers: int) -> LlamaConfig:
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
        size = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers}
        return LlamaConfig(**size, **heads, architectures=["LlamaForCausalLM"], torch_dtype="bfloat16")

    def shapes(layers: int) -> dict:
        weights = LLAMA.weights(config(layers), Padding(vocab=VOCAB, query_groups=8))
        return {
            name: (torch.bfloat16, shape)
            for weight in weights
            for layer in weight.layers(layers)
            for name, shape in zip(weight.names(layer), weight.sources.values(), strict=True)
        }

    def size(layers: int) -> int:
        return sum(2 * torch.Size(shape).numel() for _, shape in shapes(layers).values())

    layers = round((gigabytes * 1e9 - size(0)) / (size(1) - size(0)))
    folder.mkdir(parents=True)
    config(layers).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    numbers = torch.randn(VOCAB * HIDDEN, dtype=torch.bfloat16)
    with ShardWriter(folder, shapes(layers), 10**9) as writer:
        for name, (_, shape) in shapes(layers).items():
            writer.write(name, numbers[: torch.Size(shape).numel()].view(shape))
        writer.finish()


def measure(command: list) -> tuple[float, float, float]:
    """Seconds until all is on the disk, CPU seconds, and the peak resident memory in GB."""
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    os.sync()
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(work: Path, gigabytes: float = 4.0, repeats: int = 3) -> dict:
    if not (work / "hf").exists():
        subprocess.run([sys.executable, "-m", "workers.conversion", work / "hf", str(gigabytes), "make"], check=True)
    swirl = [sys.executable, "-W", "ignore", "-m", "swirl_nemo"]
    commands = {
        "copy": ("copy", ["cp", "-r", work / "hf", work / "copy"]),
        "import": ("nemo", [*swirl, "import", work / "hf", work / "nemo"]),
        "export": ("back", [*swirl, "export", work / "nemo", work / "back"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, float] = dict.fromkeys(commands, 0.0)
    for _ in range(repeats):
        for name, (folder, command) in commands.items():
            # right before: a virtual machine's host takes back pages that lie free, and giving them again is slow
            shutil.rmtree(work / folder, ignore_errors=True)
            taken, used, peak = measure(command)
            seconds[name].append(round(taken, 2))
            cpu[name].append(round(used, 2))
            peaks[name] = max(peaks[name], round(peak, 3))
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    largest = VOCAB * HIDDEN * 2 / 1e9
    return {
        "gigabytes": round(size_of(work / "hf") / 1e9, 2),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "throughput_of_copy": {name: round(median["copy"] / median[name], 2) for name in ("import", "export")},
        "peak_gb": peaks,
        "limit_gb": round(3 * largest + 1, 2),
    }


if __name__ == "__main__":
    folder, sizes = Path(sys.argv[1]), [float(word) for word in sys.argv[2:3]]
    if sys.argv[3:] == ["make"]:
        make(folder, *sizes)
    else:
        print(json.dumps(main(folder, *sizes), indent=2))
