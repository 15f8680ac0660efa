"""One GRPO step. Phase I and Phase II are this procedure with the roles swapped (ALGORITHM.md).

P prompts over all ranks, G completions each, B = P*G sequences; this rank's share has p prompts and b = p*G sequences.
C completion columns.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from . import grpo, guard, supervised
from .actor.batch import MicroBatch, plain
from .config import PhaseConfig, Weights
from .data.batch import Sequences, collate
from .data.transition import Transition
from .guard import agree
from .reward import counterpart_rewards, counterpart_sequences, rewards
from .roles import Role, taught_by_annotations
from .rollout.result import Rollout
from .session import REFERENCE, Session
from .watch import Watch

TOKEN_SUMS = ("tokens", "ratio/mean", "ratio/clip_fraction", "kl/reference", "drift/mean", "entropy")


@dataclass(frozen=True)
class Step:
    """What one step reads: P transitions in a fixed order, annotated ones for the M-step, labelled rows to replay, and
    its place in the run."""

    transitions: list[Transition]
    annotated: list[Transition]
    replay: list[Transition]
    lr: float
    seed: tuple[int, ...]  # of the rollout's uniform numbers


class Stopwatch:
    """Seconds by name; the job's watch is told what is being done."""

    def __init__(self, watch: Watch):
        self.seconds: dict[str, float] = {}
        self._watch = watch

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._watch.at(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def grpo_step(session: Session, role: Role, step: Step) -> dict[str, float]:
    """Roll out, score, rank, reinforce; one line of metrics with the names of DESIGN.md."""
    phase: PhaseConfig = getattr(session.cfg.phase, role.name)
    if phase.policy_gradient == 0:
        return _without_rollout(session, role, phase, step)
    watch = Stopwatch(session.watch)
    swapped = session.sets.seconds
    with watch("step"):
        mine = list(session.share(step.transitions))
        with watch("rollout"):
            rollout = roll_out(session, role, phase, mine, step)
            mine, rollout, parts = balanced(session, role, phase, mine, rollout)
        sequences = _sequences(session, role, mine, rollout, phase.group)
        with watch("score"):
            reward, reference = score(session, role, phase, mine, rollout, sequences, watch)
        reward, clamped = grpo.clamp_rewards(reward, phase.reward_floor)
        if agree(not bool(reward.isfinite().all()), session.device):
            return _not_rewarded(session, phase, sequences, reward, mine, step)
        ranked = _advantages(phase, reward)
        if phase.permute_advantages:
            ranked = permuted(ranked, mine, step.seed)
        samples = Samples(sequences, rollout, reward, reference, ranked, parts)
        with watch("train"):
            trained = update(session, role, phase, samples, mine, step)
    watch.seconds["swap"] = session.sets.seconds - swapped
    return trained | _reward_metrics(session, reward, clamped, ranked) | _costs(session, sequences, watch)


def _without_rollout(session: Session, role: Role, phase: PhaseConfig, step: Step) -> dict[str, float]:
    """The policy gradient switched off: replay and M-step alone need no sample and no score."""
    watch = Stopwatch(session.watch)
    with watch("step"):
        trained = update(session, role, phase, None, list(session.share(step.transitions)), step)
    return trained | {"seconds/step": watch.seconds["step"], "memory/peak_gb": peak_memory_gb()}


def _not_rewarded(session, phase: PhaseConfig, sequences, reward: Tensor, mine, step: Step) -> dict:
    """A step with a reward that is not finite trains on nothing."""
    bad = _batch(session, phase, sequences, reward, mine, step)
    return {"loss": None, "skipped/nonfinite": phase.optimizer_steps, "lr": step.lr, "tokens": 0, "nonfinite": bad}


def _batch(session, phase: PhaseConfig, sequences: Sequences | None, reward: Tensor | None, mine, step) -> list[dict]:
    """All ranks' completions with their rewards, and the supervised rows, to be dumped. Collective."""
    parts = guard.rows("replay", step.replay) + guard.rows("mstep", step.annotated)
    if sequences is None:
        return parts
    tokens = [row[mask].tolist() for row, mask in zip(sequences.targets, sequences.completion_mask, strict=True)]
    completions = [session.prompter.decode(completion) for completion in tokens]
    rows = guard.rows("policy", [t for t in mine for _ in range(phase.group)])
    scored = zip(rows, completions, reward.tolist(), strict=True)
    return session.gather([row | {"completion": text, "reward": value} for row, text, value in scored]) + parts


@dataclass(frozen=True)
class Samples:
    """This rank's rollout with what training needs of it. Rows p*G + g."""

    sequences: Sequences
    rollout: Rollout
    reward: Tensor  # [b]
    reference: Tensor | None  # [b, C]
    ranked: grpo.Advantages
    parts: list[list[int]]  # the groups of each optimizer step


def roll_out(session: Session, role: Role, phase: PhaseConfig, mine: list[Transition], step: Step) -> Rollout:
    """G completions of each of this rank's prompts. The numbers drawn depend on a sample's place in the whole batch
    alone, so every layout draws the same."""
    data = getattr(session.cfg.data, role.name)
    shape = (len(step.transitions) * phase.group, data.max_length)
    drawn = torch.from_numpy(np.random.default_rng(step.seed).random(shape))
    rows = session.share(range(len(step.transitions)))
    uniforms = drawn[rows.start * phase.group : rows.stop * phase.group].to(session.device)
    return session.actor.infer(
        [session.prompt(role, t) for t in mine],
        session.policy_distribution(role),
        group=phase.group,
        max_length=data.max_length,
        uniforms=uniforms,
        batch=session.cfg.parallel.rollout_batch,
    )


def balanced(
    session: Session, role: Role, phase: PhaseConfig, mine: list[Transition], rollout: Rollout
) -> tuple[list[Transition], Rollout, list[list[int]]]:
    """Groups dealt out anew, so that data-parallel ranks score and train on as many tokens; and which of them belong to
    each optimizer step. The same parts of the batch in every layout: every n-th group, as for the replay.

    Truncated sampling keeps groups where they are: the support of a whole batch is too much for one rank.
    """
    count, world = phase.optimizer_steps, dist.get_world_size(session.actor.data_group)
    if world == 1 or rollout.support is not None:  # ranks' shares are multiples of n
        return mine, rollout, [list(range(part, len(mine), count)) for part in range(count)]
    own = rollout.by_group(phase.group)
    sizes = [
        len(session.prompter.prompt(role, transition)) + sum(map(len, group.completions))
        for transition, group in zip(mine, own, strict=True)
    ]
    groups, sizes = session.gather(list(zip(mine, own, strict=True))), session.gather(sizes)
    dealt = [session.deal(range(part, len(groups), count), sizes) for part in range(count)]
    kept = [groups[number] for part in dealt for number in part]
    places = iter(range(len(kept)))
    parts = [[next(places) for _ in part] for part in dealt]
    return [t for t, _ in kept], Rollout.join([group for _, group in kept], session.device), parts


def _sequences(session, role, mine, rollout, group) -> Sequences:
    prompts = [session.prompter.prompt(role, t) for t in mine]
    return collate([prompt for prompt in prompts for _ in range(group)], rollout.completions, group).to(session.device)


def score(session: Session, role: Role, phase: PhaseConfig, mine, rollout, sequences: Sequences, watch: Stopwatch):
    """Rewards [b] by the frozen counterpart, and reference log-probs [b, C] unless beta is 0.

    With shared weights the counterpart and the reference are the same set, worn once and run in one pass.
    """
    texts = session.prompter.completions(role, mine, rollout.completions)
    repeated = [t for t in mine for _ in range(phase.group)]
    size = session.cfg.parallel.score_batch
    policy = plain(sequences, session.policy_distribution(role), size, rollout.support) if phase.kl_beta else ()

    if session.cfg.model.weights is Weights.shared:
        targets = counterpart_sequences(session, role, repeated, texts, phase.group)
        with session.sets.wear(REFERENCE):
            both = [*plain(targets, session.model_distribution, size), *policy]
            logprobs = session.actor.get_inference_log_probs(both)[0]
        reward = rewards(session, role, texts, logprobs[: len(targets)], targets)
        return reward, logprobs[len(targets) :, : sequences.width] if phase.kl_beta else None
    with session.sets.wear(role.counterpart.name):
        with watch("reward"):
            reward = counterpart_rewards(session, role, repeated, texts, phase.group)
        if not phase.kl_beta:
            return reward, None
        with session.sets.wear(REFERENCE), watch("reference"):
            return reward, session.actor.get_inference_log_probs(list(policy))[0]


def _advantages(phase: PhaseConfig, reward: Tensor) -> grpo.Advantages:
    return grpo.group_advantages(
        reward.view(-1, phase.group),
        divide_by_std=phase.divide_by_std,
        std_epsilon=phase.std_epsilon,
        dead_std=phase.dead_std,
    )


def permuted(ranked: grpo.Advantages, mine: list[Transition], seed: tuple[int, ...]) -> grpo.Advantages:
    """Each group's advantages dealt out anew, by the step's seed and the group's transition: alike in every layout."""
    size = ranked.advantages.size(1)
    orders = [Random(f"{seed}/{transition.id}").sample(range(size), size) for transition in mine]
    places = torch.tensor(orders, device=ranked.advantages.device)
    return ranked._replace(advantages=ranked.advantages.gather(1, places))


def update(
    session: Session, role: Role, phase: PhaseConfig, samples: Samples | None, mine: list[Transition], step: Step
) -> dict[str, float]:
    """`optimizer_steps` steps of Megatron's optimizer, each on its part of the groups, replay and M-step rows.

    Labels are replayed to each role that the trained weights play, or shared ones forget the other.
    """
    reduced: list[dict[str, float]] = []
    played = session.roles_of(session.set_of(role))
    taught = [(phase.replay, step.replay, each) for each in played]
    taught += [(phase.mstep, step.annotated, each) for each in taught_by_annotations(role, played)]
    for part in range(phase.optimizer_steps):
        batches = [] if samples is None else _policy_batches(session, role, phase, samples, samples.parts[part])
        for weight, rows, each in taught:
            if weight:
                pairs = [(each, t) for t in session.share(rows[part :: phase.optimizer_steps])]
                batches += supervised.micro_batches(session, pairs, weight)
        reduced.append(_optimizer_step(session, phase, batches, step.lr))
    tokens = sum(int(part.pop("tokens")) for part in reduced)
    skipped = sum(part.pop("skipped/nonfinite") for part in reduced)
    first, last = reduced[0], reduced[-1]
    seen = (None, None) if samples is None else (samples.sequences, samples.reward)
    bad = {"nonfinite": _batch(session, phase, *seen, mine, step)} if skipped else {}
    # Drift is rounding only before the first step of the batch; ratio and clipping are of interest after the last.
    drift = {name: value for name, value in first.items() if name.startswith("drift")}
    return last | drift | {"tokens": tokens, "skipped/nonfinite": skipped} | bad


def _policy_batches(session, role: Role, phase: PhaseConfig, samples: Samples, groups: list[int]) -> list[MicroBatch]:
    """Live groups' rows, lengths alike in a micro-batch and a group's rows together, as they share a prefix.
    Collective: every data-parallel rank counts its rows."""
    sequences, rollout = samples.sequences, samples.rollout
    lengths = sequences.lengths.view(-1, phase.group).tolist()
    groups = sorted((g for g in groups if samples.ranked.live[g]), key=lambda g: max(lengths[g]))
    rows = [g * phase.group + i for g in groups for i in sorted(range(phase.group), key=lengths[g].__getitem__)]
    counted = sequences.completion_mask[rows]
    total = session.add_up(grpo.loss_total(counted, phase.aggregation).float())
    distribution = session.policy_distribution(role)
    advantages = samples.ranked.advantages.flatten()
    batches = []
    for start in range(0, len(rows), session.cfg.parallel.micro_batch):
        index = torch.tensor(rows[start : start + session.cfg.parallel.micro_batch], device=session.device)
        part = sequences.select(index)
        cut = (index, slice(0, part.width))
        batches.append(
            MicroBatch(
                part,
                distribution,
                support=None if rollout.support is None else rollout.support[cut],
                loss=_policy_loss(
                    phase,
                    behaviour=rollout.logprobs[cut],
                    reference=None if samples.reference is None else samples.reference[cut],
                    advantages=advantages[index],
                    mask=part.completion_mask,
                    total=total,
                ),
            )
        )
    return batches


def _policy_loss(phase: PhaseConfig, *, behaviour, reference, advantages, mask, total):
    options = grpo.LossOptions.of(phase)

    def loss(logprobs: Tensor, entropy: Tensor):
        result = grpo.policy_loss(logprobs, behaviour, reference, advantages, mask, options, total)
        part = phase.policy_gradient * result.loss
        sums = result.sums | {"entropy": entropy.sum(), "drift/max": result.drift_max, "loss": part}
        return part, sums

    return loss


def _optimizer_step(session: Session, phase: PhaseConfig, batches: list[MicroBatch], lr: float) -> dict[str, float]:
    """Sums of all ranks as means. A step for which no rank has a live group or a supervised row is skipped."""
    most = int(session.add_up(torch.tensor([len(batches)], device=session.device), maximum=True).item())
    if most == 0:
        return {"loss": 0.0, "grad_norm": 0.0, "lr": lr, "tokens": 0, "skipped/nonfinite": 0}
    tokens = supervised.trained_tokens(session, batches)
    # All ranks as many: FP8's amaxes are reduced over them in each pass
    batches += [_nothing(session)] * (most - len(batches))
    grad_norm, sums, stepped = session.actor.optimizer_step(batches, lr, phase.clip_grad)
    session.sets.trained()
    zero = torch.zeros((), device=session.device)
    names = ("loss", *TOKEN_SUMS)
    added = session.add_up(torch.stack([sums.get(name, zero).float() for name in names]))
    values = dict(zip(names, added, strict=True))
    loss = values.pop("loss").item()
    drift = session.add_up(sums.get("drift/max", zero).reshape(1).clone(), maximum=True).item()
    means = grpo.token_means(values)
    figures = {"drift/max": drift, "loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
    return means | figures | {"skipped/nonfinite": int(not stepped)}


def _nothing(session: Session) -> MicroBatch:
    """A micro-batch without weight, for a rank that has fewer live groups than another."""
    end = session.prompter.end
    sequences = collate([[end]], [[end]]).to(session.device)
    return MicroBatch(sequences, session.model_distribution, loss=lambda logprobs, entropy: (0 * logprobs.sum(), {}))


def _reward_metrics(session: Session, reward: Tensor, clamped: Tensor, ranked: grpo.Advantages) -> dict[str, float]:
    """Means over all ranks' samples and groups."""
    samples = torch.stack([reward.sum(), clamped.sum(), reward.new_tensor(len(reward))])
    groups = torch.stack([ranked.std.sum(), (~ranked.live).sum(), reward.new_tensor(len(ranked.live))])
    samples, groups = session.add_up(samples), session.add_up(groups)
    return {
        "reward/mean": (samples[0] / samples[2]).item(),
        "reward/clamped_fraction": (samples[1] / samples[2]).item(),
        "reward/group_std": (groups[0] / groups[2]).item(),
        "group/dead_fraction": (groups[1] / groups[2]).item(),
    }


def _costs(session: Session, sequences: Sequences, watch: Stopwatch) -> dict[str, float]:
    """Seconds of each part, tokens/s over all ranks, completion length, peak memory of this rank."""
    lengths = sequences.completion_lengths.sum()
    counts = torch.stack([lengths, sequences.lengths.sum(), sequences.lengths.new_tensor(len(sequences))]).float()
    completion, whole, rows = session.add_up(counts).tolist()
    seconds = watch.seconds
    return {
        "completion/length": completion / rows,
        "tokens_per_s/rollout": completion / seconds["rollout"],
        "tokens_per_s/score": whole / seconds["score"],
        "tokens_per_s/train": whole / seconds["train"],
        **{f"seconds/{name}": value for name, value in seconds.items()},
        "memory/peak_gb": peak_memory_gb(),
    }


def peak_memory_gb() -> float:
    """Of the device where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
