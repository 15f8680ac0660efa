"""Both bounds of ALGORITHM.md on a world small enough to enumerate, and both phases as ascent on them.

Every expectation is a sum over all that a role can emit, each completion teacher-forced through the NeMo-Aligner
actor under the distribution that its role samples from (phase=published: temperatures 0.75 and 0.7, truncation off).
Samples are drawn only where `grpo_step` draws them to train. One process trains and writes tables of log-probs; the
tests compute from these, in float64 and nats.

`belief` [X, Z] is P(x) P~(z|x), `prior` [X, Z] is p(z|x), `pairs` [X, Y] is P(x, y); log tables are [X, Z, Y].
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny_world import (
    FWM_TEXTS,
    ROWS,
    STATES,
    TARGET_TOKENS,
    WORDS,
    Tables,
    configure,
    every_sequence,
    frequencies,
    tables,
)
from torch import Tensor
from workers.layouts import run_module

from swirl_nemo.roles import FWM, IDM

pytestmark = pytest.mark.megatron

BELIEF, PAIRS = frequencies().sum(2), frequencies().sum(1)
GROUP, MANY = 16, 64  # samples a prompt: to train, and to estimate a gradient
MODELS = ("random", "sharp", "young", "grown", "phase I", "control", "phase II", "at the prior", "ELBO", "M-step")


# The quantities


def phase_one_objective(log_p: Tensor, log_q: Tensor, belief: Tensor) -> Tensor:
    """E log Q(z|x,y^), z ~ P~, y^ ~ P_theta."""
    return (belief[..., None] * log_p.exp() * log_q).sum()


def action_entropy(belief: Tensor) -> Tensor:
    """H(Z|X)."""
    return -torch.xlogy(belief, belief / belief.sum(1, keepdim=True)).sum()


def information(log_p: Tensor, belief: Tensor) -> Tensor:
    """I(Z; Y^|X) by its definition, E log P(y|x,z) / P(y|x)."""
    marginal = (belief[..., None] * log_p.exp()).sum(1) / belief.sum(1)[:, None]
    return (belief[..., None] * log_p.exp() * (log_p - marginal.log()[:, None])).sum()


def posterior(log_p: Tensor, prior: Tensor) -> Tensor:
    """log P(z|x,y) by Bayes' rule."""
    return (prior.log()[..., None] + log_p).log_softmax(1)


def evidence(log_p: Tensor, prior: Tensor) -> Tensor:
    """log P(y|x) = log sum_z p(z|x) P(y|x,z), [X, Y]."""
    return (prior.log()[..., None] + log_p).logsumexp(1)


def reconstruction(log_q: Tensor, log_p: Tensor) -> Tensor:
    """E_Q log P(y|x,z), [X, Y]."""
    return (log_q.exp() * log_p).sum(1)


def elbo(log_q: Tensor, log_p: Tensor, prior: Tensor) -> Tensor:
    """E_Q log P(y|x,z) - KL(Q(.|x,y) || p(.|x)), [X, Y]."""
    return reconstruction(log_q, log_p) - (log_q.exp() * (log_q - prior.log()[..., None])).sum(1)


def distributions() -> list[Tensor]:
    """P(z|x): three at random, and the world's, with a hundredth spread over all texts to have a logarithm."""
    generator = torch.Generator().manual_seed(0)
    drawn = (3 * torch.randn(3, *BELIEF.shape, generator=generator, dtype=torch.float64)).softmax(-1)
    return [*drawn, 0.99 * BELIEF / BELIEF.sum(1, keepdim=True) + 0.01 / BELIEF.shape[1]]


# The process that trains


class Trainer:
    """Weight sets of one session by name: "fwm" and "idm" score, the others are trained or looked at."""

    def __init__(self, session):
        self.session, self.sets, self.cfg = session, session.sets, session.cfg

    def alter(self, start: str, name: str, part: str, factor: float) -> None:
        """`name` is `start` with the matrices whose names contain `part` multiplied."""
        self._begin(start, name)
        with torch.no_grad():
            for key, parameter in self.session.actor.module.named_parameters():
                if parameter.dim() == 2 and part in key:
                    parameter.mul_(factor)
        self.sets.trained()

    def warm_up(self, role, start: str, young: int) -> None:
        """The role's own set after a whole warm-up; "young ..." after `young` steps of it, with room for the phases."""
        from swirl_nemo import supervised

        self._begin(start, role.name)
        for step in range(60):
            if step == young:
                self.sets.copy(role.name, f"young {role.name}")
            supervised.step(self.session, [(role, row) for row in ROWS], 1e-2, 1.0)

    def run_phase(self, role, start: str, name: str, phase, lr: float, steps: int = 40, rows=lambda step: ROWS) -> None:
        """`name` is `start` after that many steps; the reference is `start`, as in alternation.py."""
        from swirl_nemo.phase import Step, grpo_step
        from swirl_nemo.session import REFERENCE

        self._begin(start, name)
        self.sets.snapshot(REFERENCE)
        setattr(self.cfg.phase, role.name, phase)
        for step in range(steps):
            grpo_step(self.session, role, Step(rows(step), rows(step), [], lr, (step,)))

    def sampled(self, role, start: str, phase) -> tuple[Tensor, float]:
        """What one grpo_step hands to the optimizer, and the mean reward that it logs."""
        from swirl_nemo.phase import Step, grpo_step

        self.sets.become(start)
        setattr(self.cfg.phase, role.name, replace(phase, group=MANY, clip_grad=1e9))
        metrics = grpo_step(self.session, role, Step(ROWS, [], [], 0.0, (7,)))
        return self._gradient(), metrics["reward/mean"]

    def exact(self, role, start: str, objective) -> Tensor:
        """The gradient of minus `objective`, a function of the policy's log table, by Megatron's backward pass."""
        from swirl_nemo.actor.batch import MicroBatch

        def loss(logprobs, entropy):
            return -objective(logprobs.sum(1).double().view(len(STATES), len(WORDS), len(FWM_TEXTS))).float(), {}

        self.sets.become(start)
        batch = MicroBatch(every_sequence(self.session, role), self.session.policy_distribution(role), loss=loss)
        self.session.actor.optimizer_step([batch], 0.0, 1e9)
        return self._gradient()

    def _begin(self, start: str, name: str) -> None:
        self.sets.copy(start, name)
        self.sets.become(name)
        self.session.actor.reset_optimizer()

    def _gradient(self) -> Tensor:
        return torch.cat([p.main_grad.flatten().double() for p in self.session.actor.module.parameters()])


def permuted():
    """The control: advantages dealt out anew within each group, so that they keep their sizes and say nothing."""
    from swirl_nemo import grpo

    generator, real = torch.Generator().manual_seed(0), grpo.group_advantages

    def deal(rewards, **options):
        ranked = real(rewards, **options)
        order = torch.rand(rewards.shape, generator=generator).argsort(1)
        return ranked._replace(advantages=ranked.advantages.gather(1, order))

    return patch.object(grpo, "group_advantages", deal)


def elbo_phase(two, group: int):
    """Phase II whose expected gradient is (1 - 1/G) / TARGET_TOKENS of the ELBO's, the reference being the prior.

    The reward is log P(y|x,z) / TARGET_TOKENS, and a group's mean holds the sample itself, hence 1 - 1/G. k2 is the
    estimator whose gradient as a loss is that of KL(Q || reference) (k3's is that of KL(reference || Q)); z is one
    token, so the loss's mean over tokens is all of it.
    """
    from swirl_nemo.config import Kl

    return replace(two, group=group, divide_by_std=False, kl=Kl.k2, kl_beta=(1 - 1 / group) / TARGET_TOKENS)


def main(work: Path) -> None:
    from swirl_nemo import annotation
    from swirl_nemo.session import Session

    session = Session(configure(work))
    session.load()
    trainer = Trainer(session)
    kept = {"random": tables(session, "fwm", "idm")}
    for role in (FWM, IDM):
        trainer.alter(role.name, f"sharp {role.name}", part="", factor=4.0)
    kept["sharp"] = tables(session, "sharp fwm", "sharp idm")
    # Without attention the IDM sees its prompt's last token alone: Q(z|x,y) is then one p(z), the prior.
    trainer.alter("sharp idm", "prior", part="linear_proj", factor=0.0)
    trainer.warm_up(FWM, "sharp fwm", young=15)
    trainer.warm_up(IDM, "sharp idm", young=25)
    kept["grown"] = tables(session, "fwm", "idm")
    kept["young"] = tables(session, "young fwm", "young idm")
    kept["at the prior"] = tables(session, "fwm", "prior")

    one, two = (replace(getattr(session.cfg.phase, role.name), group=GROUP) for role in (FWM, IDM))
    trainer.run_phase(FWM, "young fwm", "after I", one, lr=1e-3)
    kept["phase I"] = tables(session, "after I", "idm")
    with permuted():
        trainer.run_phase(FWM, "young fwm", "control", one, lr=1e-3)
    kept["control"] = tables(session, "control", "idm")
    trainer.run_phase(IDM, "young idm", "after II", two, lr=1e-3, steps=10)
    kept["phase II"] = tables(session, "fwm", "after II")
    trainer.run_phase(IDM, "prior", "on the ELBO", elbo_phase(two, GROUP), lr=3e-3, steps=60)
    kept["ELBO"] = tables(session, "fwm", "on the ELBO")

    def annotated(step):
        return [row.transition for row in annotation.annotate(session, ROWS, (step,))]

    trainer.run_phase(FWM, "young fwm", "M", replace(one, policy_gradient=0.0, mstep=1.0), lr=1e-3, rows=annotated)
    kept["M-step"] = tables(session, "M", "idm")
    saved = {"tables": {name: asdict(table) for name, table in kept.items()}}
    torch.save(saved | gradients(trainer, kept, one, two), work / "bounds.pt")


def gradients(trainer: Trainer, kept: dict[str, Tables], one, two) -> dict:
    """Of the young models, sampled and exact; the rewards are those of the grown ones."""
    grown = kept["grown"]
    one = replace(one, divide_by_std=False)
    forward, first_reward = trainer.sampled(FWM, "young fwm", one)
    with permuted():
        control, _ = trainer.sampled(FWM, "young fwm", one)
    trainer.sets.copy("prior", "reference")
    inverse, second_reward = trainer.sampled(IDM, "young idm", elbo_phase(two, MANY))
    return {
        "sampled": {"phase I": forward, "control": control, "ELBO": inverse},
        "rewards": {"phase I": first_reward, "phase II": second_reward},
        "exact": {
            "phase I": trainer.exact(FWM, "young fwm", lambda p: phase_one_objective(p, grown.idm_reward, BELIEF)),
            "ELBO": trainer.exact(
                IDM, "young idm", lambda q: (PAIRS * elbo(q, grown.fwm_reward, prior_of(kept["at the prior"]))).sum()
            ),
        },
    }


def prior_of(table: Tables) -> Tensor:
    """p(z|x) [X, Z] of an IDM that cannot see y."""
    return table.idm_policy.exp()[:, :, 0]


# The tests


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("bounds")
    run_module("test_bounds", work)
    return torch.load(work / "bounds.pt")


@pytest.fixture(scope="module")
def models(saved) -> dict[str, Tables]:
    return {name: Tables(**table) for name, table in saved["tables"].items()}


@pytest.mark.parametrize("name", MODELS)
def test_tables_hold_all_that_a_role_can_emit(models, name):
    """Policies add up to one, so nothing was left out; rewards, which also allow other texts, to no more than one."""
    model = models[name]
    for log_p, axis in ((model.fwm_policy, 2), (model.idm_policy, 1)):
        torch.testing.assert_close(log_p.exp().sum(axis), torch.ones_like(log_p.sum(axis)), atol=1e-5, rtol=0)
    assert model.fwm_reward.exp().sum(2).max() < 1 + 1e-5 and model.idm_reward.exp().sum(1).max() < 1 + 1e-5


def test_rewards_logged_are_those_expected(saved, models):
    """The mean reward of 48 x 64 samples is the enumerated one: what is sampled is what the tables hold."""
    young, grown = models["young"], models["grown"]
    one = phase_one_objective(young.fwm_policy, grown.idm_reward, BELIEF)
    two = (PAIRS * reconstruction(young.idm_policy, grown.fwm_reward)).sum()
    assert saved["rewards"]["phase I"] == pytest.approx(one.item() / TARGET_TOKENS, abs=0.04)
    assert saved["rewards"]["phase II"] == pytest.approx(two.item() / TARGET_TOKENS, abs=0.04)


@pytest.mark.parametrize("name", MODELS)
def test_theorem_3_1(models, name):
    """E log Q(z|x,y^) + H(Z|X) <= I(Z;Y^|X) for Q as reward and as policy, with equality for the true posterior."""
    log_p = models[name].fwm_policy
    for conditional in distributions():
        belief = conditional / len(STATES)
        bounded = information(log_p, belief)
        for log_q in (models[name].idm_reward, models[name].idm_policy):
            assert phase_one_objective(log_p, log_q, belief) + action_entropy(belief) <= bounded + 1e-5
        tight = phase_one_objective(log_p, posterior(log_p, conditional), belief) + action_entropy(belief)
        torch.testing.assert_close(tight, bounded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_theorem_3_2(models, name):
    """log P(y|x) >= ELBO for every x and every text y, by KL(Q || posterior): with equality for the true posterior."""
    log_q = models[name].idm_policy
    for log_p in (models[name].fwm_reward, models[name].fwm_policy):
        for prior in distributions():
            exact, log_y = posterior(log_p, prior), evidence(log_p, prior)
            gap = log_y - elbo(log_q, log_p, prior)
            assert gap.min() >= -1e-5
            torch.testing.assert_close(gap, (log_q.exp() * (log_q - exact)).sum(1), atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(elbo(exact, log_p, prior), log_y, atol=1e-5, rtol=0)


def test_phase_one_raises_its_bound(models):
    """As published but for the KL, the policy gradient alone: the bound goes up, and the information with it.

    It is the rewards that do it: the control trains on its advantages permuted within groups.
    """

    def bound(name: str) -> float:
        value = phase_one_objective(models[name].fwm_policy, models["grown"].idm_reward, BELIEF)
        return (value + action_entropy(BELIEF)).item()

    gain = bound("phase I") - bound("young")
    assert gain > 0.3
    assert bound("control") - bound("young") < gain / 10
    assert 0 < bound("phase I") <= information(models["phase I"].fwm_policy, BELIEF) <= action_entropy(BELIEF)
    assert information(models["phase I"].fwm_policy, BELIEF) > information(models["young"].fwm_policy, BELIEF)


def test_phase_two_raises_reconstruction_and_elbo(models):
    """As published but for the KL, the policy gradient alone: E_Q log P(y|x,z) goes up, and here the ELBO too.

    The reward is the ELBO without -KL(Q || p(z|x)), so the first is what is ascended; the ELBO follows from models this
    young, whose actions are often wrong, for 15 steps or so, and falls in the end: nothing keeps Q from collapsing.
    """
    log_p, prior = models["grown"].fwm_reward, distributions()[-1]

    def values(name: str) -> Tensor:
        log_q = models[name].idm_policy
        expected = reconstruction(log_q, log_p), elbo(log_q, log_p, prior)
        return torch.stack([(PAIRS * value).sum() for value in expected])

    reconstructed, bounded = values("phase II") - values("young")
    assert reconstructed > 0.4 and bounded > 0.1


def test_phase_two_with_the_prior_as_reference_reaches_the_posterior(models):
    """With -KL to the prior in its loss (`elbo_phase`) Phase II ascends the ELBO itself, up to log P(y|x).

    The run starts at the prior, its reference; no other Q than the posterior closes the gap.
    """
    prior, log_p = prior_of(models["at the prior"]), models["grown"].fwm_reward
    start = models["at the prior"].idm_policy
    torch.testing.assert_close(start, prior.log()[..., None].expand_as(start), atol=1e-6, rtol=0)

    def gap(log_q: Tensor) -> Tensor:
        return (PAIRS * (evidence(log_p, prior) - elbo(log_q, log_p, prior))).sum()

    before, after = gap(start), gap(models["ELBO"].idm_policy)
    assert before > 0.5 and after < before / 5


def test_mstep_raises_the_elbo(models):
    """The M-step alone, on fresh annotations at each step: E_Q log P_theta(y|x,z), all of the ELBO that has theta."""

    def value(name: str) -> Tensor:
        return (PAIRS * reconstruction(models["grown"].idm_policy, models[name].fwm_reward)).sum()

    assert value("M-step") - value("young") > 0.1


def test_expected_gradients_are_those_of_the_bounds(saved, models):
    """One step's gradient, 64 samples a prompt, has the direction and the size of the enumerated one; see `elbo_phase`.

    In Phase I the mean over tokens divides by the mean length too: one token for the empty text, else two.
    """
    sampled, exact = saved["sampled"], saved["exact"]
    empty = phase_one_objective(models["young"].fwm_policy[..., :1], torch.ones(()), BELIEF)
    scale = (1 - 1 / MANY) / TARGET_TOKENS
    for name, expected in (("phase I", scale / (2 - empty)), ("ELBO", scale)):
        measured = sampled[name] @ exact[name] / exact[name].square().sum()
        assert torch.cosine_similarity(sampled[name], exact[name], dim=0) > 0.95
        assert measured == pytest.approx(float(expected), rel=0.2)
    along = sampled["control"] @ exact["phase I"] / exact["phase I"].square().sum()
    assert along.abs() < scale / 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
