"""Where training text comes from: problems for RL, problems with a worked response for SFT."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from xreasoner.data.dataset_files import Table
from xreasoner.data.fields import report_unknown
from xreasoner.data.readers import ErrorLog, Row
from xreasoner.errors import DataError, RecipeError
from xreasoner.grading import judge
from xreasoner.problem import Problem
from xreasoner.registry import nearest
from xreasoner.trace import ANSWER_CLOSE, ANSWER_OPEN

Style = Literal["chain", "direct"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """A problem and the response to learn: `<think> … </think> <answer>…</answer>`, or the answer alone.

    prompt: the prompt's name; the stage's own when empty.
    """

    problem: Problem
    response: str
    prompt: str = ""


class Source(Protocol):
    """A named stream of text problems, deterministic by seed."""

    def problems(self, n: int, seed: int) -> list[Problem]:
        """n problems."""
        ...

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        """n problems, each with a response in the given style."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as a source. parse: a row's problem and its response, "" where the data set has none.

    A row without a gold answer can be trained on as a chain, and a row without a chain can be solved or trained on as a
    direct answer; any other use raises `DataError` with the row's place. fields: those that `parse` knows, so that
    others are reported; None for a data set of a schema of its own.
    """

    table: Table
    parse: Callable[[Row], tuple[Problem, str]]
    fields: frozenset[str] | None = None

    def problems(self, n: int, seed: int) -> list[Problem]:
        return self._read(n, seed, self._judgeable)

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        return self._read(n, seed, self._direct if style == "direct" else self._worked)

    def _read(self, n: int, seed: int, make: Callable[[Row], T]) -> list[T]:
        """What is made of each row. Raises `DataError` with every row that cannot be read or used."""
        log = ErrorLog()
        rows = self.table.sample(n, seed, log)
        made: list[T] = []
        for row in rows:
            with log.collect(row):
                made.append(make(row))
        log.raise_any()
        if self.fields is not None:
            report_unknown(rows, self.fields)
        return made

    def _direct(self, row: Row) -> Example:
        problem = self._solvable(row)
        return Example(problem, f"<answer>{problem.gold}</answer>")

    def _solvable(self, row: Row) -> Problem:
        problem = self.parse(row)[0]
        if not problem.gold.strip():
            raise DataError(f"{row.where}: has no gold answer; expected one for RL, or for SFT with style: direct")
        return problem

    def _judgeable(self, row: Row) -> Problem:
        """A problem whose gold the grader can compare with; without, no reply would ever be right."""
        problem = self._solvable(row)
        if problem.answer_type != "latex":  # which asks other processes, a while for each
            verdict = judge(problem, f"<answer>{problem.gold}</answer>")
            if verdict.outcome == "error":
                kind = f"the row's answer_type is {problem.answer_type!r}; give the one that fits"
                raise DataError(f"{row.where}: its gold cannot be judged: {verdict.note:.300}; {kind}")
        return problem

    def _worked(self, row: Row) -> Example:
        problem, response = self.parse(row)
        if not response.strip():
            raise DataError(
                f"{row.where}: has no chain of thought to learn; make chains with `xreasoner data distill`, or set "
                "style: direct"
            )
        return Example(problem, response)


def chain(thought: str, reply: str, final: str = "") -> str:
    r"""A response in the tags that the prompts ask for.

    The final result goes into the `<answer>` tags, and a solution that leads to it stands before them, after the
    thought. The final result is what the reply has in `<answer>` tags itself, or in its last `\boxed{…}`, or `final`;
    a reply without any is the answer as a whole.
    """
    before, tag, rest = reply.rpartition(ANSWER_OPEN)
    if tag:
        solution, result = before, rest.partition(ANSWER_CLOSE)[0]
    else:
        result = boxed(reply) or final
        solution, result = (reply, result) if result.strip() else ("", reply)
    solution = solution.strip()
    if solution == result.strip():
        solution = ""
    parts = [f"<think>\n{thought.strip()}\n</think>", solution, f"<answer>\n{result.strip()}\n</answer>"]
    return "\n".join(part for part in parts if part)


_BOXED = re.compile(r"\\boxed\s*\{")


def boxed(text: str) -> str:
    r"""What stands in the last `\boxed{…}`, braces counted; "" where there is none."""
    starts = [match.end() for match in _BOXED.finditer(text)]
    depth = 1
    for k in range(starts[-1] if starts else len(text), len(text)):
        depth += (text[k] == "{") - (text[k] == "}")
        if depth == 0:
            return text[starts[-1] : k].strip()
    return ""


def table_of(options: Mapping[str, Any], default: str | None = None, own: tuple[str, ...] = ()) -> Table:
    """The table that a data entry's options name: path (a file, a folder or a hub id), config, split, revision.

    own: what else the source takes. Raises `RecipeError` for any other option, and for a path that is missing.
    """
    taken = ("path", "config", "split", "revision", *own)
    for name in options:
        if name not in taken:
            raise RecipeError(f"data.options.{name}: unknown option; {nearest(name, taken)}")
    for name in ("path", "config", "split", "revision"):
        if not isinstance(options.get(name), str | int | float | None):
            raise RecipeError(f"data.options.{name}: found {options[name]!r:.200}, expected a text")
    path = options.get("path", default)
    if not path:
        raise RecipeError("data.options.path: is missing; expected a file, a folder or a hub id")
    config, revision = (None if options.get(k) is None else str(options[k]) for k in ("config", "revision"))
    table = Table(str(path), config, str(options.get("split", "train")), revision)
    table.check()
    return table
