"""Both bounds of ALGORITHM.md on a world small enough to enumerate, and the two phases as ascent on them.

Every expectation is a sum over all completions that a role can emit, each teacher-forced through the NeMo-Aligner actor
under the distribution that its role samples from; samples are drawn only where grpo_step draws them to train. One process
trains and writes tables of log-probs; the tests compute information in nats from the tables (float64).

`baseline` names the models that a run started from. All models are warmed up for few steps, so that there is room.
"""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_world import ACTIONS, FWM_TEXTS, IDM_TEXTS, ROWS, TARGET_TOKENS, Y_STATES, Tables, configure, frequencies
from tiny_world import sequences as every_sequence
from tiny_world import tables
from torch import Tensor

from swirl_nemo.roles import FWM, IDM

pytestmark = pytest.mark.megatron

WORLD = frequencies()  # P(x, z, y)
BELIEF = WORLD.sum(2)  # P(x) P~(z|x), [X, Z]
PAIRS = WORLD.sum(1)  # P(x, y), [X, Y]
MODELS = ("random", "sharp", "warm", "phase I", "phase II", "posterior", "M-step")
GROUP = 16
STEPS = 50


# What is claimed, on log tables [X, Z, Y]. `belief` [X, Z] is P(x) P~(z|x), `prior` [X, Z] is p(z|x).


def phase_one_objective(log_p: Tensor, log_q: Tensor, belief: Tensor) -> Tensor:
    """E_{x, z ~ P~, y^ ~ P_theta} log Q(z | x, y^)."""
    return (belief[..., None] * log_p.exp() * log_q).sum()


def action_entropy(belief: Tensor) -> Tensor:
    """H(Z | X)."""
    conditional = belief / belief.sum(1, keepdim=True)
    return -torch.xlogy(belief, conditional).sum()


def information(log_p: Tensor, belief: Tensor) -> Tensor:
    """I(Z; Y^ | X) from its definition, E log P(z, y | x) / (P(z | x) P(y | x))."""
    log_marginal = (belief[..., None] * log_p.exp()).sum(1).log() - belief.sum(1).log()[:, None]  # log P(y|x)
    return (belief[..., None] * log_p.exp() * (log_p - log_marginal[:, None])).sum()


def posterior(log_p: Tensor, prior: Tensor) -> Tensor:
    """log P(z | x, y) by Bayes' rule."""
    return (prior.log()[..., None] + log_p).log_softmax(1)


def evidence(log_p: Tensor, prior: Tensor) -> Tensor:
    """log P(y | x) = log sum_z p(z|x) P(y|x,z), [X, Y]."""
    return (prior.log()[..., None] + log_p).logsumexp(1)


def reconstruction(log_q: Tensor, log_p: Tensor) -> Tensor:
    """E_Q log P(y | x, z), [X, Y]."""
    return (log_q.exp() * log_p).sum(1)


def divergence(log_q: Tensor, prior: Tensor) -> Tensor:
    """KL(Q(. | x, y) || p(. | x)), [X, Y]."""
    return (log_q.exp() * (log_q - prior.log()[..., None])).sum(1)


def elbo(log_q: Tensor, log_p: Tensor, prior: Tensor) -> Tensor:
    return reconstruction(log_q, log_p) - divergence(log_q, prior)


# The process that trains.


def train(session, role, start: str, name: str, phase, *, lr: float, steps: int = STEPS, rows=lambda step: ROWS):
    """Weight set `name`: `start` after steps of grpo_step, its reference `start` itself, as a phase begins."""
    from swirl_nemo.phase import Step, grpo_step
    from swirl_nemo.session import REFERENCE

    session.sets.copy(start, name)
    session.sets.become(name)
    session.actor.reset_optimizer()
    session.sets.snapshot(REFERENCE)
    setattr(session.cfg.phase, role.name, phase)
    for step in range(steps):
        m = grpo_step(session, role, Step(rows(step), [], lr, (role.name == "fwm", step)))
        if step % 10 == 0:
            print(
                name,
                step,
                m.get("reward/mean"),
                m.get("group/dead_fraction"),
                m["grad_norm"],
                m["seconds/step"],
                flush=True,
            )


def permuted(group_advantages):
    """The control: advantages dealt out anew within each group, which leaves their numbers and takes their meaning."""
    generator = torch.Generator().manual_seed(0)

    def deal(rewards, **options):
        ranked = group_advantages(rewards, **options)
        order = torch.rand(rewards.shape, generator=generator).argsort(1)
        return ranked._replace(advantages=ranked.advantages.gather(1, order))

    return deal


def warm_up(session, role):
    """The role's weight set after the whole warm-up, and "young" after its first steps."""
    from swirl_nemo import supervised

    session.sets.copy(f"sharp {role.name}", role.name)
    session.sets.become(role.name)
    session.actor.reset_optimizer()
    for step in range(60):
        if step == {"fwm":15,"idm":25}[role.name]:
            session.sets.copy(role.name, f"young {role.name}")
        supervised.step(session, [(role, row) for row in ROWS], 1e-2, 1.0)


def altered(session, start: str, name: str, change):
    """Weight set `name`: `start` with `change` applied to each (name, parameter)."""
    session.sets.copy(start, name)
    session.sets.become(name)
    with torch.no_grad():
        for key, parameter in session.actor.module.named_parameters():
            change(key, parameter)
    session.sets.trained()


def sharpen(key: str, parameter: Tensor):
    if parameter.dim() == 2:
        parameter.mul_(4)


def cut_attention(key: str, parameter: Tensor):
    if "linear_proj" in key:
        parameter.zero_()


def sampled_gradient(session, role, phase) -> Tensor:
    """What one grpo_step hands to the optimizer, for the policy that is live."""
    from swirl_nemo.phase import Step, grpo_step

    setattr(session.cfg.phase, role.name, replace(phase, group=128, clip_grad=1e9))
    grpo_step(session, role, Step(ROWS, [], 0.0, (7,)))
    return gradient(session)


def exact_gradient(session, role, objective) -> Tensor:
    """Of minus the objective, a function of the policy's log table, by Megatron's own backward pass."""
    from swirl_nemo.actor.batch import MicroBatch

    def loss(logprobs, entropy):
        return -objective(logprobs.sum(1).view(3, len(IDM_TEXTS), len(FWM_TEXTS)).double()).float(), {}

    batch = MicroBatch(every_sequence(session, role), session.policy_distribution(role), loss=loss)
    session.actor.optimizer_step([batch], 0.0, 1e9)
    return gradient(session)


def gradient(session) -> Tensor:
    return torch.cat([parameter.main_grad.flatten().double() for parameter in session.actor.module.parameters()])


def main(work: Path) -> None:
    import time

    t0 = time.time()
    from swirl_nemo import annotation
    from swirl_nemo import phase as phase_module
    from swirl_nemo.config import Kl
    from swirl_nemo.session import Session

    cfg = configure(work)
    session = Session(cfg)
    session.load()
    kept = {"random": tables(session, "fwm", "idm")}
    print("random", time.time() - t0)
    for role in ("fwm", "idm"):
        altered(session, role, f"sharp {role}", sharpen)
    kept["sharp"] = tables(session, "sharp fwm", "sharp idm")
    altered(session, "sharp idm", "prior", cut_attention)
    for role in (FWM, IDM):
        warm_up(session, role)
    kept["young"] = tables(session, "young fwm", "young idm")
    kept["grown"] = tables(session, "fwm", "idm")
    kept["prior"] = tables(session, "fwm", "prior")
    print("warm", time.time() - t0)

    one, two = replace(cfg.phase.fwm, group=GROUP), replace(cfg.phase.idm, group=GROUP)
    exact = replace(two, divide_by_std=False, kl=Kl.k2, kl_beta=(1 - 1 / GROUP) / TARGET_TOKENS)

    lr = float(os.environ.get("LR", "2e-3"))
    train(session, FWM, "young fwm", "fwm I", one, lr=lr)
    kept["phase I"] = tables(session, "fwm I", "idm")
    print("I", time.time() - t0)
    real = phase_module.grpo.group_advantages
    phase_module.grpo.group_advantages = permuted(real)
    train(session, FWM, "young fwm", "fwm control", one, lr=lr)
    phase_module.grpo.group_advantages = real
    kept["control"] = tables(session, "fwm control", "idm")
    print("control", time.time() - t0)
    train(session, IDM, "young idm", "idm II", two, lr=lr)
    kept["phase II"] = tables(session, "fwm", "idm II")
    print("II", time.time() - t0)
    train(
        session,
        IDM,
        "prior",
        "idm posterior",
        exact,
        lr=float(os.environ.get("LRP", "3e-3")),
        steps=int(os.environ.get("NP", "100")),
    )
    kept["posterior"] = tables(session, "fwm", "idm posterior")
    print("posterior", time.time() - t0)

    def annotated(step):
        return [a.transition for a in annotation.annotate(session, ROWS, (step,))]

    mstep = replace(one, policy_gradient=0.0, mstep=1.0)
    train(session, FWM, "young fwm", "fwm M", mstep, lr=lr, rows=annotated)
    kept["M-step"] = tables(session, "fwm M", "idm")
    print("M", time.time() - t0)

    gradients = {}
    session.sets.become("young fwm")
    plain_one = replace(one, divide_by_std=False)
    gradients["phase I"] = sampled_gradient(session, FWM, plain_one)
    phase_module.grpo.group_advantages = permuted(real)
    gradients["phase I permuted"] = sampled_gradient(session, FWM, plain_one)
    phase_module.grpo.group_advantages = real
    reward = kept["grown"].idm_reward
    gradients["phase I exact"] = exact_gradient(session, FWM, lambda log_p: phase_one_objective(log_p, reward, BELIEF))
    session.sets.copy("prior", "reference")
    session.sets.become("young idm")
    g = 128
    gradients["phase II"] = sampled_gradient(session, IDM, replace(exact, kl_beta=(1 - 1 / g) / TARGET_TOKENS))
    prior = kept["prior"].idm_policy.exp()[:, :, 0]
    forward = kept["grown"].fwm_reward
    gradients["phase II exact"] = exact_gradient(
        session, IDM, lambda log_q: (PAIRS * elbo(log_q, forward, prior)).sum()
    )
    print("grads", time.time() - t0)
    torch.save({"tables": {n: asdict(t) for n, t in kept.items()}, "gradients": gradients}, work / "bounds.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
