"""Whether an exported model is the one that was trained: transformers' log-probs against those of Megatron's model."""

from pathlib import Path

import torch
from torch import Tensor

from ..data.batch import collate
from .huggingface import TOKENIZER, read_model_config

_LOSSLESS, _ROUNDED = 1e-4, 0.1  # largest difference; the second where the export has a narrower dtype
_SEQUENCES, _LENGTH = 4, 32  # of random tokens, where no prompts are given
_LONGEST = 512  # tokens of a prompt that are looked at


def compare(nemo_dir: Path, hf_dir: Path, prompts: Path | None, lossless: bool) -> float:
    """The largest difference of a token's log-prob, both in float32. Raises ValueError where it is too large."""
    rows = _tokens(nemo_dir, prompts)
    theirs = transformers_logprobs(hf_dir, rows)
    ours = megatron_logprobs(load_actor(nemo_dir, max(map(len, rows))), rows)
    differences = torch.cat([(one - other).abs() for one, other in zip(ours, theirs, strict=True)])
    worst, limit = float(differences.max()), _LOSSLESS if lossless else _ROUNDED
    if not worst <= limit:
        raise ValueError(
            f"{nemo_dir}: log-probs of the export differ from Megatron's by {worst:.2g}, over {limit}: "
            "nothing was kept; report this with the model's config.json"
        )
    return worst


@torch.no_grad()
def transformers_logprobs(hf_dir: Path, rows: list[list[int]]) -> list[Tensor]:
    """Of each row's tokens after the first."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(hf_dir, torch_dtype=torch.float32, local_files_only=True).eval()
    except (ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--verify: transformers cannot load the export ({reason}): export without --verify"
        ) from error
    scores = (model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows)
    return [score.gather(1, torch.tensor(row[1:])[:, None])[:, 0] for score, row in zip(scores, rows, strict=True)]


def load_actor(nemo_dir: Path, longest: int, overrides: tuple[str, ...] = ()):
    """The live model of a checkpoint, for sequences of up to `longest` tokens; `overrides` are a run's settings.

    One for each process that torchrun started, if it did.
    """
    from ..settings import compose

    cfg = compose([f"model.fwm={nemo_dir}", f"model.max_length={longest}", "parallel.micro_batch=1", *overrides])

    from ..actor.build import build_actor

    actor = build_actor(cfg, nemo_dir)

    from .run_state import load_weights

    load_weights(actor, nemo_dir)
    return actor


def megatron_logprobs(actor, rows: list[list[int]]) -> list[Tensor]:
    """The same as `transformers_logprobs` through the actor."""
    from ..actor.batch import plain
    from ..rollout.sampling import unrestricted

    device = torch.cuda.current_device()
    distribution = unrestricted(actor.cfg.vocab_size, actor.padded_vocab_size, 0).to(device)
    sequences = collate([row[:1] for row in rows], [row[1:] for row in rows]).to(device)
    logprobs, _ = actor.get_inference_log_probs(list(plain(sequences, distribution, 1))).cpu()
    return [values[: len(row) - 1] for values, row in zip(logprobs, rows, strict=True)]


def _tokens(nemo_dir: Path, prompts: Path | None) -> list[list[int]]:
    """Token rows of two or more: of the prompts, or random."""
    model = read_model_config(nemo_dir)
    longest = min(_LONGEST, model.max_position_embeddings)
    if prompts is None:
        shape = (_SEQUENCES, min(_LENGTH, longest))
        return torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0)).tolist()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nemo_dir / TOKENIZER, trust_remote_code=False, local_files_only=True)
    rows = [tokenizer(line)["input_ids"][:longest] for line in prompts.read_text().splitlines() if line.strip()]
    if not rows or min(map(len, rows)) < 2:
        raise ValueError(f"--prompts {prompts}: needs lines of two or more tokens: give a text file, a prompt a line")
    return rows
