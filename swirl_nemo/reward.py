"""The reward: what the frozen counterpart makes of a completion (ALGORITHM.md, both phases)."""

from torch import Tensor

from .actor.batch import plain
from .data.batch import collate
from .data.transition import Transition
from .roles import Role
from .session import Session


def counterpart_logprobs(
    session: Session, role: Role, transitions: list[Transition], completions: list[str], group: int
) -> Tensor:
    """Mean log-prob per token [B] of the counterpart's target, in the context that each completion makes.

    The counterpart's weights must be worn. Phase I (role FWM): mean_t log Q(z_t | x, y^, z_<t); Phase II (role IDM):
    mean_t log P(y_t | x, z^, y_<t). The end token is part of the target. The distribution is the model's own,
    unrestricted: a reward is a log-probability, whatever the policy samples with. Every `group` rows are of one
    transition: what their contexts begin with is run once.
    """
    prompter, other = session.prompter, role.counterpart
    contexts = [role.complete(t, completion) for t, completion in zip(transitions, completions, strict=True)]
    prompts = [prompter.prompt(other, context) for context in contexts]
    targets = [prompter.target(other, context) for context in contexts]
    sequences = collate(prompts, targets, group).to(session.device)
    scored = plain(sequences, session.model_distribution, session.cfg.parallel.score_batch)
    logprobs = session.actor.get_inference_log_probs(list(scored))[0]
    return logprobs.sum(1) / sequences.completion_mask.sum(1)
