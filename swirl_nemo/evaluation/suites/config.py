"""The schema of a suite. Values live in conf/suite/."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class JudgeConfig:
    """A model behind an OpenAI-compatible endpoint, which SWIRL_JUDGE_URL, _MODEL and _KEY name in the environment."""

    ask: bool = MISSING
    structured: bool = MISSING  # the answer's JSON schema is sent along; off for an endpoint that takes none
    rubric: str | None = MISSING  # a file such as those in evaluation/suites/rubrics; null: the suite's own there
    requests_per_minute: float = MISSING
    parallel: int = MISSING  # requests under way at a time
    timeout_seconds: float = MISSING
    tries: int = MISSING  # of a request that is refused (429, 5xx), times out or is cut
    answers: int = MISSING  # asked for until one is what the rubric wants
    max_tokens: int = MISSING  # of an answer
    picture_tokens: int = MISSING  # that a picture is taken to cost, for the estimate
    input_price: float | None = MISSING  # of a million tokens; null: not known
    output_price: float | None = MISSING
    max_cost: float | None = MISSING  # over which, by the estimate, nothing is asked; null: no limit
    cache: str = MISSING  # SQLite file of all answers


@dataclass
class SuiteConfig:
    """What every suite needs. A suite's own keys are a subclass of this, in its own file."""

    name: str = MISSING
    folder: str = MISSING  # of the public release
    parts: list[str] | None = MISSING  # of those in the release; null: all
    instruction: str = MISSING  # what the FWM is given as action: {action} {plan} {step} {steps}
    models: list[str] = MISSING  # of the run's checkpoints; none: the one in model.fwm
    predictions: str | None = MISSING  # folder with MODEL/PART/ID.png (or .txt): these, and nothing is generated
    limit: int = MISSING  # items of each part; 0: all
    clip: str | None = MISSING  # Hugging Face folder of a CLIP model; null: its scores are left out
    lpips: str | None = MISSING  # torchvision's file of AlexNet weights; null: LPIPS is left out
    headline: list[str] = MISSING  # the first of these that is there is compared with the published gain
    judge: JudgeConfig = MISSING


def store(name: str, node: type[SuiteConfig]) -> None:
    """Make `node` the schema that conf/suite/{name}.yaml begins with."""
    ConfigStore.instance().store(group="suite", name=f"{name}_schema", node=node)
