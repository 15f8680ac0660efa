"""Training on images, whole runs in processes of their own: a row of lamps, each of four brightnesses, in codes.

The action names a lamp and whether it is turned up or down. State-only data are sequences, prompts show one state
before x, and one run divides the vocabulary, codes and all, between two processes.
"""

import json
import random
import sys
from pathlib import Path

import pytest
from workers.layouts import fork, run_module

from swirl_nemo.checkpoint.huggingface import import_hf
from swirl_nemo.checkpoint.image_rows import ImageOptions
from swirl_nemo.checkpoint.random_init import random_llama
from swirl_nemo.collection.tokenizers import word_tokenizer
from swirl_nemo.data.transitions import TransitionFile

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

LAMPS, LEVELS = 4, 4
ACTIONS = [f"{lamp} {way}" for lamp in range(LAMPS) for way in ("up", "down")]
MODEL = {
    "hidden": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 128,
    "max_positions": 64,
    "tied": False,
    "seed": 1,
}
TOGETHER = 50  # steps of warm-up in which rounding has not grown
SMALL = [
    *(
        "pretrain.steps=0",
        "warmup.steps=250",
        "warmup.schedule=constant",
        "warmup.batch=32",
        "warmup.lr=3e-3",
        "warmup.lr_warmup=5",
    ),
    *("alternation.iterations=1", "alternation.order=[fwm,idm]", "alternation.baselines=[]", "annotate.pool=8"),
    *("phase.fwm.steps=2", "phase.fwm.prompts=4", "phase.fwm.group=4", "phase.fwm.dead_std=0"),
    *("phase.idm.steps=2", "phase.idm.prompts=4", "phase.idm.group=4", "phase.idm.dead_std=0"),
    *("phase.fwm.plausibility_floor=null", "phase.fwm.confidence_floor=null", "phase.idm.plausibility_floor=null"),
    *("eval.horizon=3", "run.tensorboard=false", "run.save_every=0", "data.history=1", "model.max_length=48"),
]


def episode(rng: random.Random, steps: int) -> tuple[list[list[int]], list[str]]:
    states, actions = [[rng.randrange(LEVELS) for _ in range(LAMPS)]], []
    while len(actions) < steps:
        action = rng.choice(ACTIONS)
        lamp, way = action.split()
        level = states[-1][int(lamp)] + (1 if way == "up" else -1)
        if 0 <= level < LEVELS:
            states.append([*states[-1][: int(lamp)], level, *states[-1][int(lamp) + 1 :]])
            actions.append(action)
    return states, actions


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def collect(folder: Path) -> None:
    rng = random.Random(0)

    def transitions(split: str, count: int) -> list[dict]:
        rows = []
        while len(rows) < count:
            states, actions = episode(rng, 4)
            name = f"{split}-{len(rows)}"
            for t, action in enumerate(actions):
                row = {"id": f"{name}:{t}", "z": action, "world": "recorded", "episode": name, "t": t}
                row |= {"x": {"image": states[t]}, "y": {"image": states[t + 1]}}
                rows.append(row | {"history": [{"image": state} for state in states[:t]]})
        return rows

    for split, count in {"labelled": 400, "validation": 16, "test": 24}.items():
        write(folder / f"{split}.jsonl", transitions(split, count))
    sequences = [[{"image": state} for state in episode(rng, 5)[0]] for _ in range(6)]
    write(
        folder / "unlabelled.jsonl",
        [{"id": f"s{n}", "states": s, "world": "recorded", "episode": f"s{n}"} for n, s in enumerate(sequences)],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """RUNS/one and RUNS/two: a run by one process, and its beginning by two that divide each tensor."""
    work = tmp_path_factory.mktemp("lamps")
    collect(work)
    word_tokenizer(["up", "down", *map(str, range(LAMPS))]).save_pretrained(work / "tokenizer")
    random_llama(work / "llama", work / "tokenizer", **MODEL)
    import_hf(work / "llama", work / "model", images=ImageOptions(f"{LEVELS}:1x{LAMPS}"))
    files = {split: work / f"{split}.jsonl" for split in ("labelled", "unlabelled", "validation", "test")}
    settings = [*SMALL, "data=images", f"model.fwm={work / 'model'}", f"run.root={work / 'runs'}"]
    settings += [f"data.{key}={path}" for key, path in files.items()] + [f"data.test_episodes={files['test']}"]
    settings += [f"data.fwm.{key}_length={LAMPS}" for key in ("min", "max")] + ["data.idm.max_length=4"]
    settings += ['data.fwm.templates=["{history} <fwm> {x} <act> {z} <next>"]']
    settings += ['data.idm.templates=["{history} <idm> {x} <diff> {diff} <act>"]']
    (work / "settings.json").write_text(json.dumps(settings))
    run_module("test_image_training", work)
    return work / "runs"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_policy_is_what_was_sampled_from_and_lengths_are_exact(runs):
    """Behaviour and training log-probs differ by rounding: the mask is the same in both."""
    for run in ("one", "two"):
        steps = [line for line in lines(runs / run / "metrics.jsonl") if line.get("phase") in ("fwm", "idm")]
        assert len(steps) == 4 and all(step["drift/max"] < 1e-4 for step in steps)
        assert [step["completion/length"] for step in steps[:2]] == [LAMPS, LAMPS]
        assert all(step["reward/mean"] > -10 for step in steps)


def test_predictions_are_whole_images_and_actions_are_text(runs):
    for sample in lines(runs / "one" / "samples.jsonl"):
        words = sample["prediction"].strip("[]").split()
        if sample["role"] == "fwm":
            assert words[0] == "image" and len(words) == 1 + LAMPS and all(0 <= int(c) < LEVELS for c in words[1:])
            assert sample["prompt"].endswith("[image") and sample["prompt"].count("[image") in (2, 3)
        else:
            assert "image" not in words and sample["prompt"].count("[image") in (1, 2)


def test_the_models_learn_the_lamps(runs):
    held_out = json.loads((runs / "one" / "summary.json").read_text())["held_out"]
    assert held_out["fwm"]["exact_match"]["swirl"] > 0.8 and held_out["idm"]["exact_match"]["swirl"] > 0.8


def test_annotations_are_transitions_with_their_history(runs):
    for role in ("fwm", "idm"):
        path = next((runs / "one").glob(f"annotations-*-{role}.jsonl"))
        rows = list(TransitionFile(path, None, history=9))
        assert len(rows) == 8 and {len(row.history) for row in rows} == {0, 1}
        assert all(row.z.isascii() for row in rows)


def test_two_processes_train_as_one_does(runs):
    """Step by step, the rounding of each being another."""
    one, two = (lines(runs / run / "metrics.jsonl") for run in ("one", "two"))
    for role in ("fwm", "idm"):
        longer, shorter = (
            [line["loss"] for line in run if line.get("phase") == "warmup" and line["role"] == role]
            for run in (one, two)
        )
        assert (len(longer), len(shorter)) == (250, TOGETHER)
        assert longer[:TOGETHER] == pytest.approx(shorter, rel=2e-3) and longer[0] > 1.2 * longer[TOGETHER - 1]


def main(work: Path) -> None:
    from swirl_nemo import cli

    train = ["train", *json.loads((work / "settings.json").read_text())]
    fork(cli.main, [*train, "run.name=one"])
    fork(cli.main, [*train, "run.name=two", "parallel=tp2", f"warmup.steps={TOGETHER}"], processes=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
