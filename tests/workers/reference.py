"""What transformers makes of the same models and texts: the independent side of the comparisons."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from workers import setting

from swirl_nemo.data.prompts import Prompter, load_tokenizer
from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.settings import compose


def llama(work: Path, name: str):
    """The Llama that `work/name` was imported from, float32."""
    return AutoModelForCausalLM.from_pretrained(work / f"{name}_hf", torch_dtype=torch.float32).eval()


def tokenizer(work: Path):
    return AutoTokenizer.from_pretrained(work / "data" / "tokenizer")


def prompter(work: Path) -> Prompter:
    cfg = compose(setting.overrides(work))
    return Prompter(load_tokenizer(cfg.data.tokenizer), cfg.data, cfg.run.seed)


def labelled(work: Path) -> TransitionFile:
    return TransitionFile(work / "data" / "labelled.jsonl", None)


def next_logits(model, prompt: list[int], completion: list[int]) -> Tensor:
    """Logits [C, V] that predict each completion token."""
    tokens = torch.tensor([prompt + completion])
    return model(tokens).logits[0, len(prompt) - 1 : -1]


def token_logprobs(model, prompt: list[int], completion: list[int]) -> Tensor:
    """[C] of the model's own distribution."""
    chosen = torch.tensor(completion)[:, None]
    return next_logits(model, prompt, completion).log_softmax(-1).gather(1, chosen)[:, 0]
