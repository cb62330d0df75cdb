"""Problems from a JSONL file: one object a line with `question`, `gold`, `answer_type`, and for SFT `response`.

Also read: `id`, `options` (a list of texts), `domain` ("general" when left out). A row with `image` or `images` is
marked as a picture problem, which post-training refuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, get_args

from xreasoner.data.sources import Example, Style
from xreasoner.errors import DataError, RecipeError
from xreasoner.problem import AnswerType, Problem


class JSONL:
    """Lines of a file, shuffled by seed. Wrong or missing fields are named with file and line."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected JSONL with question, gold, answer_type, response")
        self.path = path

    def problems(self, n: int, seed: int) -> list[Problem]:
        return [self._problem(number, row) for number, row in self._rows(n, seed)]

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        found = []
        for number, row in self._rows(n, seed):
            problem = self._problem(number, row)
            gold = f"<answer>{problem.gold}</answer>"
            found.append(Example(problem, self._field(number, row, "response") if style == "chain" else gold))
        return found

    def _rows(self, n: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
        rows = []
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8: {error.reason} at byte {error.start}; expected JSONL") from None
        for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028 inside a string
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{self.path}:{number}: not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise DataError(f"{self.path}:{number}: found {type(row).__name__}, expected an object")
            rows.append((number, row))
        if not rows:
            raise DataError(f"{self.path}: is empty; expected one JSON object a line")
        Random(f"jsonl/{seed}").shuffle(rows)
        return rows[:n]

    def _field(self, number: int, row: dict[str, Any], name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str | int | float) or not str(value).strip():
            raise DataError(f"{self.path}:{number}: field {name!r}: found {value!r}, expected text")
        return str(value)

    def _problem(self, number: int, row: dict[str, Any]) -> Problem:
        kind = row.get("answer_type", "number")
        if kind not in get_args(AnswerType):
            known = ", ".join(get_args(AnswerType))
            raise DataError(f"{self.path}:{number}: field 'answer_type': found {kind!r}, expected one of {known}")
        options = row.get("options") or []
        if not isinstance(options, list):
            raise DataError(f"{self.path}:{number}: field 'options': found {options!r}, expected a list of texts")
        return Problem(
            id=str(row.get("id", f"{self.path.stem}-{number}")),
            question=self._field(number, row, "question"),
            gold=self._field(number, row, "gold"),
            answer_type=kind,
            options=tuple(map(str, options)),
            domain=str(row.get("domain", "general")),
            modality="image" if row.get("image") or row.get("images") else "text",
            source=self.path.stem,
        )


def jsonl(options: dict[str, Any]) -> JSONL:
    """The source `jsonl`. options: {"path": file}."""
    if "path" not in options:
        raise RecipeError("data.options.path: is missing; expected the JSONL file's path")
    return JSONL(Path(options["path"]))
