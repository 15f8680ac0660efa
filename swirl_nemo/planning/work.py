"""What a step of a phase runs through the model, in tokens: this project's step as phase.py does it.

X, Y and Z are tokens of a state, the next state and an action. A prompt is run once for its group, in rollout, scoring
and training; a row's own tokens are what follows.
"""

import math
from dataclasses import dataclass

from ..config import PhaseConfig, RoleName, SwirlConfig, Weights
from ..roles import ROLES, taught_by_annotations
from .architecture import Layout


@dataclass(frozen=True)
class Lengths:
    """Tokens of a state, the next state and an action."""

    state: float
    next_state: float
    action: float

    @classmethod
    def longest(cls, cfg: SwirlConfig) -> "Lengths":
        """What fills model.max_length: completions as long as allowed, the rest is the state."""
        y, z = cfg.data.fwm.max_length, cfg.data.idm.max_length
        return cls(max(cfg.model.max_length - y - z, 1), y, z)

    def check(self, cfg: SwirlConfig) -> None:
        """Raises ValueError where they are longer than `cfg` allows."""
        for size, key in ((self.next_state, "data.fwm.max_length"), (self.action, "data.idm.max_length")):
            most = getattr(cfg.data, key.split(".")[1]).max_length
            if not 1 <= size <= most:
                raise ValueError(f"--lengths: {size:g} tokens, and {key}={most}: give 1 to {most}, or a longer {key}")
        total = self.state + self.next_state + self.action
        if self.state < 1 or total > cfg.model.max_length:
            raise ValueError(
                f"--lengths: {total:g} tokens in all, and model.max_length={cfg.model.max_length}: give fewer, "
                f"or a longer model.max_length"
            )


@dataclass(frozen=True)
class Micro:
    """`count` micro-batches of a data-parallel replica, each of `prefixes` shared prefixes and `rows` rows.

    own: a row's tokens behind its prefix that are run, all but the last, which predicts nothing; scored: those for
    which the head runs.
    """

    count: int
    rows: float
    prefixes: float
    prefix: float
    own: float
    scored: float

    @property
    def tokens(self) -> float:
        """That linear layers see, of one micro-batch."""
        return self.prefixes * self.prefix + self.rows * self.own

    @property
    def pairs(self) -> float:
        """Query-key pairs of attention, of one micro-batch."""
        return self.prefixes * self.prefix**2 / 2 + self.rows * self.own * (self.prefix + self.own / 2)

    @property
    def head(self) -> float:
        return self.rows * self.scored


def micro(rows: float, size: int, group: int, prefix: float, own: float, scored: float) -> Micro:
    """`rows` rows of a replica in micro-batches of at most `size`; every `group` of them share a prefix."""
    size = min(size, math.ceil(rows))
    return Micro(math.ceil(rows / size), size, math.ceil(size / group), prefix, own, scored)


@dataclass(frozen=True)
class Rollout:
    """`pieces` one after the other of `prompts` prompts with `rows` rows in all, of a data- or context-parallel rank. A
    piece takes as many tokens as its `longest` row; `truncates`: by top-k or top-p."""

    pieces: int
    prompts: int
    rows: int
    prompt: float
    completion: float
    longest: float
    truncates: bool

    @property
    def tokens(self) -> float:
        return self.pieces * self.rows * self.completion


@dataclass(frozen=True)
class PhaseWork:
    """A step of the phase that trains `role`: of one data-parallel replica."""

    role: str
    rollout: Rollout
    passes: dict[str, Micro]  # scoring: "reward" and, where beta is over 0, "reference"
    train: list[Micro]  # of one optimizer step
    optimizer_steps: int
    copies: int  # weight sets copied between host and device in a step


def phase_work(cfg: SwirlConfig, role: RoleName, lengths: Lengths, layout: Layout) -> PhaseWork:
    phase: PhaseConfig = getattr(cfg.phase, role.value)
    x, y, z = lengths.state, lengths.next_state, lengths.action
    texts = {RoleName.fwm: (x + z, y), RoleName.idm: (x + y, z)}  # prompt and completion
    prompt, completion = texts[role]
    target = z if role is RoleName.fwm else y
    trained = ROLES[role.value]
    played = list(ROLES.values()) if cfg.model.weights is Weights.shared else [trained]
    prompts = math.ceil(phase.prompts / layout.data)
    rows, group, sizes = prompts * phase.group, phase.group, cfg.parallel
    passes = {"reward": micro(rows, sizes.score_batch, group, x, completion + target - 1, target)}
    if phase.kl_beta:
        passes["reference"] = micro(rows, sizes.score_batch, group, prompt, completion - 1, completion)
    train = [micro(rows / phase.optimizer_steps, sizes.micro_batch, group, prompt, completion - 1, completion)]
    taught = [(phase.replay, phase.replay_batch, each) for each in played]
    taught += [(phase.mstep, phase.mstep_batch, each) for each in taught_by_annotations(trained, played)]
    for weight, count, each in taught:
        prefix, target = texts[RoleName(each.name)]
        if weight:
            share = math.ceil(count / phase.optimizer_steps / layout.data)
            train.append(micro(share, sizes.micro_batch, 1, prefix, target - 1, target))
    return PhaseWork(
        role=role.value,
        rollout=_rollout(cfg, role, math.ceil(phase.prompts / layout.shards), prompt, completion),
        passes=passes,
        train=train,
        optimizer_steps=phase.optimizer_steps,
        copies=copies(cfg.model.weights, phase.kl_beta > 0),
    )


def _rollout(cfg: SwirlConfig, role: RoleName, prompts: int, prompt: float, completion: float) -> Rollout:
    """As rollout.engine divides them: whole groups where one fits into the batch."""
    phase, batch = getattr(cfg.phase, role.value), cfg.parallel.rollout_batch
    longest = getattr(cfg.data, role.value).max_length
    truncates = phase.sampling.top_k > 0 or phase.sampling.top_p < 1
    if phase.group > batch:
        pieces = prompts * math.ceil(phase.group / batch)
        return Rollout(pieces, 1, batch, prompt, completion, longest, truncates)
    together = min(batch // phase.group, prompts)
    pieces, rows = math.ceil(prompts / together), together * phase.group
    return Rollout(pieces, together, rows, prompt, completion, longest, truncates)


def copies(weights: Weights, reference: bool) -> int:
    """As weights.WeightSets.wear does: the trained policy to the host, the set that is worn and the policy back. Apart,
    a reference worn within the counterpart is two more: it, and the counterpart again before the policy."""
    return 5 if reference and weights is Weights.separate else 3
