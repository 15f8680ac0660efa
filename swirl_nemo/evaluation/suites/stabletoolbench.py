"""StableToolBench (Guo et al. 2024, "Towards Stable Large-Scale Benchmarking on Tool Learning of LLMs").

For a world model: a query and the calls so far are the state, a call is the action, the tool's response the next state.
Layout, as seen in the repository THUNLP-MT/StableToolBench: `solvable_queries/test_query_ids/{part}.json` is
{query id: 0} of the queries that count, and the recorded answers, converted by its run_convert_answer.sh, lie in
`{answers}/{part}.json`:

    {query id: {"query", "available_tools": [{"name", "description", "parameters"}], "answer": {"answer_details":
     [{"role", "message", "next": [...]}]}}}

A node of role "tool" has as its message {"name", "arguments", "response"}; what stands on the way to it came before,
and its name may be "Finish", which no tool answers. Tried on the repository's own example, three queries.

Not verified: that SWIRL takes its transitions from these answers; its released code has no StableToolBench.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING

from .base import Contents, Damaged, Fault, Item, Step, Suite, read_json, text_of
from .config import SuiteConfig, store

FINISH = "Finish"


@dataclass
class StableToolBenchConfig(SuiteConfig):
    queries: str = MISSING  # within the folder: query ids of each part
    answers: str = MISSING  # within the folder: recorded answers of each part
    calls: int = MISSING  # the last so many calls are shown with their responses
    tools: bool = MISSING  # the documents of the query's tools are shown


class StableToolBench(Suite[StableToolBenchConfig]):
    name = "stabletoolbench"
    title = "StableToolBench"
    kind = "text"
    parts: ClassVar = {
        "G1_instruction": "I1 Instruction",
        "G1_category": "I1 Category",
        "G1_tool": "I1 Tool",
        "G2_instruction": "I2 Instruction",
        "G2_category": "I2 Category",
        "G3_instruction": "I3 Instruction",
    }
    published_gain = 0.14

    def read(self) -> Contents:
        contents, queries = Contents(), self.folder / self.cfg.queries
        names = [name for name in self.parts if (queries / f"{name}.json").is_file()]
        if not names:
            raise ValueError(
                f"suite.folder={self.folder}: no {self.cfg.queries}/G1_instruction.json or the like in it: give the "
                f"folder of the {self.title} release, or suite.queries"
            )
        for part in self.parts if self.cfg.parts is None else self.cfg.parts:
            if part not in names:
                contents.faults.append(Fault("all", part, f"{self.cfg.queries}/{part}.json: no such file"))
                continue
            self._read_part(part, contents)
        return contents

    def _read_part(self, part: str, contents: Contents) -> None:
        wanted = read_json(self.folder / self.cfg.queries / f"{part}.json", dict)
        place = f"{self.cfg.answers}/{part}.json"
        there = (self.folder / place).is_file()
        answers = read_json(self.folder / place, dict) if there else {}
        for query_id in wanted:
            try:
                if query_id not in answers:
                    raise Damaged("not in it" if there else "no such file")
                contents.items += self._items(part, query_id, answers[query_id])
            except Damaged as error:
                contents.faults.append(Fault(query_id, part, f"{place}, query {query_id}: {error}"))

    def _items(self, part: str, query_id: str, answer: Any) -> list[Item]:
        (query,) = text_of(answer, "query")
        details = answer["answer"].get("answer_details") if isinstance(answer.get("answer"), dict) else None
        if not isinstance(details, list):
            raise Damaged("no answer_details")
        tools = _documents(answer.get("available_tools")) if self.cfg.tools else ""
        return [
            Item(f"{query_id}-{number}", part, self._state(query, tools, before), (Step(call, response),))
            for number, (before, call, response) in enumerate(_calls(details, ()), start=1)
        ]

    def _state(self, query: str, tools: str, before: tuple[tuple[str, str], ...]) -> str:
        shown = before[-self.cfg.calls :] if self.cfg.calls else ()
        calls = "".join(f"\ncall: {call}\nresponse: {response}" for call, response in shown)
        return f"query: {query}{tools}{calls}"


def _documents(tools: Any) -> str:
    if not isinstance(tools, list):
        raise Damaged("no available_tools")
    lines = []
    for tool in tools:
        name, description = text_of(tool, "name", "description")
        if name != FINISH:
            lines.append(f"\ntool {name}: {description} {json.dumps(tool.get('parameters'), ensure_ascii=False)}")
    return "".join(lines)


def _calls(nodes: list, before: tuple[tuple[str, str], ...]) -> Iterator[tuple[tuple[tuple[str, str], ...], str, str]]:
    """(calls and responses on the way to it, call, response) of every call that a tool answered, in order."""
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(following := node.get("next"), list):
            raise Damaged("a node of answer_details has no next")
        way = before
        if node.get("role") == "tool" and (call := _call(node.get("message"))):
            yield before, *call
            way = (*before, call)
        yield from _calls(following, way)


def _call(message: Any) -> tuple[str, str] | None:
    """None for what no tool answers."""
    (name,) = text_of(message, "name")
    if name == FINISH:
        return None
    (response,) = text_of(message, "response")
    arguments = message.get("arguments")
    try:
        arguments = json.dumps(json.loads(arguments), ensure_ascii=False)
    except (TypeError, ValueError):
        arguments = str(arguments)  # what a model wrote as arguments need not be JSON, and was sent as it was
    return f"{name}({arguments})", response


store("stabletoolbench", StableToolBenchConfig)
