"""The reward: what the frozen counterpart makes of a completion (ALGORITHM.md, both phases)."""

import torch
from torch import Tensor

from .actor.batch import plain
from .data.batch import Sequences, collate
from .data.transition import Transition
from .roles import Role
from .session import Session


def counterpart_rewards(
    session: Session, role: Role, transitions: list[Transition], completions: list[str], group: int
) -> Tensor:
    """[B] `rewards` of the completions under the counterpart, whose weights must be worn."""
    sequences = counterpart_sequences(session, role, transitions, completions, group)
    scored = plain(sequences, session.model_distribution, session.cfg.parallel.score_batch)
    logprobs = session.actor.get_inference_log_probs(list(scored))[0]
    return rewards(session, role, completions, logprobs, sequences)


def rewards(session: Session, role: Role, completions: list[str], logprobs: Tensor, sequences: Sequences) -> Tensor:
    """Log-prob per token [B] of the counterpart's targets, of [B, C or more] that are zero where there is no token; in
    Phase II with the log-prob of the action itself under the prior, so that the reward is the ELBO's, per token of y.
    """
    total = logprobs.sum(1)
    if role.completes == "z":
        total = total + torch.tensor([session.prior(action) for action in completions]).to(total)
    return total / sequences.completion_lengths


def counterpart_sequences(
    session: Session, role: Role, transitions: list[Transition], completions: list[str], group: int
) -> Sequences:
    """The counterpart's target behind the context that each completion makes.

    Phase I (role FWM): mean_t log Q(z_t | x, y^, z_<t); Phase II (role IDM):
    mean_t log P(y_t | x, z^, y_<t). The end token is part of the target. The distribution is the model's own,
    unrestricted: a reward is a log-probability, whatever the policy samples with. Every `group` rows are of one
    transition: what their contexts begin with is run once.
    """
    prompter, other = session.prompter, role.counterpart
    contexts = [role.complete(t, completion) for t, completion in zip(transitions, completions, strict=True)]
    prompts = [prompter.prompt(other, context) for context in contexts]
    targets = [prompter.target(other, context) for context in contexts]
    return collate(prompts, targets, group).to(session.device)
