"""The judge against a real OpenAI-compatible server with a tiny model, through a proxy that injects faults."""

import json
from dataclasses import replace

import pytest
import yaml
from judge_server import KEY, MODEL, Log, Scorer, endpoint, proxy, serving
from releases import picture

from swirl_nemo.evaluation.suites import SUITES
from swirl_nemo.evaluation.suites.config import JudgeConfig
from swirl_nemo.evaluation.suites.judge import Judge
from swirl_nemo.evaluation.suites.rubric import OWN, Question, load
from swirl_nemo.settings import compose

pytestmark = pytest.mark.slow

SLOW, PATIENCE = 6.0, 60.0  # seconds; the machine may be busy
FIELDS = {"before": "", "prediction": "", "target": "", "plan": "p", "step": "1", "steps": "1"}


@pytest.fixture(scope="module")
def upstream():
    with serving(endpoint(Scorer())) as url:
        yield url


@pytest.fixture
def log(upstream, monkeypatch):
    """Of the proxy that SWIRL_JUDGE_URL leads to."""
    seen = Log()
    with serving(proxy(upstream, seen, SLOW)) as url:
        for name, value in (("URL", url), ("MODEL", MODEL), ("KEY", KEY)):
            monkeypatch.setenv(f"SWIRL_JUDGE_{name}", value)
        yield seen


@pytest.fixture
def cfg(tmp_path) -> JudgeConfig:
    judge = compose(["suite=aurora"]).suite.judge
    return replace(
        judge, requests_per_minute=6000, timeout_seconds=PATIENCE, tries=3, cache=str(tmp_path / "cache.sqlite")
    )


def question(number: int) -> Question:
    pictures = {name: lambda name=name: picture(number + len(name)) for name in ("before", "prediction", "target")}
    return Question({**FIELDS, "action": f"change {number}"}, pictures)


QUESTIONS = [question(number) for number in range(6)]


def ask(cfg: JudgeConfig, questions=tuple(QUESTIONS), rubric: str = "aurora"):
    """Scores, the judge's tally, and what it said."""
    said: list[str] = []
    judge = Judge(cfg, load(OWN / f"{rubric}.yaml"))
    return judge.ask(list(questions), said.append), judge.tally, said


@pytest.mark.parametrize("rubric", SUITES)
def test_every_suites_rubric_gets_valid_answers(rubric, cfg, log):
    scores, tally, _ = ask(cfg, QUESTIONS[:2], rubric)
    names = {*load(OWN / f"{rubric}.yaml").scores, "overall"}
    assert all(score.keys() == names and all(0 <= value <= 1 for value in score.values()) for score in scores)
    assert (tally.questions, tally.requests, tally.nonsense, tally.unanswered) == (2, 2, 0, 0)
    assert tally.input_tokens > 100 and tally.output_tokens > 10


def test_the_model_is_shown_the_rubrics_pictures_and_words(cfg, log):
    ask(cfg, QUESTIONS[:1])
    (body,) = log.bodies
    system, user = body["messages"]
    text, before, prediction = user["content"]
    assert text == {"type": "text", "text": "Instruction: change 0"}
    assert before["image_url"]["url"] != prediction["image_url"]["url"]
    assert "success, 0 to 10" in system["content"] and body["temperature"] == 0
    assert body["response_format"]["json_schema"]["schema"]["properties"]["success"]["maximum"] == 10


def test_scores_depend_on_what_is_shown(cfg, log):
    scores, _, _ = ask(cfg, [question(number) for number in range(12)])
    assert len({json.dumps(score) for score in scores}) > 1


@pytest.fixture(scope="module")
def expected(upstream, tmp_path_factory):
    """The scores of QUESTIONS, without a proxy between."""
    cfg = replace(compose(["suite=aurora"]).suite.judge, cache=str(tmp_path_factory.mktemp("judge") / "cache.sqlite"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("URL", upstream), ("MODEL", MODEL), ("KEY", KEY)):
            patch.setenv(f"SWIRL_JUDGE_{name}", value)
        return ask(replace(cfg, requests_per_minute=6000))[0]


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "cut before"])
def test_a_request_that_fails_is_made_again(fault, cfg, log, expected):
    log.faults += [fault] * 2
    scores, tally, _ = ask(replace(cfg, parallel=1))
    assert scores == expected
    assert (tally.repeated, tally.requests, tally.unanswered) == (2, 8, 0)


def test_a_request_that_takes_too_long_is_made_again(cfg, log, expected):
    log.faults.append("slow")
    scores, tally, _ = ask(replace(cfg, parallel=1, timeout_seconds=SLOW / 2), QUESTIONS[:1])
    assert scores == expected[:1]
    assert (tally.repeated, tally.requests, tally.unanswered) == (1, 2, 0)


def test_nonsense_is_asked_for_again_and_counted(cfg, log):
    log.faults += ["nonsense", "html"]
    scores, tally, _ = ask(replace(cfg, parallel=1), QUESTIONS[:2])
    assert None not in scores
    assert (tally.nonsense, tally.given_up, tally.requests) == (2, 0, 4)
    again = log.bodies[1]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[3]["content"].startswith("That is not what was asked for (no JSON object).")


def test_nonsense_each_time_leaves_the_question_open(cfg, log):
    log.faults += ["nonsense"] * 3
    scores, tally, _ = ask(replace(cfg, parallel=1))
    assert scores[0] is None and None not in scores[1:]
    assert (tally.nonsense, tally.given_up) == (3, 1)
    scores, tally, _ = ask(cfg)
    assert None not in scores and (tally.cached, tally.requests) == (5, 1)


def test_a_question_that_gets_no_answer_leaves_the_others(cfg, log):
    log.faults += ["429"] * 3
    scores, tally, _ = ask(replace(cfg, parallel=1))
    assert scores[0] is None and None not in scores[1:]
    assert (tally.unanswered, tally.requests) == (1, 8)


def test_an_endpoint_that_never_answers_ends_it_and_the_cache_goes_on(cfg, log):
    scores, _, _ = ask(cfg, QUESTIONS[:1])
    log.always = "500"
    with pytest.raises(ValueError, match=r"5 questions in a row without an answer, .*try again.*: mend the endpoint;"):
        ask(replace(cfg, tries=1))
    log.always = None
    resumed, tally, _ = ask(cfg)
    assert resumed[0] == scores[0] and (tally.cached, tally.requests) == (1, 5)


def test_answers_come_from_the_cache(cfg, log):
    scores, tally, said = ask(cfg)
    again, cached, said_again = ask(cfg)
    assert again == scores and (cached.cached, cached.requests) == (6, 0)
    assert said[0].startswith(f"judge {MODEL}: 6 questions, 0 more in the cache; about ")
    assert said_again[0].startswith(f"judge {MODEL}: 0 questions, 6 more in the cache; about 0 tokens")
    ask(replace(cfg, max_tokens=99))
    assert len(log.bodies) == 12


def test_the_estimate_comes_first_and_is_a_limit(cfg, log):
    priced = replace(cfg, input_price=2.5, output_price=10.0, max_cost=0.02)
    with pytest.raises(ValueError, match=r"^suite.judge.max_cost=0.02: 6 questions may cost 0.06: raise it") as error:
        ask(priced)
    assert "\n" not in str(error.value) and not log.bodies
    # 6 questions of 2 pictures of 800 tokens, about 200 tokens of words, and answers of 512 tokens
    _, _, (said,) = ask(replace(priced, max_cost=0.1))
    assert said.endswith("up to 3072 of output: 0.06 at most for one answer each")
    with pytest.raises(ValueError, match="is not known: give suite.judge.input_price"):
        ask(replace(cfg, max_cost=1.0), [question(90)])


def test_requests_keep_to_the_rate(cfg, log):
    log.faults += ["429"]  # one that is made again takes its turn too
    ask(replace(cfg, requests_per_minute=600, parallel=6))
    gaps = [later - sooner for sooner, later in zip(log.times, log.times[1:], strict=False)]
    assert len(gaps) == 6 and min(gaps) > 0.05 and sum(gaps) > 0.55


@pytest.mark.parametrize("name", ["URL", "MODEL", "KEY"])
def test_an_environment_that_says_nothing_is_one_line(name, cfg, log, monkeypatch):
    monkeypatch.delenv(f"SWIRL_JUDGE_{name}")
    with pytest.raises(ValueError, match=rf"^SWIRL_JUDGE_{name} is not set: name the judge's endpoint"):
        ask(cfg)


@pytest.mark.parametrize(
    ("name", "value", "what"), [("KEY", "wrong", "401.*Incorrect API key"), ("MODEL", "other", "404.*does not exist")]
)
def test_a_wrong_key_or_model_is_one_line_at_once(name, value, what, cfg, log, monkeypatch):
    monkeypatch.setenv(f"SWIRL_JUDGE_{name}", value)
    with pytest.raises(ValueError, match=rf"^SWIRL_JUDGE_URL=http.*: refuses the request \(.*{what}") as error:
        ask(replace(cfg, parallel=1))
    assert "\n" not in str(error.value) and len(log.bodies) == 1


def test_a_model_without_a_schema_only_talks(cfg, log):
    """A model of random weights writes no JSON by itself: what the other tests get is the schema's doing."""
    scores, tally, _ = ask(replace(cfg, structured=False, answers=2), QUESTIONS[:1])
    assert scores == [None] and tally.nonsense == 2
    assert "response_format" not in log.bodies[0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("7 of 10", "no JSON object"),
        ('{"reason": "r", "success": 7}', "restraint: Field required"),
        ('{"reason": "r", "success": 11, "restraint": 1}', "success: Input should be less than or equal to 10"),
        ('{"reason": "r", "success": "7", "restraint": 1}', "success: Input should be a valid number"),
        ('{"reason": "r", "success": NaN, "restraint": 1}', "success"),
        ('{"reason": "r", "success": 7, "restraint": 1', "no JSON object"),
    ],
)
def test_an_answer_is_held_to_the_rubric(answer, why):
    with pytest.raises(ValueError, match=why) as error:
        load(OWN / "aurora.yaml").parse(answer)
    assert "\n" not in str(error.value)


def test_an_answer_may_stand_in_other_words():
    text = 'Here it is:\n```json\n{"reason": "r", "success": 8, "restraint": 5}\n```'
    scores = load(OWN / "aurora.yaml").parse(text)
    assert scores == pytest.approx({"success": 0.8, "restraint": 0.5, "overall": 0.5})
    assert load(OWN / "stabletoolbench.yaml").parse('{"reason": "", "content": 8, "form": 5}')["overall"] == 0.65


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"question": "{nothing}"}, "question: unknown field {nothing}: the fields are before, action"),
        ({"overall": "sum"}, "overall: Input should be 'lowest' or 'mean': mend it"),
        ({"scores": {"a b": {"lowest": 0, "highest": 1, "meaning": ""}}}, "scores.a b: give it a plain name"),
        ({"scores": {"a": {"lowest": 1, "highest": 1, "meaning": ""}}}, "a highest above the lowest"),
        ({"more": 1}, "more: Extra inputs are not permitted: mend it"),
    ],
)
def test_a_rubric_that_is_none_is_one_line(change, what, tmp_path):
    content = yaml.safe_load((OWN / "aurora.yaml").read_text()) | change
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as error:
        load(tmp_path / "mine.yaml")
    assert str(error.value).startswith(f"{tmp_path}/mine.yaml: ") and what in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "none.yaml")


def test_a_cache_that_is_no_cache_is_one_line(cfg, log, tmp_path):
    (tmp_path / "text").write_text("not a data base, and long enough to be seen as none")
    with pytest.raises(ValueError, match=r"^suite.judge.cache=.*text: no SQLite file \(.*\): give another name$"):
        ask(replace(cfg, cache=str(tmp_path / "text")))
