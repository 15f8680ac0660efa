"""A ring of three states with three actions, small enough to enumerate, and models of it as whole tables.

Action "=" stays, "+" goes on and "-" goes back; for a quarter of the time the ring then moves one further. ROWS holds
every transition as often as it is likely, so that a step on ROWS reads the world's own distribution. Axes of tables:
X states, Z all texts that the IDM can emit, Y all texts that the FWM can emit; many are no action or no state.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from swirl_nemo.checkpoint.huggingface import import_hf
from swirl_nemo.checkpoint.random_init import random_llama
from swirl_nemo.collection.tokenizers import MARKS, word_tokenizer
from swirl_nemo.config import SwirlConfig
from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM, Role
from swirl_nemo.settings import compose

STATES, ACTIONS = ("s0", "s1", "s2"), MARKS
WORDS = (*STATES, *ACTIONS)  # all that the IDM can emit: one token, without the end token
FWM_TEXTS = ("", *WORDS, *(f"{one} {two}" for one, two in product(WORDS, repeat=2)))  # at most two tokens, then cut
TARGET_TOKENS = 2  # a state or an action, and the end token: a reward is the log-prob divided by this


def _rows() -> list[Transition]:
    """P~(z|x) is 2/4 for one action that depends on x, 1/4 for the others; y is as meant with 3/4, else one further."""
    rows = []
    for x, z, slip in product(range(3), range(3), range(2)):
        y = (x + {"=": 0, "+": 1, "-": -1}[ACTIONS[z]] + slip) % 3
        row = Transition(f"{x}{z}{slip}", STATES[x], ACTIONS[z], STATES[y], "ring", f"{x}", 0)
        rows += [row] * ((2 if z == x else 1) * (1 if slip else 3))
    return rows


ROWS = _rows()


def frequencies() -> Tensor:
    """P(x, z, y) of ROWS, float64 [X, Z, Y]."""
    counts = torch.zeros(len(STATES), len(WORDS), len(FWM_TEXTS), dtype=torch.float64)
    for row in ROWS:
        counts[STATES.index(row.x), WORDS.index(row.z), FWM_TEXTS.index(row.y)] += 1
    return counts / len(ROWS)


def configure(work: Path) -> SwirlConfig:
    """The published preset on this world, truncation and KL off; makes tokenizer and random Llama in `work`."""
    tokenizer, source, model = work / "tokenizer", work / "llama", work / "model"
    word_tokenizer(STATES).save_pretrained(tokenizer)
    shape = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64, "max_positions": 16, "tied": False}
    random_llama(source, tokenizer, **shape, seed=1)
    import_hf(source, model)
    return compose(
        [
            *("phase=published", "data.world=ring", f"data.tokenizer={tokenizer}", f"model.fwm={model}"),
            *(f"run.root={work / 'runs'}", "run.tensorboard=false", "model.max_length=16"),
            'data.fwm.templates=["<fwm> {x} <act> {z} <next>"]',
            'data.idm.templates=["<idm> {x} <next> {y} <act>"]',
            *("data.fwm.min_length=0", "data.fwm.max_length=2", "data.idm.min_length=1", "data.idm.max_length=1"),
            *("phase.fwm.sampling.top_k=0", "phase.fwm.sampling.top_p=1.0", "phase.fwm.kl_beta=0.0"),
            *("phase.idm.sampling.top_k=0", "phase.idm.sampling.top_p=1.0", "phase.idm.kl_beta=0.0"),
            *("parallel.micro_batch=4096", "parallel.score_batch=4096"),
        ]
    )


@dataclass(frozen=True)
class Tables:
    """Log-probs of FWM and IDM, float64 [X, Z, Y]: as policies of their phase, and as the other phase's reward."""

    fwm_policy: Tensor  # log P(y|x,z)
    idm_policy: Tensor  # log Q(z|x,y)
    fwm_reward: Tensor
    idm_reward: Tensor


def tables(session, fwm: str, idm: str) -> Tables:
    """Every completion teacher-forced through the live actor, for two weight sets by name."""
    with session.sets.wear(fwm):
        forward = _policy(session, FWM), _reward(session, IDM)
    with session.sets.wear(idm):
        inverse = _policy(session, IDM), _reward(session, FWM)
    return Tables(forward[0], inverse[0], forward[1], inverse[1])


def every_transition() -> list[Transition]:
    """All of X x Z x Y, in the order of the tables."""
    return [Transition("any", x, z, y, "ring", "any", 0) for x, z, y in product(STATES, WORDS, FWM_TEXTS)]


def every_sequence(session, role: Role):
    """The role's prompt and completion, as the policy would emit it, of every transition."""
    from swirl_nemo.data.batch import collate

    prompter, longest = session.prompter, getattr(session.cfg.data, role.name).max_length
    prompts = [prompter.prompt(role, t) for t in every_transition()]
    completions = [prompter.target(role, t)[:longest] for t in every_transition()]
    return collate(prompts, completions)


def _policy(session, role: Role) -> Tensor:
    from swirl_nemo.actor.batch import plain

    batches = list(plain(every_sequence(session, role), session.policy_distribution(role), 4096))
    return _table(session.actor.get_inference_log_probs(batches)[0].sum(1))


def _reward(session, role: Role) -> Tensor:
    """The reward of `role`'s phase, as the log-prob that it is the mean of. The counterpart must be worn."""
    from swirl_nemo.reward import counterpart_rewards

    transitions, other = every_transition(), role.counterpart
    completions = [role.target(t) for t in transitions]
    lengths = torch.tensor([len(session.prompter.target(other, t)) for t in transitions])
    return _table(counterpart_rewards(session, role, transitions, completions, group=1) * lengths)


def _table(values: Tensor) -> Tensor:
    return values.double().view(len(STATES), len(WORDS), len(FWM_TEXTS))
