"""Held-out figures of both roles: greedy predictions and log-probs of the gold targets, on one transitions file."""

from dataclasses import dataclass

from .. import worlds
from ..annotation import target_logprobs
from ..data.images.characters import readable
from ..data.transition import Transition
from ..data.transitions import TransitionFile
from ..roles import FWM, IDM, ROLES, Role
from ..session import Session
from .metrics import METRICS, right_action, token_f1


@dataclass(frozen=True)
class Prediction:
    """One held-out transition: what each role made of it. `cycled` is the IDM's action for the FWM's own next state."""

    transition: Transition
    next_state: str
    action: str
    cycled: str
    fwm_logprob: float
    idm_logprob: float


def evaluate(session: Session, path: str) -> tuple[dict[str, float], list[dict]]:
    """Figures {"fwm/exact_match", ..., "cycle_consistency"} over the file, and rows for samples.jsonl.

    The FWM is right with a state of the same facts, in whatever order; the IDM with any action that leads from x to y,
    where the world can compute those; the cycle is consistent where the IDM, shown the FWM's prediction, names an
    action that leads to the true y.
    """
    rows = list(TransitionFile(path, session.cfg.eval.transitions or None, session.cfg.data.history))
    predictions = []
    for part in session.batches(len(rows)):
        predictions += _predict(session, rows[part.start : part.stop])
    predictions = session.gather(predictions)
    world = worlds.find(session.cfg.data.world)
    same = session.prompter.same_state
    return _figures(predictions, world, same), _samples(session, predictions[: session.cfg.eval.samples], world)


def _predict(session: Session, rows: list[Transition]) -> list[Prediction]:
    with session.sets.wear(session.set_of(FWM)):
        states = greedy(session, FWM, rows)
        fwm = target_logprobs(session, FWM, rows)
    with session.sets.wear(session.set_of(IDM)):
        actions = greedy(session, IDM, rows)
        idm = target_logprobs(session, IDM, rows)
        cycled = greedy(session, IDM, [FWM.complete(row, state) for row, state in zip(rows, states, strict=True)])
    return [Prediction(*fields) for fields in zip(rows, states, actions, cycled, fwm, idm, strict=True)]


def greedy(session: Session, role: Role, rows: list[Transition]) -> list[str]:
    """The role's likeliest completion, token by token, under the weights that are worn."""
    rollout = session.actor.infer(
        [session.prompt(role, row) for row in rows],
        session.policy_distribution(role),
        group=1,
        max_length=getattr(session.cfg.data, role.name).max_length,
        uniforms=None,
        batch=session.cfg.parallel.rollout_batch,
    )
    return session.prompter.completions(role, rows, rollout.completions)


def _is_right(world, row: Transition, action: str) -> bool:
    return right_action(action, row.z, world.actions_between(row.x, row.y))


def _figures(predictions: list[Prediction], world, same_state) -> dict[str, float]:
    def mean(values) -> float:
        return float(sum(values)) / len(predictions)

    return {
        "fwm/exact_match": mean(same_state(p.next_state, p.transition.y) for p in predictions),
        "fwm/token_f1": mean(token_f1(p.next_state, p.transition.y) for p in predictions),
        "fwm/gold_logprob": mean(p.fwm_logprob for p in predictions),
        "idm/exact_match": mean(_is_right(world, p.transition, p.action) for p in predictions),
        "idm/token_f1": mean(token_f1(p.action, p.transition.z) for p in predictions),
        "idm/gold_logprob": mean(p.idm_logprob for p in predictions),
        "cycle_consistency": mean(_is_right(world, p.transition, p.cycled) for p in predictions),
    }


def by_role(results: dict[str, dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """{model: figures} as summary.json has it: {role: {metric: {model: value}}}."""
    return {
        role: {metric: {model: figures[f"{role}/{metric}"] for model, figures in results.items()} for metric in METRICS}
        for role in ROLES
    }


def _samples(session: Session, predictions: list[Prediction], world) -> list[dict]:
    rows = []
    for p in predictions:
        t = p.transition
        for role, prediction, correct in (
            (FWM, p.next_state, session.prompter.same_state(p.next_state, t.y)),
            (IDM, p.action, _is_right(world, t, p.action)),
        ):
            prompt = session.prompter.decode(session.prompter.prompt(role, t))
            shown = {"x": t.x, "z": t.z, "y": t.y, "prompt": prompt, "prediction": prediction, "target": role.target(t)}
            shown = {name: readable(text) for name, text in shown.items()}
            rows.append({"role": role.name, **shown, "correct": correct})
    return rows
