"""The reward: what the frozen counterpart makes of a completion (ALGORITHM.md, both phases)."""

from torch import Tensor

from .actor.batch import plain
from .data.batch import Sequences, collate
from .data.transition import Transition
from .roles import Role
from .session import Session


def counterpart_logprobs(
    session: Session, role: Role, transitions: list[Transition], completions: list[str], group: int
) -> Tensor:
    """Mean log-prob per token [B] of the counterpart's target, in the context that each completion makes: the reward.

    The counterpart's weights must be worn.
    """
    sequences = counterpart_sequences(session, role, transitions, completions, group)
    scored = plain(sequences, session.model_distribution, session.cfg.parallel.score_batch)
    return token_mean(session.actor.get_inference_log_probs(list(scored))[0], sequences)


def token_mean(logprobs: Tensor, sequences: Sequences) -> Tensor:
    """[B] of log-probs [B, C or more], zero where there is no token."""
    return logprobs.sum(1) / sequences.completion_lengths


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
