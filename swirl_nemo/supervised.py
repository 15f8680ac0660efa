"""Supervised micro-batches and steps: warm-up, pre-training, labelled replay, the M-step and the SFT baseline.

The loss is on the completion alone: the mean of -log P(target | prompt) over target tokens.
"""

import torch

from .actor.batch import MicroBatch
from .data.batch import collate
from .data.transition import Transition
from .guard import rows
from .roles import Role
from .session import Session

Pairs = list[tuple[Role, Transition]]


def micro_batches(session: Session, pairs: Pairs, weight: float) -> list[MicroBatch]:
    """This rank's part of a supervised mini-batch: `weight` times the mean over the target tokens of all ranks' pairs.

    Collective over data-parallel ranks: each must call it, with pairs or without.
    """
    prompter, size = session.prompter, session.cfg.parallel.micro_batch
    texts = [(prompter.prompt(role, t), prompter.target(role, t)) for role, t in pairs]
    tokens = torch.tensor(float(sum(len(target) for _, target in texts)), device=session.device)
    total = session.add_up(tokens)
    texts.sort(key=lambda text: len(text[0]) + len(text[1]))  # lengths alike in a micro-batch: little padding
    batches = []
    for start in range(0, len(texts), size):
        prompts, targets = zip(*texts[start : start + size], strict=True)
        sequences = collate(list(prompts), list(targets)).to(session.device)
        batches.append(MicroBatch(sequences, session.model_distribution, loss=_negative_log(weight, total)))
    return batches


def _negative_log(weight: float, total: torch.Tensor):
    def loss(logprobs, entropy):
        part = -weight * logprobs.sum() / total
        return part, {"loss": part}

    return loss


def step(session: Session, pairs: Pairs, lr: float, clip_grad: float) -> dict[str, float]:
    """One optimizer step on all ranks' pairs; "nonfinite" holds their rows where it was skipped."""
    batches = micro_batches(session, list(session.share(pairs)), weight=1.0)
    assert batches, "fewer supervised rows than data-parallel ranks"
    grad_norm, sums, stepped = session.actor.optimizer_step(batches, lr, clip_grad)
    session.sets.trained()
    loss = session.add_up(sums["loss"].clone())
    figures = {"loss": loss.item(), "grad_norm": grad_norm, "lr": lr, "skipped/nonfinite": int(not stepped)}
    bad = {} if stepped else {"nonfinite": [row for role, t in pairs for row in rows(role.name, [t])]}
    return figures | {"tokens": trained_tokens(session, batches)} | bad


def trained_tokens(session: Session, batches: list[MicroBatch]) -> int:
    """Tokens of all ranks' micro-batches, prompts and completions."""
    mine = sum(int(batch.sequences.lengths.sum()) for batch in batches)
    return int(session.add_up(torch.tensor(mine, device=session.device)).item())
