"""`swirl eval suite=NAME`: a run's models on one of the paper's benchmarks, and the results into the run's folder.

suites/NAME/results.json         what stands in summary.json under "suites" too
suites/NAME/faults.jsonl         every item that was not evaluated, and why
suites/NAME/MODEL/               predictions-RANK.jsonl, scores-RANK.jsonl, judged.jsonl, pictures/
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from PIL import Image
from rich.console import Console

from ..config import SwirlConfig, Tokens
from ..data.images.drawing import picture_of, text_of_picture
from ..data.images.loading import load_image_tokenizer
from ..data.transition import Transition
from ..records import finite, json_line, write, write_json
from ..roles import FWM
from ..runs import Run
from ..session import Session
from ..settings import launched
from .held_out import greedy
from .report import suites_of, write_report
from .suites import Suite, find
from .suites.base import Contents, Fault, Item
from .suites.generation import Generator, Recorded, Refused, Request
from .suites.ledger import Ranks, digest
from .suites.pictures import PictureScores
from .suites.results import summary, table
from .suites.run import Place, generate, questions, score

if TYPE_CHECKING:
    from .suites.judge import Judge  # its client is needed where a judge is asked alone

CHECKPOINT = "checkpoint"  # what the model in model.fwm is called where suite.models names none
_NOT_DECIDING = {"models", "limit", "parts", "clip", "lpips", "headline", "judge"}  # of predictions


class TextGenerator:
    """The FWM that the session holds, greedily; a text state as long as the prompt allows."""

    def __init__(self, session: Session):
        self._session = session

    def __call__(self, requests: Sequence[Request]) -> list[str | Refused]:
        session = self._session
        rows = [self._transition(request) for request in requests]
        outcomes: list[str | Refused | None] = [self._refusal(row) for row in rows]
        fitting = [number for number, outcome in enumerate(outcomes) if outcome is None]
        if fitting:
            with session.sets.wear(session.set_of(FWM)):
                texts = greedy(session, FWM, [rows[number] for number in fitting])
            for number, text in zip(fitting, texts, strict=True):
                outcomes[number] = text
        return outcomes

    def _transition(self, request: Request) -> Transition:
        item, window = request.item, self._session.cfg.data.history
        history = request.history[-window:] if window else ()
        name = f"{item.key}/{request.step}"
        return Transition(name, request.state, request.action, "", item.part, item.id, request.step, history)

    def _refusal(self, row: Transition) -> Refused | None:
        try:
            self._session.prompt(FWM, row)
        except ValueError as error:
            return Refused(str(error))
        return None


class PictureGenerator(TextGenerator):
    """The FWM of a session whose images are codes of data.image_tokenizer; pictures are fitted to its size."""

    def __init__(self, session: Session):
        """Raises ValueError, one line, where data.image_tokenizer is not set or its codes are not the model's."""
        super().__init__(session)
        data = session.cfg.data
        if data.image_tokenizer is None:
            raise ValueError(
                "data.image_tokenizer=null: pictures are to be read: give the folder of an image tokenizer"
            )
        size = None if data.image_size is None else (data.image_size[0], data.image_size[1])
        self._tokenizer = load_image_tokenizer(data.image_tokenizer, size)
        session.prompter.check_image_tokenizer(self._tokenizer, data.image_tokenizer)

    def __call__(self, requests: Sequence[Request]) -> list[Image.Image | Refused]:
        outcomes = super().__call__([self._coded(request) for request in requests])
        return [text if isinstance(text, Refused) else picture_of(text, self._tokenizer) for text in outcomes]

    def _coded(self, request: Request) -> Request:
        return request._replace(state=self._code(request.state), history=tuple(map(self._code, request.history)))

    def _code(self, picture: Image.Image) -> str:
        return text_of_picture(picture, self._tokenizer)


# Of each kind of state, what makes a generator of a session
GENERATORS: dict[str, Callable[[Session], Generator]] = {"text": TextGenerator, "picture": PictureGenerator}


def evaluate(cfg: SwirlConfig) -> dict | None:
    """Results of the suite, as summary.json has them; None on processes other than the main one.

    Raises ValueError, one line, for what the release, the run or the environment lacks; before anything is generated.
    """
    suite = find(cfg.suite)
    run = Path(cfg.run.root, cfg.run.name)
    _check(cfg, suite, run)
    judge = _judge_of(cfg, suite) if cfg.suite.judge.ask else None
    contents = _limited(suite.read(), cfg.suite.limit)
    pictures = PictureScores(cfg.suite.clip, cfg.suite.lpips) if suite.kind == "picture" else None
    session = Session(cfg) if cfg.suite.predictions is None else None
    ranks = Ranks() if session is None else _ranks(session)
    say = Run(run, cfg, is_main=ranks.main).say
    _announce(suite, contents, pictures, say)
    results: dict[str, dict[str, dict]] = {}
    for model in cfg.suite.models or [CHECKPOINT]:
        generator = _generator(cfg, suite, session, run, model)
        place = Place(run / "suites" / suite.name / model, ranks, partial(_say_of, say, f"{suite.name}, {model}"))
        results[model] = _one_model(cfg, suite, contents.items, generator, pictures, place)
    if not ranks.main:
        return None
    return _conclude(suite, contents, results, judge, run, say)


def _say_of(say: Callable[[str], None], what: str, text: str) -> None:
    say(f"{what}: {text}")


def _check(cfg: SwirlConfig, suite: Suite, run: Path) -> None:
    if cfg.suite.predictions is not None:
        if launched() not in (None, (1, 1)):
            raise ValueError(f"suite.predictions={cfg.suite.predictions}: one process reads them: start one alone")
        return
    if (suite.kind == "picture") != (cfg.data.fwm.tokens is Tokens.image):
        raise ValueError(
            f"suite={suite.name}: its states are {suite.kind}s, the FWM completes data.fwm.tokens="
            f"{cfg.data.fwm.tokens.name}: give the settings of a run on {suite.kind}s, or suite.predictions=FOLDER"
        )
    for model in cfg.suite.models:
        folder = run / "checkpoints" / model
        if not folder.is_dir():
            raise ValueError(
                f"suite.models: {folder}: no such checkpoint: name those that the run has, or give suite.models=[] for "
                "the one in model.fwm"
            )


def _ranks(session: Session) -> Ranks:
    number, count = dist.get_rank(session.actor.data_group), dist.get_world_size(session.actor.data_group)
    numbers: list = [None] * dist.get_world_size()
    dist.all_gather_object(numbers, number)

    def agree(value):
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    first = numbers.index(number)
    return Ranks(number, count, dist.get_rank() == first, session.is_main, agree, dist.barrier)


def _limited(contents: Contents, limit: int) -> Contents:
    """The first `limit` items of each part."""
    if limit:
        taken: Counter[str] = Counter()
        kept = []
        for item in contents.items:
            taken[item.part] += 1
            if taken[item.part] <= limit:
                kept.append(item)
        contents.items = kept
    return contents


def _announce(suite: Suite, contents: Contents, pictures: PictureScores | None, say: Callable[[str], None]) -> None:
    counts = Counter(item.part for item in contents.items)
    say(f"{suite.name}: {len(contents.items)} items: " + ", ".join(f"{n} {part}" for part, n in counts.items()))
    if contents.other_parts:
        say(f"{suite.name}: left out: " + ", ".join(f"{n} {part}" for part, n in contents.other_parts.items()))
    for fault in contents.faults[:5]:
        say(f"{suite.name}: not evaluated: {fault.part}/{fault.id}: {fault.what}")
    if len(contents.faults) > 5:
        say(f"{suite.name}: {len(contents.faults)} not evaluated in all: suites/{suite.name}/faults.jsonl names them")
    for name, why in ({} if pictures is None else pictures.missing).items():
        say(f"{suite.name}: {name} is not computed: {why}")


def _generator(cfg: SwirlConfig, suite: Suite, session: Session | None, run: Path, model: str) -> Generator:
    if session is None:
        return Recorded(Path(cfg.suite.predictions, model), suite.kind)
    if model == CHECKPOINT:
        session.load()
    else:
        from ..checkpoint import run_state

        run_state.load(session, run / "checkpoints" / model)
    return GENERATORS[suite.kind](session)


def _one_model(
    cfg: SwirlConfig,
    suite: Suite,
    items: Sequence[Item],
    generator: Generator,
    pictures: PictureScores | None,
    place: Place,
) -> dict[str, dict]:
    """Each item's row: predictions and scores, or a fault."""
    key = place.ranks.agree(_key(cfg, place.folder))
    rows = generate(suite, items, generator, place, key, cfg.eval.batch)
    rows = place.ranks.agree(rows)
    scored = score(suite, items, rows, pictures, place, digest([key, cfg.suite.clip, cfg.suite.lpips]))
    return {name: row | scored.get(name, {}) for name, row in rows.items()}


def _key(cfg: SwirlConfig, folder: Path) -> str:
    """Of what decides predictions: the suite's own settings, the FWM's prompts, and the weights."""
    own = {name: value for name, value in asdict(cfg.suite).items() if name not in _NOT_DECIDING}
    if cfg.suite.predictions is not None:
        return digest([own])
    fwm = cfg.data.fwm
    prompts = [list(fwm.templates), fwm.min_length, fwm.max_length, cfg.model.max_length]
    data = cfg.data
    prompts += [data.tokenizer, data.image_tokenizer, data.fact_separator, data.next_state.name, data.history]
    manifest = Path(cfg.run.root, cfg.run.name, "checkpoints", folder.name, "manifest.json")
    weights = manifest.read_text() if folder.name != CHECKPOINT and manifest.is_file() else str(cfg.model.fwm)
    return digest([own, prompts, cfg.run.seed, weights])


def _judge_of(cfg: SwirlConfig, suite: Suite) -> "Judge":
    from .suites.judge import Judge
    from .suites.rubric import OWN, load

    return Judge(cfg.suite.judge, load(Path(cfg.suite.judge.rubric or OWN / f"{suite.name}.yaml")))


def _conclude(
    suite: Suite,
    contents: Contents,
    results: dict[str, dict[str, dict]],
    judge: "Judge | None",
    run: Path,
    say: Callable[[str], None],
) -> dict:
    folder = run / "suites" / suite.name
    judged = None if judge is None else _ask(judge, suite, contents.items, results, folder, say)
    faults = contents.faults + [
        Fault(item.id, item.part, f"{model}: {rows[item.key]['fault']}")
        for model, rows in results.items()
        for item in contents.items
        if "fault" in rows.get(item.key, {})
    ]
    entry = finite(summary(suite, contents.items, faults, results) | {"judge": judged})
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "faults.jsonl", b"".join(json_line(asdict(fault)) for fault in faults))
    write_json(folder / "results.json", entry)
    if (run / "summary.json").is_file():
        known = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        write_json(run / "summary.json", known | {"suites": suites_of(run)})
    if (run / "config.yaml").is_file():
        write_report(run)
    Console().print(table(entry))
    return entry


def _ask(
    judge: "Judge",
    suite: Suite,
    items: Sequence[Item],
    results: dict[str, dict[str, dict]],
    folder: Path,
    say: Callable[[str], None],
) -> dict:
    """Adds "judge/..." to the scores of every step that the judge answered for; what came of the questions."""
    asked = [(model, item) for model, rows in results.items() for item in items if "scores" in rows.get(item.key, {})]
    by_item = [questions(suite, item, results[model][item.key], folder / model) for model, item in asked]
    answers = iter(judge.ask([question for each in by_item for question in each], say))
    judged: dict[str, list[dict]] = {}
    for (model, item), each in zip(asked, by_item, strict=True):
        found = [next(answers) for _ in each]
        judged.setdefault(model, []).append({"part": item.part, "id": item.id, "judge": found})
        for step, scores in zip(results[model][item.key]["scores"], found, strict=True):
            step |= {f"judge/{name}": value for name, value in (scores or {}).items()}
    for model, rows in judged.items():
        write(folder / model / "judged.jsonl", b"".join(json_line(row) for row in rows))
    return asdict(judge.tally)
