"""The step that is measured: phase.grpo_step of the FWM, on transitions of made-up words with exact lengths."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from ..checkpoint.huggingface import import_hf
from ..data.transition import Transition
from ..settings import compose
from .config import BenchConfig

# The benched Llama of made-up words: 3.2 million parameters, 512 tokens.
TINY = {"hidden": 256, "layers": 4, "heads": 8, "kv_heads": 4, "ffn": 688, "max_positions": 4096, "tied": False}
_TINY_WORDS = 500  # with the tokenizer's own ones, 512
PARTS = {"generate": "rollout", "reference": "reference", "reward": "reward", "train": "train", "step": "step"}


def models(cfg: BenchConfig, work: Path) -> tuple[Path, Path]:
    """Hugging Face folders of FWM and IDM: two random ones, or one pretrained that plays both."""
    if cfg.model != "tiny":
        if not Path(cfg.model).is_dir():
            raise ValueError(f"model={cfg.model}: no such folder: give tiny or a Hugging Face model folder")
        return Path(cfg.model), Path(cfg.model)
    from ..checkpoint.random_init import random_llama
    from ..collection.tokenizers import word_tokenizer

    word_tokenizer(f"w{number}" for number in range(_TINY_WORDS)).save_pretrained(work / "tokenizer")
    for seed, name in enumerate(("fwm_hf", "idm_hf")):
        random_llama(work / name, work / "tokenizer", **TINY, seed=seed)
    return work / "fwm_hf", work / "idm_hf"


def words(tokenizer) -> list[str]:
    """Words that are one token each behind a space, whichever words stand around them."""
    shown = (tokenizer.decode([index]).strip() for index in range(min(len(tokenizer), 20_000)))
    plain = [word for word in dict.fromkeys(shown) if word.isalnum() and word.isascii() and len(word) > 1]
    return [word for word in plain if len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]


def make_rows(cfg: BenchConfig, tokenizer, count: int) -> tuple[list[dict[str, str]], str]:
    """`count` pairs of state and action in text, their prompt prompt_len tokens long, and the instruction."""
    pool = words(tokenizer)
    generator = torch.Generator().manual_seed(1234)

    def text(length: int) -> str:
        return "".join(f" {pool[i]}" for i in torch.randint(len(pool), (length,), generator=generator).tolist())

    state = cfg.prompt_len - cfg.action_len - int(tokenizer.bos_token_id is not None)
    return [{"x": text(state), "z": text(cfg.action_len)} for _ in range(count)], text(cfg.instruction_len)


def settings(cfg: BenchConfig, work: Path, instruction: str) -> list[str]:
    """Of the run that the bench is one step of, as overrides."""
    longest = cfg.prompt_len + cfg.completion_len + cfg.instruction_len + cfg.action_len + 8
    phase = {
        **{"group": cfg.group, "prompts": cfg.prompts, "kl_beta": cfg.kl_beta, "optimizer_steps": 1, "lr": 1e-6},
        **{"sampling.temperature": 1.0, "sampling.top_k": 0, "sampling.top_p": 1.0, "dead_std": 0.0},
        **{"policy_gradient": 1.0, "replay": 0, "replay_batch": 0, "mstep": 0, "mstep_batch": 0},
        "reward_floor": -1e9,  # the rewards of made-up words would all be the floor, and their groups dead
    }
    data = {
        "tokenizer": work / "fwm" / "tokenizer",
        "fwm.templates": json.dumps(["{x}{z}"]),
        "idm.templates": json.dumps(["{x} {y}" + instruction]),
        "fwm.min_length": cfg.completion_len,
        "fwm.max_length": cfg.completion_len,
        "idm.max_length": cfg.action_len + 1,
    }
    keys = {
        **{f"phase.fwm.{key}": value for key, value in phase.items()},
        **{f"data.{key}": value for key, value in data.items()},
        **{"model.fwm": work / "fwm", "model.idm": work / "idm", "model.max_length": longest},
        **{"model.logit_chunk": cfg.logit_chunk, "parallel.micro_batch": cfg.micro_batch},
        **{"parallel.score_batch": cfg.score_batch, "parallel.rollout_batch": cfg.rollout_batch},
        **{"parallel.tensor": cfg.tensor, "parallel.pipeline": cfg.pipeline},
        **{"run.root": work / "runs", "run.tensorboard": "false"},
    }
    return [f"{key}={value}" for key, value in keys.items()]


@dataclass(frozen=True)
class Job:
    """What all processes of a bench work on: Hugging Face folders of FWM and IDM; NeMo's are place/fwm, place/idm."""

    place: Path
    fwm: Path
    idm: Path
    rows: list[dict[str, str]]
    instruction: str


def make(cfg: BenchConfig, folder: Path) -> Job:
    """The first process makes it in its `folder`. Collective: joins the processes that torchrun started."""
    from ..actor.build import init_process_group

    init_process_group(compose(settings(cfg, folder, "")))
    box: list = [None]
    if dist.get_rank() == 0:
        fwm, idm = models(cfg, folder)
        tokenizer = AutoTokenizer.from_pretrained(fwm, local_files_only=True, trust_remote_code=False)
        rows, instruction = make_rows(cfg, tokenizer, cfg.prompts * (cfg.steps + 1))
        for name, source in (("fwm", fwm), ("idm", idm)):
            import_hf(source, folder / name)
        box = [Job(folder, fwm, idm, rows, instruction)]
    dist.broadcast_object_list(box)
    return box[0]


def open_session(cfg: BenchConfig, job: Job, threads: int):
    """The session.Session of that run, with the reference kept."""
    run = compose(settings(cfg, job.place, job.instruction))
    from ..session import REFERENCE, Session

    torch.set_num_threads(threads)
    session = Session(run)
    session.load()
    session.sets.snapshot(REFERENCE)
    return session


def steps(session, cfg: BenchConfig, rows: list[dict[str, str]]) -> Iterator[dict]:
    """Does a step on the next cfg.prompts rows whenever it is asked for one's metrics."""
    from ..phase import Step, grpo_step
    from ..roles import FWM

    transitions = [Transition(str(number), row["x"], row["z"], "", "bench", "", 0) for number, row in enumerate(rows)]
    for start in range(0, len(transitions), cfg.prompts):
        part = transitions[start : start + cfg.prompts]
        yield grpo_step(session, FWM, Step(part, [], [], lr=session.cfg.phase.fwm.lr, seed=(start,)))
