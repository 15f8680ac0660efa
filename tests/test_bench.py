"""`swirl bench`: the work has the sizes it says, the limit is that of least work, mistakes are one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from workers.layouts import TESTS

from swirl_nemo.bench import work
from swirl_nemo.bench.config import BenchConfig, check
from swirl_nemo.bench.limit import Machine, Sizes, least_seconds
from swirl_nemo.settings import compose

COUNTS = {"token": 358, "training": 1507}


@pytest.fixture
def cfg() -> BenchConfig:
    return compose([], "bench/step", BenchConfig)


def swirl(*words: str | Path, processes: int = 1) -> subprocess.CompletedProcess:
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, "-W", "ignore", *torchrun, "-m", "swirl_nemo", "bench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_prompts_and_instruction_have_the_lengths_asked_for(cfg, tmp_path):
    fwm, idm = work.models(cfg, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(fwm)
    rows, instruction = work.make_rows(cfg, tokenizer, 6)
    assert len(tokenizer) == 512 and fwm != idm
    assert len(rows) == 6 and len({row["x"] for row in rows}) == 6
    for row in rows:
        prompt = tokenizer.bos_token + row["x"] + row["z"]
        assert len(tokenizer(prompt)["input_ids"]) == cfg.prompt_len
        assert len(tokenizer(row["z"])["input_ids"]) == cfg.action_len
    assert len(tokenizer(instruction)["input_ids"]) == cfg.instruction_len


def test_the_limit_is_that_of_the_least_work(cfg):
    """P=1, G=2, one layer of one weight, no attention: counted by hand."""
    for key, value in {"prompts": 1, "group": 2, "prompt_len": 10, "action_len": 3, "completion_len": 4}.items():
        setattr(cfg, key, value)
    cfg.instruction_len = 5
    size, slow_memory = Sizes(body=100, head=10, every=120, attention=0), Machine(flops=1.0, bandwidth=1e12)
    least = least_seconds(cfg, size, slow_memory)
    policy = 2 * 100 * (10 + 2 * 4) + 2 * 10 * 2 * 4
    assert least["reference"] == policy
    assert least["train"] == pytest.approx(3 * policy)
    assert least["generate"] == 2 * 100 * 10 + 4 * 2 * 110 * 2
    assert least["reward"] == 2 * 100 * (7 + 2 * (4 + 5 + 4)) + 2 * 10 * 2 * 4  # the action's three tokens and the end
    assert least["step"] == pytest.approx(sum(value for part, value in least.items() if part != "step"))
    bound_by_memory = least_seconds(cfg, size, Machine(flops=1e12, bandwidth=1.0))
    assert bound_by_memory["generate"] == pytest.approx(4 * 4 * 110)
    assert bound_by_memory["train"] == pytest.approx(7 * 4 * 120)
    cfg.kl_beta = 0.0
    assert least_seconds(cfg, size, slow_memory)["reference"] == 0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("group", 1, "group=1: "),
        ("steps", 0, "steps=0: "),
        ("action_len", 31, "action_len=31: "),
        ("kl_beta", -1, "kl_"),
        ("pipeline", 2, r"tensor=1 x pipeline=2: does not divide 3 process\(es\)"),
        ("prompts", 4, "prompts=4: must be a multiple of 3"),
    ],
)
def test_sizes_that_are_no_work_are_refused(cfg, key, value, message):
    cfg.prompts = 3
    setattr(cfg, key, value)
    with pytest.raises(ValueError, match=message):
        check(cfg, processes=3)


def test_a_mistake_is_one_line():
    for words, message in ((["model=no/where"], "model=no/where: no such folder"), (["grp=3"], "grp")):
        done = swirl(*words)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.megatron
@pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two stages"])
def test_figures_are_written_as_promised(tmp_path, processes):
    """And a peer that cannot be started, or not be compared with, is a line, not a trace."""
    sizes = ("prompts=2", "group=2", "prompt_len=16", "completion_len=4", "steps=2", "threads=1")
    sizes = (*sizes, f"pipeline={processes}")
    done = swirl(*sizes, "--json", tmp_path / "bench.json", processes=processes)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench.json").read_text())
    parts = {"generate", "reference", "reward", "train", "step"}
    assert set(result["seconds"]) == set(result["limit_seconds"]) == set(result["limit_ratio"]) == parts
    assert sum(result["seconds"][part] for part in parts - {"step"}) < result["seconds"]["step"] * 1.05
    assert result["tokens_per_s"]["step"] == pytest.approx(2 * 2 * 4 / result["seconds"]["step"])
    assert 0 < result["peak_memory_gb"] < 10 and 0 < result["swap_share"] < 1 and result["machine"]["gflops"] > 1
    assert done.stdout.count("times the limit") == 1, "one table, whatever the number of processes"
    done = swirl(*sizes, "--against-trl", tmp_path / "no-python", processes=processes)
    assert done.returncode != 0 and "error: --against-trl" in done.stderr


def test_operator_counts_have_not_grown(tmp_path):
    """What a decoded token and a training step of the four-layer model cost in calls: the same on every machine.
    Whoever lowers a count lowers the figure here."""
    command = [sys.executable, "-W", "ignore", "-m", "workers.counts", tmp_path / "counts.json"]
    subprocess.run(command, cwd=TESTS, check=True, timeout=300)
    counts = json.loads((tmp_path / "counts.json").read_text())
    for part, most in COUNTS.items():
        assert most // 2 < counts[part] <= most, counts
