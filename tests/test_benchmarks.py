"""A suite from generator to report: divided, stopped, gone on with; what fails is named; tables are means by hand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from judge_server import KEY, MODEL, Scorer, endpoint, serving
from PIL import Image, ImageChops
from releases import RELEASES, picture
from test_report import CONFIG, ENV, SUMMARY
from workers import setting

from swirl_nemo.cli import main
from swirl_nemo.config import NextState
from swirl_nemo.evaluation import benchmarks
from swirl_nemo.evaluation.suites import find
from swirl_nemo.evaluation.suites.base import Fault, Item, Step
from swirl_nemo.evaluation.suites.generation import Recorded, Refused, Request, file_name
from swirl_nemo.evaluation.suites.ledger import Ranks
from swirl_nemo.evaluation.suites.pictures import PictureScores
from swirl_nemo.evaluation.suites.results import columns, gain, rows, summary
from swirl_nemo.evaluation.suites.run import Place, generate, questions, score
from swirl_nemo.settings import compose

MADE = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from workers.setting import make
    make(Path(sys.argv[1]))
"""


def suite_of(name: str, folder: Path, *overrides: str):
    return find(compose([f"suite={name}", f"suite.folder={folder}", *overrides]).suite)


def place_of(folder: Path, ranks: Ranks = Ranks(), said: list[str] | None = None) -> Place:  # noqa: B008 it is frozen
    return Place(folder, ranks, [].append if said is None else said.append)


class Echo:
    """Answers with the action and the state's end; keeps what it was asked. Fails at the request numbered `ends`."""

    def __init__(self, ends: int | None = None):
        self.asked: list[Request] = []
        self._ends = ends

    def __call__(self, requests):
        for request in requests:
            if len(self.asked) == self._ends:
                raise RuntimeError("killed")
            self.asked.append(request)
        return [f"{r.action} after {r.state[-6:]}" for r in requests]


@pytest.fixture
def tools(tmp_path):
    return suite_of("stabletoolbench", RELEASES["stabletoolbench"](tmp_path / "release"), "suite.tools=false")


def test_shards_together_are_the_whole(tools, tmp_path):
    items = tools.read().items
    whole = generate(tools, items, Echo(), place_of(tmp_path / "whole"), "key", batch=3)
    parts = [Echo(), Echo()]
    for number, generator in enumerate(parts):
        # Both look at what is finished before either begins
        place = place_of(tmp_path / "parts", Ranks(number, 2, main=number == 0, agree=lambda finished: set()))
        together = generate(tools, items, generator, place, "key", batch=3)
    assert together == whole and len(whole) == 4
    assert sorted(r.item.key for g in parts for r in g.asked) == sorted(item.key for item in items)
    assert all(len(generator.asked) == 2 for generator in parts)


def test_only_one_process_of_a_model_copy_writes(tools, tmp_path):
    peer = Echo()
    generate(tools, tools.read().items, peer, place_of(tmp_path, Ranks(writes=False, main=False)), "key", batch=3)
    assert len(peer.asked) == 4 and not list(tmp_path.glob("predictions*"))


def test_it_goes_on_where_it_stopped(tools, tmp_path):
    items, place = tools.read().items, place_of(tmp_path / "out")
    with pytest.raises(RuntimeError):
        generate(tools, items, Echo(ends=2), place, "key", batch=1)
    (file,) = place.folder.glob("predictions-*.jsonl")
    file.write_bytes(file.read_bytes() + b'{"part": "G1_instr')  # and was cut while it wrote
    second = Echo()
    found = generate(tools, items, second, place, "key", batch=1)
    assert [request.item.id for request in second.asked] == ["608-1", "608-2"]
    assert found == generate(tools, items, Echo(), place_of(tmp_path / "whole"), "key", batch=4)


def test_predictions_made_otherwise_are_made_anew(tools, tmp_path):
    items, place = tools.read().items, place_of(tmp_path / "out")
    generate(tools, items, Echo(), place, "key", batch=4)
    same, other = Echo(), Echo()
    generate(tools, items, same, place, "key", batch=4)
    generate(tools, items, other, place, "another key", batch=4)
    assert (len(same.asked), len(other.asked)) == (0, 4)


def test_a_refusal_is_a_fault_and_is_tried_again(tools, tmp_path):
    items, place = tools.read().items, place_of(tmp_path / "out")

    def refusing(requests):
        return [Refused("too long") if r.item.id == "588-2" else "text" for r in requests]

    found = generate(tools, items, refusing, place, "key", batch=4)
    assert found["G1_instruction/588-2"] == {"part": "G1_instruction", "id": "588-2", "fault": "too long"}
    again = Echo()
    found = generate(tools, items, again, place, "key", batch=4)
    assert [request.item.id for request in again.asked] == ["588-2"]
    assert not any("fault" in row for row in found.values())


def test_several_steps_roll_on_their_own_predictions(tmp_path):
    suite = suite_of("worldprediction", RELEASES["worldprediction"](tmp_path / "release"))
    items, seen = suite.read().items, []

    def brighter(requests):
        seen.extend((r.item.id[-5:], r.step, np.asarray(r.state).max(), r.action, r.history) for r in requests)
        return [r.state.point(lambda value: min(value + 40, 255)) for r in requests]

    place = place_of(tmp_path / "out")
    found = generate(suite, items, brighter, place, "key", batch=4)
    stills = [each for each in seen if each[0] == "a_000"]
    assert [step for _, step, *_ in stills] == [0, 1, 2]
    assert [len(before) for *_, before in stills] == [0, 1, 2]
    assert ImageChops.difference(stills[2][4][0], items[0].start.load()).getbbox() is None
    assert stills[1][2] == min(stills[0][2] + 40, 255)
    plan = "open the lid; pour the tea; close the lid"
    assert stills[1][3] == f"Step 2 of 3 of the plan {plan}: pour the tea"
    row = found["COIN/segment|COIN|a_000"]
    kept = Image.open(place.folder / row["predictions"][2])
    start = items[0].start.load()
    assert ImageChops.difference(kept, start.point(lambda value: min(value + 120, 255))).getbbox() is None

    pictures = PictureScores(None, None)
    scored = score(suite, items, found, pictures, place, "key")["COIN/segment|COIN|a_000"]
    targets = [step.target.load() for step in items[0].steps]
    assert scored["scores"][2] == pictures.likeness(kept.convert("RGB"), targets[2])
    assert scored["unmoved"] == [pictures.likeness(start, target) for target in targets]
    assert scored["unmoved"][0] == {
        "l1": 0,
        "ssim": pytest.approx(1, abs=1e-3),
    }  # the release's first target is the start

    asked = questions(suite, items[0], row, place.folder)
    assert [question.fields["step"] for question in asked] == ["1", "2", "3"]
    assert asked[1].fields["plan"] == plan and asked[1].fields["before"] == ""
    first = Image.open(place.folder / row["predictions"][0])
    assert ImageChops.difference(asked[1].pictures["before"](), first).getbbox() is None
    assert ImageChops.difference(asked[0].pictures["before"](), start).getbbox() is None


def test_a_step_is_scored_against_the_state_that_it_was_shown(tmp_path):
    suite = suite_of("worldprediction", RELEASES["worldprediction"](tmp_path / "release"))
    items, place = suite.read().items[:1], place_of(tmp_path / "out")
    made = iter([picture(20), picture(21), picture(22)])
    found = generate(suite, items, lambda requests: [next(made)], place, "key", batch=1)

    class Spy(PictureScores):
        shown: list[tuple[Image.Image, ...]] = []

        def __call__(self, prediction, before, target, captions):
            self.shown.append((prediction, before))
            return {}

    score(suite, items, found, Spy(None, None), place, "key")
    expected = [(picture(20), items[0].start.load()), (picture(21), picture(20)), (picture(22), picture(21))]
    for ours, theirs in zip(Spy.shown, expected, strict=True):
        assert all(ImageChops.difference(*pair).getbbox() is None for pair in zip(ours, theirs, strict=True))


def test_a_damaged_picture_is_named_before_anything_is_generated(tmp_path):
    suite = suite_of("aurora", RELEASES["aurora"](tmp_path / "release"))
    asked = []

    def still(requests):
        asked.extend(request.item.id for request in requests)
        return [request.state for request in requests]

    found = generate(suite, suite.read().items, still, place_of(tmp_path / "out"), "key", batch=4)
    assert "aurora_00004" not in asked and len(asked) == 6
    assert found["ag/aurora_00004"]["fault"].startswith("data/ag/images/6ALEL.mp4_3_left.png: not to be decoded")


def test_recorded_pictures_are_found_by_part_and_id(tmp_path):
    suite = suite_of("worldprediction", RELEASES["worldprediction"](tmp_path / "release"))
    item = suite.read().items[0]
    assert file_name(item, 0, "png") == "COIN/segment-COIN-a_000.png"
    assert file_name(item, 1, "png") == "COIN/segment-COIN-a_000-2.png"
    (tmp_path / "given" / "COIN").mkdir(parents=True)
    picture(9).save(tmp_path / "given" / file_name(item, 0, "png"))
    recorded = Recorded(tmp_path / "given", "picture")
    there, missing = recorded([Request(item, 0, picture(0), ""), Request(item, 1, picture(0), "")])
    assert ImageChops.difference(there, picture(9)).getbbox() is None
    assert missing == Refused("suite.predictions: COIN/segment-COIN-a_000-2.png: no such file")
    with pytest.raises(ValueError, match=r"^suite.predictions: .*none: no such folder: give one with MODEL/PART"):
        Recorded(tmp_path / "none", "picture")


def made_up(part: str, number: int) -> Item:
    return Item(str(number), part, "x", (Step("z", "y"),))


def test_a_table_is_of_means_over_what_every_model_has(tools):
    items = [made_up(part, n) for part, n in (("G1_tool", 0), ("G1_tool", 1), ("G3_instruction", 2), ("new", 3))]
    values = {"warmup": [0.2, 0.4, 0.5, 0.9], "swirl": [0.4, 0.5, 0.9, None]}
    models = {
        model: {
            item.key: {"fault": "lost"} if f1 is None else {"scores": [{"rougeL": f1}], "predictions": ["y y"]}
            for item, f1 in zip(items, of_model, strict=True)
        }
        for model, of_model in values.items()
    }
    entry = summary(tools, items, [Fault("9", "G1_tool", "gone"), Fault("3", "new", "lost")], models) | {"judge": None}
    assert list(entry["parts"]) == ["G1_tool", "G3_instruction", "new", "overall"]
    assert entry["parts"]["G1_tool"]["scores"]["rougeL"] == pytest.approx({"warmup": 0.3, "swirl": 0.45})
    overall = entry["parts"]["overall"]
    assert (overall["items"], overall["faults"], entry["parts"]["new"]["items"]) == (3, 2, 0)
    means = fmean(values["warmup"][:3]), fmean(values["swirl"][:3])
    assert overall["scores"]["rougeL"] == pytest.approx(dict(zip(values, means, strict=True)))
    assert entry["headline"] == "rougeL" and entry["gain"] == pytest.approx(means[1] / means[0] - 1)
    assert 0 < overall["scores"]["chrf"]["swirl"] < 1  # over all texts together
    assert columns(entry) == ["part", "items", "warm-up", "SWIRL", "unmoved", "gain"]
    assert rows(entry)[0] == ["I1 Tool", "2 (1 not read)", "0.300", "0.450", "–", "+50.0 %"]
    assert rows(entry)[2] == ["new", "0 (1 not read)", "–", "–", "–", "–"]


def test_a_gain_is_where_it_gets_better():
    assert gain("ssim", 0.5, 0.6) == pytest.approx(0.2)
    assert gain("lpips", 0.5, 0.6) == pytest.approx(-0.2)
    assert gain("ssim", None, 0.6) is gain("ssim", 0, 0.6) is None


# the verb


@pytest.fixture
def aurora(tmp_path):
    """Overrides of `swirl eval` for recorded pictures: the warm-up's are the inputs, SWIRL's are halfway to the truth,
    and one of them is missing. The run's folder is that of a finished run."""
    release = RELEASES["aurora"](tmp_path / "release")
    for item in suite_of("aurora", release).read().items:
        if item.id == "aurora_00004":
            continue
        start, target = item.start.load(), item.steps[0].target.load()
        for model, image in (("warmup", start), ("swirl", Image.blend(start, target, 0.5))):
            path = tmp_path / "pictures" / model / file_name(item, 0, "png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (tmp_path / "pictures" / "swirl" / "kubric" / "aurora_00008.png").unlink()
    run = tmp_path / "runs" / "made-up"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "env.json").write_text(json.dumps(ENV))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    return [
        *("suite=aurora", f"suite.folder={release}", f"suite.predictions={tmp_path / 'pictures'}"),
        *(f"run.root={tmp_path / 'runs'}", "run.name=made-up", f"suite.judge.cache={tmp_path / 'judge.sqlite'}"),
    ]


def swirl(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code or 0


def test_results_stand_in_the_summary_and_the_report(aurora, tmp_path, capsys):
    assert swirl("eval", *aurora) == 0
    said, run = capsys.readouterr().out, tmp_path / "runs" / "made-up"
    for line in (
        "aurora: 7 items: 2 magicbrush, 2 ag, 1 something, 1 whatsup, 1 kubric",
        "aurora: left out: 1 clevr",
        "aurora: not evaluated: ag/aurora_00003: test.json, entry 3: data/ag/images/W4MEA.mp4_0_right.png: no such",
        "aurora: CLIP is not computed: suite.clip=null",
        "aurora, swirl: scored 5 of 5 items",
    ):
        assert line in said
    faults = [json.loads(line) for line in (run / "suites/aurora/faults.jsonl").read_text().splitlines()]
    assert [fault["id"][-2:] for fault in faults] == ["03", "09", "04", "04", "08"]
    assert faults[4]["what"] == "swirl: suite.predictions: kubric/aurora_00008.png: no such file"
    summary = json.loads((run / "summary.json").read_text())
    entry = summary["suites"]["aurora"]
    assert summary["held_out"] == SUMMARY["held_out"]
    assert entry["parts"]["overall"]["items"] == 5 and entry["headline"] == "ssim"
    l1 = entry["parts"]["overall"]["scores"]["l1"]
    assert l1["swirl"] == pytest.approx(l1["warmup"] / 2, rel=0.05)
    assert entry["parts"]["overall"]["unmoved"]["l1"] == pytest.approx(l1["warmup"])
    assert entry["gain"] > 0 and entry["published_gain"] == 0.16
    page = (run / "report.html").read_text()
    assert "AURORA-Bench: SSIM; published gain +16.0 %" in page and "Action-Genome" in page
    assert page.index("<h2>Benchmarks</h2>") < page.index("<h2>What was switched on</h2>")


def test_it_is_not_done_twice(aurora, capsys):
    swirl("eval", *aurora)
    capsys.readouterr()
    assert swirl("eval", *aurora) == 0
    said = capsys.readouterr().out
    assert "warmup: generated 1 of 1" in said and "swirl: generated 2 of 2" in said  # those that had a fault
    assert "scored" not in said


def test_the_judges_scores_lead(aurora, tmp_path, monkeypatch, capsys):
    with serving(endpoint(Scorer())) as url:
        for name, value in (("URL", url), ("MODEL", MODEL), ("KEY", KEY)):
            monkeypatch.setenv(f"SWIRL_JUDGE_{name}", value)
        assert swirl("eval", *aurora, "suite.judge.ask=true", "suite.judge.requests_per_minute=6000") == 0
    run = tmp_path / "runs" / "made-up"
    entry = json.loads((run / "suites/aurora/results.json").read_text())
    judged = [json.loads(line) for line in (run / "suites/aurora/swirl/judged.jsonl").read_text().splitlines()]
    assert entry["headline"] == "judge/overall" and entry["judge"]["questions"] == 11
    common = [row["judge"][0]["overall"] for row in judged]
    assert entry["parts"]["overall"]["scores"]["judge/overall"]["swirl"] == pytest.approx(fmean(common))
    assert set(entry["parts"]["ag"]["scores"]) >= {"judge/success", "judge/restraint", "ssim"}
    assert "11 questions, 0 more in the cache" in capsys.readouterr().out


def test_limit_is_of_each_part(aurora, tmp_path):
    assert swirl("eval", *aurora, "suite.limit=1", "suite.parts=[magicbrush,ag]") == 0
    entry = json.loads((tmp_path / "runs/made-up/suites/aurora/results.json").read_text())
    assert {part: section["items"] for part, section in entry["parts"].items()} == {
        "magicbrush": 1,
        "ag": 1,
        "overall": 2,
    }


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["suite.folder=/nowhere"], "suite.folder=/nowhere: no test.json in it: give the folder of the AURORA-Bench"),
        (["suite.predictions=/nowhere"], "suite.predictions: /nowhere/warmup: no such folder"),
        (["suite.limit=-1"], "suite.limit=-1: out of range"),
        (["suite.instruction='{verb}'"], "suite.instruction={verb}: KeyError('verb'): the fields are {action} {plan}"),
        (["suite.judge.tries=0"], "suite.judge.tries=0: out of range: it must be over 0"),
        (["suite.clip=/nowhere"], "suite.clip=/nowhere: no such folder"),
        (["suite.judge.ask=true"], "SWIRL_JUDGE_URL is not set"),
        (["suite.calls=1"], "suite.calls=1: no such key"),
    ],
)
def test_a_users_mistake_is_one_line(overrides, what, aurora, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("SWIRL_JUDGE_URL", raising=False)
    assert swirl("eval", *aurora, *overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"swirl: error: {what}")
    assert not list(tmp_path.glob("runs/made-up/suites/*/*/*.jsonl"))  # nothing was begun


def test_a_suite_needs_a_model_of_its_kind_and_a_checkpoint_that_is_there(aurora, tmp_path):
    cfg = compose([*aurora, "suite.predictions=null"])
    with pytest.raises(ValueError, match=r"^suite=aurora: its states are pictures, the FWM completes "):
        benchmarks.evaluate(cfg)
    release = RELEASES["stabletoolbench"](tmp_path / "tools")
    cfg = compose(["suite=stabletoolbench", f"suite.folder={release}", f"run.root={tmp_path}"])
    with pytest.raises(ValueError, match=r"^suite.models: .*checkpoints/warmup: no such checkpoint: name those"):
        benchmarks.evaluate(cfg)


def test_weights_and_prompts_decide_the_key(tmp_path):
    cfg = compose(["suite=stabletoolbench", f"run.root={tmp_path}", "run.name=r"])
    manifest = tmp_path / "r/checkpoints/swirl/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("one")
    keys = [benchmarks._key(cfg, Path("swirl"))]
    cfg.suite = replace(cfg.suite, limit=3, headline=["bleu"])
    assert benchmarks._key(cfg, Path("swirl")) == keys[0]
    cfg.suite.calls = 1
    keys.append(benchmarks._key(cfg, Path("swirl")))
    cfg.data.fwm.templates = ["{x} {z} other"]
    keys.append(benchmarks._key(cfg, Path("swirl")))
    cfg.data.next_state = NextState.changes
    keys.append(benchmarks._key(cfg, Path("swirl")))
    manifest.write_text("two")
    keys.append(benchmarks._key(cfg, Path("swirl")))
    assert len(set(keys)) == 5


# with a model

FWM_LENGTH = 12


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Models and data of workers/setting.py, and a release of StableToolBench."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "make.py").write_text(MADE)
    subprocess.run([sys.executable, folder / "make.py", folder], env=_environment(), check=True)
    RELEASES["stabletoolbench"](folder / "release")
    return folder


def evaluated(work: Path, name: str, processes: int, *overrides: str) -> tuple[dict[str, list[str]], str]:
    """Predictions by item of `swirl eval` on model.fwm, and what it said."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "swirl_nemo", "eval", *settings(work, name)]
    done = subprocess.run([*command, *overrides], env=_environment(), capture_output=True, text=True, check=True)
    found = {}
    for file in work.glob(f"runs/{name}/suites/stabletoolbench/checkpoint/predictions-*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()[1:]):
            found[row["id"]] = row["predictions"]
    return found, done.stdout


def settings(work: Path, name: str) -> list[str]:
    suite = ["suite=stabletoolbench", f"suite.folder={work / 'release'}", "suite.models=[]", "suite.tools=false"]
    fwm = ["data.fwm.templates=['{x} {z}']", f"data.fwm.max_length={FWM_LENGTH}", "data.fwm.min_length=0"]
    return [*setting.overrides(work), *suite, *fwm, f"run.name={name}", "eval.batch=2"]


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}


@pytest.mark.megatron
@pytest.mark.slow
def test_a_checkpoint_predicts_as_transformers_does_and_goes_on_in_another_layout(work):
    expected = greedy_of_transformers(work)
    found, said = evaluated(work, "divided", 2)
    assert found == expected and len({text for (text,) in expected.values()}) > 1
    assert "checkpoint: generated 2 of 2 items, on each of 2 ranks" in said and "StableToolBench: ROUGE-L" in said
    files = sorted(work.glob("runs/divided/suites/stabletoolbench/checkpoint/predictions-*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [3, 3]

    files[1].unlink()
    found, said = evaluated(work, "divided", 2, "parallel=tp2")
    assert found == expected and "checkpoint: generated 2 of 2 items; " in said and "scored" not in said
    assert len(files[0].read_text().splitlines()) == 5  # two processes had each prediction, one wrote it


def greedy_of_transformers(work: Path) -> dict[str, list[str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work / "fwm_hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(work / "data" / "tokenizer")
    barred = [token for token in tokenizer.all_special_ids if token != tokenizer.eos_token_id]
    suite, found = find(compose(settings(work, "alone")).suite), {}
    for item in suite.read().items:
        text = f"{item.start} {item.steps[0].action}"
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        tokens = []
        while len(tokens) < FWM_LENGTH and tokens[-1:] != [tokenizer.eos_token_id]:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, -1]
            logits[barred] = -torch.inf
            tokens.append(int(logits.argmax()))
        ended = [token for token in tokens if token != tokenizer.eos_token_id]
        found[item.id] = [tokenizer.decode(ended, clean_up_tokenization_spaces=False)]
    return found
