"""The reward: what the frozen counterpart makes of a completion (ALGORITHM.md, both phases)."""

from .actor.batch import plain
from .data.batch import collate
from .data.prompts import Prompter
from .data.transition import Transition
from .roles import Role
from .rollout.sampling import Distribution


def counterpart_logprobs(
    actor,
    prompter: Prompter,
    role: Role,
    transitions: list[Transition],
    completions: list[str],
    distribution: Distribution,
    score_batch: int,
):
    """Mean log-prob per token [B] of the counterpart's target, in the context that each completion makes.

    The counterpart's weights must be worn. Phase I (role FWM): mean_t log Q(z_t | x, y^, z_<t); Phase II (role IDM):
    mean_t log P(y_t | x, z^, y_<t). The end token is part of the target. `distribution` is the model's own, unrestricted:
    a reward is a log-probability, whatever the policy samples with.
    """
    contexts = [role.complete(t, completion) for t, completion in zip(transitions, completions, strict=True)]
    other = role.counterpart
    prompts = [prompter.prompt(other, context) for context in contexts]
    targets = [prompter.target(other, context) for context in contexts]
    sequences = collate(prompts, targets, prompter.pad)
    logprobs = actor.get_inference_log_probs(list(plain(sequences, distribution, score_batch)))[0]
    return logprobs.sum(1) / sequences.completion_mask.to(logprobs.device).sum(1)
