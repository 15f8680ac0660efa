"""What each layout does: training steps, rollouts, rewards, and a change of weight sets. Runs in Megatron processes.

Everything is returned in an order that does not depend on the layout, so that layouts can be compared.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from swirl_nemo import annotation, supervised
from swirl_nemo import phase as phase_room
from swirl_nemo.actor.batch import plain
from swirl_nemo.checkpoint import saving
from swirl_nemo.config import Aggregation, PhaseConfig, SamplingConfig
from swirl_nemo.data.batch import collate
from swirl_nemo.data.transitions import TransitionFile
from swirl_nemo.phase import Step, grpo_step
from swirl_nemo.reward import counterpart_rewards
from swirl_nemo.roles import FWM, IDM, ROLES
from swirl_nemo.session import REFERENCE

ON_THE_CLOCK = ("seconds", "tokens_per_s", "memory")
SFT_LR, CLIP = 1e-2, 1.0
MAX_LENGTH = 12
CASES = {  # sampling, minimum length
    "greedy": (SamplingConfig(1.0, 0, 1.0), 0),
    "plain": (SamplingConfig(1.0, 0, 1.0), 0),
    "tempered": (SamplingConfig(0.7, 0, 1.0), 6),
    "top-k": (SamplingConfig(1.3, 5, 1.0), 0),
    "top-p": (SamplingConfig(1.0, 0, 0.6), 3),
    "both": (SamplingConfig(0.8, 9, 0.7), 0),
    "fixed length": (SamplingConfig(1.0, 0, 1.0), MAX_LENGTH),
}


def visit(session, work: Path, name: str, brief: bool) -> dict:
    if session.actor.cfg.megatron_amp_O2:
        return {"masters": masters(session)}
    trained = {"supervised": supervised_steps(session), "fwm": fwm_steps(session, work / "trained" / name)}
    trained["overlaps"] = all(stage.ddp_config.overlap_grad_reduce for stage in session.actor.model)
    if name.startswith("tied"):
        return trained
    trained["idm"] = idm_steps(session)
    if brief:
        return trained
    return trained | {
        "half dead": half_dead(session),
        "all dead": all_dead(session),
        "rollouts": rollouts(session),
        "rewards": rewards(session),
        "sets": weight_sets(session),
        "masters": masters(session),
    }


def labelled(session) -> TransitionFile:
    return TransitionFile(session.cfg.data.labelled, None)


def begin(session, role, name: str) -> None:
    """Make `name`, a copy of the role's starting weights, the policy, as the driver does when a phase begins."""
    session.sets.copy(session.set_of(role), name)
    session.sets.become(name)
    session.actor.reset_optimizer()
    session.sets.snapshot(REFERENCE)


def configure(session, role, lengths: dict | None = None, **options) -> None:
    """Change the role's phase, and what its sampling hangs on, for the steps to come."""
    phases, data = session.cfg.phase, session.cfg.data
    setattr(phases, role.name, replace(getattr(phases, role.name), **options))
    setattr(data, role.name, replace(getattr(data, role.name), **(lengths or {})))
    session.policy_distribution.cache_clear()


def timeless(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith(ON_THE_CLOCK)}


# training


def supervised_steps(session) -> dict:
    """Three steps of the IDM on six labelled rows, and the targets' log-probs under what came out."""
    begin(session, IDM, "supervised")
    rows = labelled(session)[:6]
    steps = [supervised.step(session, [(IDM, row) for row in rows], SFT_LR, CLIP) for _ in range(3)]
    return {"steps": steps, "logprobs": target_logprobs(session, IDM, rows)}


def fwm_steps(session, folder: Path) -> list[dict]:
    """Three GRPO steps with replay, M-step and reference; the weights after them go into `folder`."""
    begin(session, FWM, "trained fwm")
    options = {"group": 4, "dead_std": 0.1, "kl_beta": 0.04, "replay": 1.0, "mstep": 3.0, "clip_grad": CLIP}
    options |= {"sampling": SamplingConfig(1.0, 0, 1.0), "aggregation": Aggregation.sequence_mean}
    configure(session, FWM, optimizer_steps=1, **options)
    rows = labelled(session)
    steps = [Step(rows[6 * i : 6 * i + 6], rows[6 * i : 6 * i + 6], rows[i : i + 5], 1e-2, (5, i)) for i in range(3)]
    metrics = [timeless(grpo_step(session, FWM, step)) for step in steps]
    folder.parent.mkdir(exist_ok=True)
    saving.save_weights(session.actor, Path(session.cfg.model.fwm), folder)
    return metrics


def idm_steps(session) -> list[dict]:
    """One rollout batch for two optimizer steps, token-mean loss, truncated sampling, no reference; twice."""
    begin(session, IDM, "trained idm")
    options = {"group": 4, "dead_std": 0.0, "kl_beta": 0.0, "replay": 0.5, "mstep": 0.0, "clip_grad": CLIP}
    options |= {"sampling": SamplingConfig(0.8, 20, 0.9), "aggregation": Aggregation.token_mean, "divide_by_std": False}
    configure(session, IDM, optimizer_steps=2, **options)
    rows = labelled(session)
    return [timeless(grpo_step(session, IDM, Step(rows[:8], [], rows[8:12], 1e-2, (6, i)))) for i in range(2)]


def half_dead(session) -> dict:
    """A step on two groups of which one is dead: under DP2 one rank has nothing to train on."""
    step = Step(labelled(session)[:2], [], [], 1e-2, (7,))
    phase = policy_gradient_alone(session, 0.0)
    begin(session, FWM, "half dead")
    stds = session.gather(group_stds(session, phase, step))
    policy_gradient_alone(session, sum(stds) / 2)
    return timeless(grpo_step(session, FWM, step))


def all_dead(session) -> dict:
    """A step without a live group or a supervised row, and whether it left the weights alone."""
    begin(session, FWM, "all dead")
    policy_gradient_alone(session, 1e9)
    before = weights(session)
    metrics = timeless(grpo_step(session, FWM, Step(labelled(session)[:2], [], [], 1e-2, (8,))))
    return metrics | {"same weights": same(before, weights(session))}


def policy_gradient_alone(session, dead_std: float) -> PhaseConfig:
    configure(session, FWM, group=4, dead_std=dead_std, kl_beta=0.0, replay=0.0, mstep=0.0)
    return session.cfg.phase.fwm


def group_stds(session, phase: PhaseConfig, step: Step) -> list[float]:
    mine = list(session.share(step.transitions))
    rollout = phase_room.roll_out(session, FWM, phase, mine, step)
    texts = [session.prompter.decode(completion) for completion in rollout.completions]
    with session.sets.wear(IDM.name):
        values = counterpart_rewards(session, FWM, [t for t in mine for _ in range(phase.group)], texts, phase.group)
    return values.view(-1, phase.group).std(1).tolist()


# rollouts


def rollouts(session) -> dict[str, dict]:
    """Each case on six prompts of different lengths, two samples a prompt; and one case prompt by prompt."""
    session.sets.become(FWM.name)
    return {case: rollout(session, case) for case in CASES} | {"tempered, each alone": each_alone(session)}


def policy(session, case: str):
    sampling, shortest = CASES[case]
    configure(session, FWM, {"min_length": shortest, "max_length": MAX_LENGTH}, sampling=sampling)
    return session.policy_distribution(FWM)


def prompts_and_numbers(session, group: int) -> tuple[list[list[int]], torch.Tensor]:
    """This rank's share. Prompts are cut to lengths of their own: the household's are nearly of one length."""
    prompts = [session.prompter.prompt(FWM, row) for row in labelled(session)[:6]]
    prompts = [prompt[: len(prompt) - 3 * i] for i, prompt in enumerate(prompts)]
    drawn = torch.from_numpy(np.random.default_rng(9).random((len(prompts) * group, MAX_LENGTH)))
    mine = session.share(range(len(prompts)))
    return prompts[mine.start : mine.stop], drawn[mine.start * group : mine.stop * group]


def rollout(session, case: str) -> list[dict]:
    """A row a sample: tokens, behaviour log-probs, log-probs of the same tokens teacher-forced, kept support."""
    distribution = policy(session, case)
    group = 1 if case == "greedy" else 2
    prompts, drawn = prompts_and_numbers(session, group)
    result = session.actor.infer(
        prompts,
        distribution,
        group=group,
        max_length=MAX_LENGTH,
        uniforms=None if case == "greedy" else drawn,
        batch=1000,
    )
    repeated = [prompt for prompt in prompts for _ in range(group)]
    sequences = collate(repeated, result.completions, group)
    forced = session.actor.get_inference_log_probs(list(plain(sequences, distribution, 5, result.support)))[0]
    rows = [
        {
            "prompt": prompt,
            "completion": completion,
            "behaviour": result.logprobs[i, : len(completion)].tolist(),
            "forced": forced[i, : len(completion)].tolist(),
            "support": None if result.support is None else result.support[i, : len(completion)].tolist(),
            "after the end": result.logprobs[i, len(completion) :].abs().sum().item(),
        }
        for i, (prompt, completion) in enumerate(zip(repeated, result.completions, strict=True))
    ]
    return session.gather(rows)


def each_alone(session) -> list[list[int]]:
    distribution = policy(session, "tempered")
    prompts, drawn = prompts_and_numbers(session, 2)
    completions = []
    for i, prompt in enumerate(prompts):
        numbers = drawn[2 * i : 2 * i + 2]
        options = {"group": 2, "max_length": MAX_LENGTH, "uniforms": numbers, "batch": 1}
        completions += session.actor.infer([prompt], distribution, **options).completions
    return session.gather(completions)


# scoring and weight sets


def labelled_completions(rows, role) -> list[str]:
    """Of six transitions: true ones, another's, nonsense that the role could emit, and nothing at all."""
    texts = [role.target(row) for row in rows]
    return [texts[0], texts[1], texts[0], texts[3], " ".join(reversed(texts[4].split())), ""]


def rewards(session) -> dict[str, list[float]]:
    values = {}
    for role in ROLES.values():
        rows = session.share(labelled(session)[:6])
        texts = session.share(labelled_completions(labelled(session)[:6], role))
        with session.sets.wear(session.set_of(role.counterpart)):
            values[role.name] = session.gather(counterpart_rewards(session, role, rows, texts, group=1).tolist())
    return values


def target_logprobs(session, role, rows) -> list[float]:
    return session.gather(annotation.target_logprobs(session, role, session.share(rows)))


def weights(session) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in session.actor.module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weight_sets(session) -> dict:
    """Log-probs of the same six targets under whatever is worn, and bitwise comparisons."""
    sets, rows = session.sets, labelled(session)[:6]

    def logprobs() -> list[float]:
        return target_logprobs(session, IDM, rows)

    sets.become(FWM.name)
    before = weights(session)
    seen: dict = {"fwm": logprobs()}
    with sets.wear(IDM.name):
        seen["idm"] = logprobs()
        with sets.wear(FWM.name):
            seen["fwm within idm"] = logprobs()
        seen["idm again"] = logprobs()
        worn = weights(session)
    seen["restored"] = same(before, weights(session))
    try:
        with sets.wear(IDM.name):
            raise KeyError("inside")
    except KeyError:
        seen["restored after an error"] = same(before, weights(session))
    sets.copy(FWM.name, "learner")
    sets.become("learner")
    session.actor.reset_optimizer()
    supervised.step(session, [(IDM, row) for row in rows], SFT_LR, CLIP)
    learnt = weights(session)
    sets.become(IDM.name)
    seen["become"] = same(worn, weights(session))
    with sets.wear("learner"):
        seen["what was learnt is kept"] = same(learnt, weights(session)) and not same(learnt, before)
    with sets.wear(FWM.name):
        seen["its source is as before"] = same(before, weights(session))
    return seen


def masters(session) -> dict[str, bool]:
    """Whether the optimizer's own weights follow a change of policy: a step at rate 0 must change nothing."""
    rows = labelled(session)[:6]
    session.sets.become(FWM.name)
    session.actor.reset_optimizer()
    supervised.step(session, [(FWM, row) for row in rows], SFT_LR, CLIP)
    session.sets.become(IDM.name)
    expected = weights(session)
    session.actor.reset_optimizer()
    supervised.step(session, [(IDM, row) for row in rows], 0.0, CLIP)
    return {"follow": same(expected, weights(session))}
