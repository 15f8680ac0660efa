"""Latent actions for state-only transitions from the current IDM, kept where the current FWM finds them plausible."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .actor.batch import plain
from .config import PhaseConfig
from .data.batch import collate
from .data.transition import Transition
from .roles import FWM, IDM, Role
from .session import Session


@dataclass(frozen=True)
class Annotated:
    """A transition with its latent action; summed log-probs log Q(z|x,y) when it was drawn, log P(y|x,z), and log p(z)
    under the prior."""

    transition: Transition
    idm_logprob: float
    fwm_logprob: float
    prior: float = 0.0

    @property
    def plausibility(self) -> float:
        return self.fwm_logprob + self.prior


def annotate(session: Session, transitions: list[Transition], seed: tuple[int, ...]) -> list[Annotated]:
    """A latent action for each transition; whatever z they had is not read.

    Of `annotate.candidates` actions of the IDM, sampled but for the first where `annotate.greedy`, the one with the
    highest log Q(z|x,y) + log P(y|x,z) + log p(z): what tells the FWM all of y, but nobody would say, does not win.
    Work is shared over data-parallel ranks; every rank returns all, in order.
    """
    count = session.cfg.annotate.candidates
    numbers = np.random.default_rng(seed).random((len(transitions), count, session.cfg.data.idm.max_length))
    mine = []
    for rows in session.batches(len(transitions)):
        part = slice(rows.start, rows.stop)
        mine += _annotate_batch(session, transitions[part], torch.from_numpy(numbers[part]))
    return session.gather(mine)


def _annotate_batch(session: Session, transitions: list[Transition], uniforms: Tensor) -> list[Annotated]:
    with session.sets.wear(session.set_of(IDM)):
        candidates = _candidates(session, transitions, uniforms)
    labelled = [replace(t, z=z) for t, known in zip(transitions, candidates, strict=True) for z in known]
    with session.sets.wear(session.set_of(FWM)):
        plausible = iter(target_logprobs(session, FWM, labelled, list(map(len, candidates))))
    scored = [
        [Annotated(replace(t, z=z), logprob, next(plausible), session.prior(z)) for z, logprob in known.items()]
        for t, known in zip(transitions, candidates, strict=True)
    ]
    return [max(of_one, key=lambda a: a.idm_logprob + a.plausibility) for of_one in scored]


def _candidates(session: Session, transitions: list[Transition], uniforms: Tensor) -> list[dict[str, float]]:
    """Actions of the IDM, whose weights are worn, with their log-probs: of each transition's [K, T] numbers as many,
    equal ones once."""
    found: list[dict[str, float]] = [{} for _ in transitions]
    greedy = int(session.cfg.annotate.greedy)
    for group, numbers in ((greedy, None), (uniforms.size(1) - greedy, uniforms[:, greedy:].flatten(0, 1))):
        if not group:
            continue
        rollout = session.actor.infer(
            [session.prompt(IDM, t) for t in transitions],
            session.policy_distribution(IDM),
            group=group,
            max_length=session.cfg.data.idm.max_length,
            uniforms=None if numbers is None else numbers.to(session.device),
            batch=session.cfg.parallel.rollout_batch,
        )
        drawn = zip(rollout.completions, rollout.logprobs.sum(1).tolist(), strict=True)
        for place, (completion, logprob) in enumerate(drawn):
            found[place // group].setdefault(session.prompter.decode(completion), logprob)
    return found


def target_logprobs(
    session: Session, role: Role, transitions: list[Transition], groups: int | list[int] = 1
) -> list[float]:
    """Summed log-prob of each transition's own target under the weights that are worn; `groups` as `collate` reads it:
    rows whose prompts begin alike."""
    prompts = [session.prompt(role, t) for t in transitions]
    targets = [session.prompter.target(role, t) for t in transitions]
    sequences = collate(prompts, targets, groups).to(session.device)
    scored = plain(sequences, session.model_distribution, session.cfg.parallel.score_batch)
    return session.actor.get_inference_log_probs(list(scored))[0].sum(1).tolist()


def select(annotated: list[Annotated], role: Role, phase: PhaseConfig, ceiling: float | None) -> list[Transition]:
    """Annotations that both models are sure enough of, those that `role` is already certain of last.

    Raises ValueError where none is left.
    """
    floors = {"plausibility_floor": phase.plausibility_floor, "confidence_floor": phase.confidence_floor}
    plausible, confident = (-float("inf") if floor is None else floor for floor in floors.values())
    kept = [a for a in annotated if a.plausibility >= plausible and a.idm_logprob >= confident]
    if not kept:
        raise ValueError(
            f"phase.{role.name}: none of {len(annotated)} annotations passes {floors}: lower them, give null, or warm "
            f"the models up for longer"
        )
    return uncertain_first(kept, role, ceiling)


def uncertain_first(annotated: list[Annotated], role: Role, ceiling: float | None) -> list[Transition]:
    """All of them, last those that `role` knows already: the FWM where its log P(y|x,z) is over `ceiling`, the IDM
    where its log Q(z|x,y) and log P(y|x,z) p(z) both are, since an IDM that is certain of something implausible is
    wrong."""
    certain = float("inf") if ceiling is None else ceiling

    def known(a: Annotated) -> bool:
        return (a.fwm_logprob if role is FWM else min(a.idm_logprob, a.plausibility)) > certain

    return [a.transition for a in sorted(annotated, key=known)]  # stable: the file's order


def write(annotated: list[Annotated], transitions: Path, scores: Path) -> None:
    """A transitions file, and beside it {"id", "idm_logprob", "fwm_logprob", "prior"} a row."""
    transitions.write_text("".join(json.dumps(a.transition.row(), ensure_ascii=False) + "\n" for a in annotated))
    with scores.open("w") as file:
        for a in annotated:
            row = {"idm_logprob": a.idm_logprob, "fwm_logprob": a.fwm_logprob, "prior": a.prior}
            file.write(json.dumps({"id": a.transition.id} | row) + "\n")


def read(transitions: Path, scores: Path) -> list[Annotated]:
    """What `write` wrote."""
    rows = [Transition.of(json.loads(line)) for line in transitions.read_text().splitlines()]
    values = [json.loads(line) for line in scores.read_text().splitlines()]
    for row, value in zip(rows, values, strict=True):
        assert value.pop("id") == row.id, f"{scores}: not the scores of {transitions}"
    return [Annotated(row, **value) for row, value in zip(rows, values, strict=True)]
