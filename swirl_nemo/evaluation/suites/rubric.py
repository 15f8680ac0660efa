"""A rubric: what a judge is told, what it is shown, and what it must answer."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal

import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

OWN = Path(__file__).parent / "rubrics"
FIELDS = ("before", "action", "prediction", "target", "plan", "step", "steps")  # that a question may have


@dataclass(frozen=True)
class Question:
    """One prediction. `fields` fill the rubric's question; `pictures` are what it shows, by name, drawn when needed."""

    fields: dict[str, str]
    pictures: dict[str, Callable[[], Image.Image]]


class Score(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lowest: float
    highest: float
    meaning: str


class Rubric(BaseModel):
    """The content of a file of rubrics/."""

    model_config = ConfigDict(extra="forbid")

    system: str
    question: str  # with {fields}
    pictures: list[Literal["before", "prediction", "target"]]  # shown in this order
    scores: dict[str, Score] = Field(min_length=1)
    overall: Literal["lowest", "mean"]  # of the scores

    @property
    def instructions(self) -> str:
        shown = ", ".join(f"the {name}" for name in self.pictures)
        pictures = f"\nPictures, in this order: {shown}." if shown else ""
        scores = "".join(f"\n- {name}, {s.lowest:g} to {s.highest:g}. {s.meaning}." for name, s in self.scores.items())
        example = ", ".join(f'"{name}": {score.lowest:g}' for name, score in self.scores.items())
        return (
            f"{self.system}{pictures}\nGive a reason in one sentence, then these scores:{scores}\n"
            f'Answer with a JSON object alone, such as {{"reason": "...", {example}}}.'
        )

    def answer_type(self) -> type[BaseModel]:
        """What an answer must be: a reason, and each score within its bounds and a number, not a text of one."""
        scores = {
            name: (float, Field(ge=score.lowest, le=score.highest, strict=True)) for name, score in self.scores.items()
        }
        return create_model("Answer", reason=(str, ...), **scores)

    def parse(self, text: str) -> dict[str, float]:
        """{"success": ..., "overall": ...}, each in [0, 1], of an answer that may stand within other words.

        Raises ValueError, one line, where it is not what the rubric wants.
        """
        found = re.search(r"\{.*\}", text, re.DOTALL)
        if found is None:
            raise ValueError("no JSON object")
        try:
            answer = self.answer_type().model_validate_json(found[0])
        except ValidationError as error:
            raise ValueError(_one_line(error)) from None
        values = {
            name: (getattr(answer, name) - score.lowest) / (score.highest - score.lowest)
            for name, score in self.scores.items()
        }
        overall = min(values.values()) if self.overall == "lowest" else sum(values.values()) / len(values)
        return {**values, "overall": overall}


def load(path: Path) -> Rubric:
    """Raises ValueError, one line, where the file is no rubric."""
    if not path.is_file():
        raise ValueError(f"suite.judge.rubric={path}: no such file: give one as in evaluation/suites/rubrics, or null")
    try:
        rubric = Rubric.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        fields = {field for _, field, _, _ in Formatter().parse(rubric.question) if field is not None}
    except ValidationError as error:
        raise ValueError(f"{path}: {_one_line(error)}: mend it") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not to be read ({' '.join(str(error).split())}): mend it") from None
    if unknown := sorted(fields - set(FIELDS)):
        raise ValueError(f"{path}: question: unknown field {{{unknown[0]}}}: the fields are {', '.join(FIELDS)}")
    for name, score in rubric.scores.items():
        if not name.isidentifier() or name in ("reason", "overall") or score.lowest >= score.highest:
            raise ValueError(f"{path}: scores.{name}: give it a plain name of its own, and a highest above the lowest")
    return rubric


def _one_line(error: ValidationError) -> str:
    (first, *_) = error.errors(include_url=False)
    where = ".".join(map(str, first["loc"]))
    return " ".join(f"{where}: {first['msg']}".lstrip(": ").split())
