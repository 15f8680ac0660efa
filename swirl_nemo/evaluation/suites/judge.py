"""A judge: a model behind any OpenAI-compatible endpoint, which answers a rubric's question about each prediction.

Requests that are refused (429, 5xx), time out or are cut are made again by the openai client, which waits longer each
time and as long as the endpoint asks; an answer that is not what the rubric wants is asked for again here, and counted.
"""

import base64
import hashlib
import io
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import httpx
import openai
from PIL import Image

from .config import JudgeConfig
from .rubric import Question, Rubric

URL, MODEL, KEY = "SWIRL_JUDGE_URL", "SWIRL_JUDGE_MODEL", "SWIRL_JUDGE_KEY"
HOPELESS = 5  # questions in a row that the endpoint does not answer
CHARACTERS = 4  # of a token, for the estimate


@dataclass
class Tally:
    """What came of the questions. `nonsense` counts answers, the others questions or requests."""

    questions: int = 0
    cached: int = 0
    requests: int = 0
    repeated: int = 0  # requests made again, since the one before was refused, timed out or was cut
    nonsense: int = 0
    given_up: int = 0  # questions that had nonsense for an answer each time
    unanswered: int = 0  # questions for which no request came through
    input_tokens: int = 0  # as the endpoint counts them
    output_tokens: int = 0


@dataclass
class _Estimate:
    questions: int
    input_tokens: int
    output_tokens: int
    cost: float | None


class Judge:
    """Raises ValueError, one line, where the environment does not say which endpoint, model and key."""

    def __init__(self, cfg: JudgeConfig, rubric: Rubric):
        url, self._model, key = (_environment(name) for name in (URL, MODEL, KEY))
        self._cfg, self._rubric, self.tally = cfg, rubric, Tally()
        self._pace = _Pace(cfg.requests_per_minute)
        http = httpx.Client(event_hooks={"request": [self._before_request]}, timeout=cfg.timeout_seconds)
        self._client = openai.OpenAI(
            base_url=url, api_key=key, max_retries=cfg.tries - 1, timeout=cfg.timeout_seconds, http_client=http
        )
        self._lock, self._in_vain = Lock(), 0

    def ask(self, questions: Sequence[Question], say: Callable[[str], None]) -> list[dict[str, float] | None]:
        """Scores in [0, 1] of each, with "overall"; None where no valid answer was to be had. `say` gets the estimate.

        Raises ValueError, one line, where the estimate is over suite.judge.max_cost, where the endpoint refuses the
        request itself, and where it does not answer one question after the other. What was answered is in the cache.
        """
        with closing(_Cache(Path(self._cfg.cache))) as cache:
            keys = [self._key(question) for question in questions]
            known = [cache.get(key) for key in keys]
            open_ = [number for number, answer in enumerate(known) if answer is None]
            self.tally.questions, self.tally.cached = len(questions), len(questions) - len(open_)
            self._announce(self._estimate([questions[number] for number in open_]), say)

            ended = Event()

            def one(number: int) -> None:
                if ended.is_set():
                    return
                try:
                    known[number] = self._answer(questions[number])
                except BaseException:
                    ended.set()
                    raise
                if known[number] is not None:
                    cache.put(keys[number], self._model, known[number])

            with ThreadPoolExecutor(self._cfg.parallel) as pool:
                try:
                    list(pool.map(one, open_))
                except BaseException:  # an interrupt as well
                    ended.set()
                    raise
        return [answer and self._rubric.parse(answer) for answer in known]

    # what is asked

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self._rubric.question.format(**question.fields)}
        pictures = [
            {"type": "image_url", "image_url": {"url": _data_url(question.pictures[name]())}}
            for name in self._rubric.pictures
        ]
        return [
            {"role": "system", "content": self._rubric.instructions},
            {"role": "user", "content": [text, *pictures] if pictures else text["text"]},
        ]

    def _key(self, question: Question) -> str:
        """Of all that decides the answer."""
        asked = [self._model, self._cfg.max_tokens, self._messages(question)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _schema(self) -> dict[str, Any]:
        schema = self._rubric.answer_type().model_json_schema() | {"additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    # what it will cost

    def _estimate(self, questions: list[Question]) -> _Estimate:
        words = sum(len(self._rubric.question.format(**question.fields)) for question in questions)
        words += len(questions) * len(self._rubric.instructions)
        pictures = len(questions) * len(self._rubric.pictures) * self._cfg.picture_tokens
        taken, given = words // CHARACTERS + pictures, len(questions) * self._cfg.max_tokens
        prices = self._cfg.input_price, self._cfg.output_price
        cost = None if None in prices else (taken * prices[0] + given * prices[1]) / 1e6
        return _Estimate(len(questions), taken, given, cost)

    def _announce(self, estimate: _Estimate, say: Callable[[str], None]) -> None:
        limit = self._cfg.max_cost
        cost = "cost not known" if estimate.cost is None else f"{estimate.cost:.2f} at most for one answer each"
        say(
            f"judge {self._model}: {estimate.questions} questions, {self.tally.cached} more in the cache; about "
            f"{estimate.input_tokens} tokens of input, up to {estimate.output_tokens} of output: {cost}"
        )
        if limit is None or not estimate.questions:
            return
        if estimate.cost is None:
            raise ValueError(
                f"suite.judge.max_cost={limit:g}: what it will cost is not known: give suite.judge.input_price and "
                "suite.judge.output_price"
            )
        if estimate.cost > limit:
            raise ValueError(
                f"suite.judge.max_cost={limit:g}: {estimate.questions} questions may cost {estimate.cost:.2f}: raise "
                "it, or lower suite.limit"
            )

    # asking

    def _answer(self, question: Question) -> str | None:
        """An answer that the rubric can parse."""
        messages = self._messages(question)
        for _ in range(self._cfg.answers):
            try:
                text = self._request(messages)
            except (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError) as error:
                self._missed(error)
                return None
            try:
                self._rubric.parse(text)
            except ValueError as error:
                self._count(nonsense=1)
                reply = f"That is not what was asked for ({error}). Answer with the JSON object alone."
                messages = [
                    *messages,
                    {"role": "assistant", "content": text or "-"},
                    {"role": "user", "content": reply},
                ]
                continue
            with self._lock:
                self._in_vain = 0
            return text
        self._count(given_up=1)
        return None

    def _request(self, messages: list[dict[str, Any]]) -> str:
        """The text of one completion; "" where the endpoint gave something else than a completion."""
        structured = {"response_format": self._schema()} if self._cfg.structured else {}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self._model, messages=messages, max_tokens=self._cfg.max_tokens, temperature=0, **structured
            )
            self._count(repeated=raw.retries_taken)
            completion = raw.parse()
        except (json.JSONDecodeError, openai.APIResponseValidationError):
            return ""
        except (openai.RateLimitError, openai.InternalServerError):
            raise
        except openai.APIStatusError as error:
            what = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{URL}={self._client.base_url}: refuses the request ({what}): mend {MODEL} or {KEY}, or give "
                "suite.judge.structured=false where it takes no schema"
            ) from None
        usage, choices = getattr(completion, "usage", None), getattr(completion, "choices", None)
        if usage is not None:
            self._count(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
        return (choices[0].message.content or "") if choices else ""

    def _missed(self, error: openai.APIError) -> None:
        self._count(unanswered=1, repeated=self._cfg.tries - 1)
        with self._lock:
            self._in_vain += 1
            hopeless = self._in_vain >= HOPELESS
        if hopeless:
            raise ValueError(
                f"{URL}={self._client.base_url}: {HOPELESS} questions in a row without an answer, the last: "
                f"{' '.join(str(error).split())[:200]}: mend the endpoint; {self._cfg.cache} keeps what it answered"
            )

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.tally, name, getattr(self.tally, name) + number)

    def _before_request(self, _: httpx.Request) -> None:
        self._pace.wait()
        self._count(requests=1)


class _Pace:
    """At most so many requests begin a minute, evenly spread, whichever thread they are of."""

    def __init__(self, per_minute: float):
        self._between, self._lock, self._next = 60 / per_minute, Lock(), 0.0

    def wait(self) -> None:
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._between
        time.sleep(max(0.0, start - time.monotonic()))


class _Cache:
    """Valid answers by the key of their question, in an SQLite file that several threads share."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._base = sqlite3.connect(path, check_same_thread=False, timeout=60)
        try:
            with self._base:
                self._base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, answer TEXT)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"suite.judge.cache={path}: no SQLite file ({error}): give another name") from None

    def get(self, key: str) -> str | None:
        with self._lock:
            row = self._base.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def put(self, key: str, model: str, answer: str) -> None:
        with self._lock, self._base:
            self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, model, answer))

    def close(self) -> None:
        self._base.close()


def _environment(name: str) -> str:
    if value := os.environ.get(name):
        return value
    raise ValueError(
        f"{name} is not set: name the judge's endpoint in {URL}, its model in {MODEL} and a key in {KEY} (any text "
        "where it wants none), or give suite.judge.ask=false"
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
