"""Re-scoring saved replies: JSONL in, the same lines with their verdicts out. No model is needed."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from xreasoner.errors import DataError, UserError, XReasonerError
from xreasoner.grading.grader import judge
from xreasoner.problem import LABELS, AnswerType, Problem
from xreasoner.registry import nearest
from xreasoner.verdict import Verdict

KINDS: dict[str, AnswerType] = {
    "mcq": "choice",
    "choice": "choice",
    "multiple_choice": "choice",
    "yesno": "yesno",
    "yesnomaybe": "yesno",
    "integer": "integer",
    "number": "number",
    "numeric": "number",
    "float": "number",
    "quantity": "quantity",
    "latex": "latex",
    "math": "latex",
    "list": "list",
    "open": "text",
    "text": "text",
    "gym": "gym",
}
"""The names of answer types in a file → the grader's kinds. `float:N` and `list:N` round to N decimal places."""
_CHUNK = 512
_AT_ONCE = 8


@dataclass(slots=True)
class Tally:
    """What a file came to, in lines. bad: those that could not be judged."""

    total: int = 0
    correct: int = 0
    bad: int = 0


class _BadLineError(ValueError):
    """A line that cannot be judged; the message says which field and why."""


def _kind(name: object) -> tuple[AnswerType, dict[str, int]]:
    base, _, places = str(name).partition(":")
    key = base.strip().casefold().replace("-", "_").replace(" ", "_")
    if not isinstance(name, str) or key not in KINDS:
        raise _BadLineError(f"field 'answer_type': unknown {name!r}; {nearest(str(name), [*KINDS, 'float:2'])}")
    if not places:
        return KINDS[key], {}
    if key not in ("float", "list", "number", "numeric", "quantity") or not re.fullmatch(r"\d{1,2}", places):
        raise _BadLineError(f"field 'answer_type': found {name!r}, expected decimal places as in 'float:2'")
    return KINDS[key], {"precision": int(places)}


def option_texts(choices: object) -> tuple[str, ...]:
    """Options from a list, a list in a string (in a list …), {"A": text, …} or [{"key", "value"}, …].

    Raises `ValueError` for anything else.
    """
    for _ in range(3):
        if isinstance(choices, str) and choices.strip()[:1] in ("[", "{", "("):
            choices = _literal(choices)
        if isinstance(choices, list) and len(choices) == 1 and _is_list(choices[0]):
            choices = choices[0]
    if choices is None or choices == "":
        return ()
    if isinstance(choices, dict):
        return tuple(str(text) for _, text in sorted(choices.items()))
    if not isinstance(choices, list | tuple):
        raise ValueError(f"found {choices!r}, expected a list of texts or null")
    if choices and all(isinstance(each, dict) and {"key", "value"} <= set(each) for each in choices):
        return tuple(str(each["value"]) for each in sorted(choices, key=lambda each: str(each["key"])))
    return tuple(map(str, choices))


def _is_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.strip().startswith("["))


def _literal(text: str) -> object:
    for read in (json.loads, ast.literal_eval):
        try:
            return cast(object, read(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"found {text[:80]!r}, expected a list of texts or null")


def problem_of(row: dict[str, Any]) -> tuple[Problem, str]:
    """The problem and the reply of one line. Raises `ValueError` naming the field that is wrong."""
    kind, meta = _kind(row.get("answer_type"))
    response, gold = row.get("response"), row.get("gold")
    if not isinstance(response, str):
        raise _BadLineError(f"field 'response': found {response!r}, expected text")
    if not isinstance(gold, str | int | float | list) or isinstance(gold, bool) or not str(gold).strip():
        raise _BadLineError(f"field 'gold': found {gold!r}, expected text")
    name = "choices" if "choices" in row else "options"
    try:
        options = option_texts(row.get(name))
    except ValueError as error:
        raise _BadLineError(f"field {name!r}: {error}") from None
    if kind == "choice" and not options and re.fullmatch(r"\W*[A-Za-z]\W*", str(gold)):
        options = ("",) * len(LABELS)  # the options stand in the question or the picture; labels alone can be compared
    if kind == "choice" and not 1 <= len(options) <= len(LABELS):
        raise _BadLineError(f"field {name!r}: found {len(options)} options, expected 1 to {len(LABELS)}")
    extra = row.get("meta") or {}
    if not isinstance(extra, dict) or (kind == "gym" and not {"name", "entry"} <= set(extra)):
        raise _BadLineError("field 'meta': expected an object; for gym with 'name' and 'entry'")
    question = str(row.get("question") or "").strip() or "?"
    problem = Problem(str(row.get("id", "")), question, str(gold), kind, options, meta={**extra, **meta})
    return problem, response


def grade_line(line: bytes) -> tuple[dict[str, Any], str]:
    """(the output row, the complaint or "") of one input line."""
    row: object = None
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if not isinstance(row, dict):
            raise _BadLineError(f"found {type(row).__name__}, expected an object")
        problem, response = problem_of(row)
        verdict = judge(problem, response, str(row.get("exit") or "natural"))
    except Exception as error:  # whatever a line holds, the rest goes on
        complaint = _complaint(error, line)
        carried = row if isinstance(row, dict) else {}
        return {**carried, "outcome": "error", "extracted": "", "correct": False, "note": complaint}, complaint
    return {**row, **_added(verdict)}, verdict.note if verdict.outcome == "error" else ""


def _complaint(error: Exception, line: bytes) -> str:
    if isinstance(error, _BadLineError):
        return str(error)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"not JSON: {error}" if line.strip() else "is empty; expected a JSON object"
    return f"cannot be judged: {type(error).__name__}: {error}"[:300]


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, cut in two by whoever wrote the file
        return json.dumps(row).encode() + b"\n"


def _added(verdict: Verdict) -> dict[str, Any]:
    added = {
        "outcome": verdict.outcome,
        "extracted": verdict.normalised or verdict.extracted,
        "correct": verdict.correct,
    }
    return {**added, "note": verdict.note} if verdict.note else added


def _graded(lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], str]]:
    """Graded in order; several lines are under way at once, for those that wait for a worker."""
    rest = iter(lines)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while chunk := list(islice(rest, _CHUNK)):
            yield from threads.map(grade_line, chunk)


def _write(source: IO[bytes], put: Callable[[bytes], object], complain: Callable[[str], None], name: str) -> Tally:
    tally = Tally()
    for number, (row, complaint) in enumerate(_graded(source), 1):
        tally.total += 1
        tally.correct += bool(row["correct"])
        if complaint:
            tally.bad += 1
            complain(f"{name}:{number}: {complaint}")
        put(_encoded(row))
    return tally


def grade_file(path: Path, out: Path | None, complain: Callable[[str], None]) -> Tally:
    """Grade a JSONL file line by line into `out` (written aside, then renamed), or to standard output where it is None.

    complain: is told of each line that cannot be judged; its output line carries the outcome "error". Raises
    `DataError` for a file that is not there, `UserError` for an output that is the input.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSONL with response, gold, answer_type and choices")
    if out is None:
        with path.open("rb") as source:
            tally = _write(source, sys.stdout.buffer.write, complain, path.name)
            sys.stdout.flush()
            return tally
    if out.is_dir() or (out.exists() and out.samefile(path)):
        raise UserError(f"{out}: expected another file than the input and no folder; choose another --out")
    aside = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, aside.open("wb") as file:
            tally = _write(source, file.write, complain, path.name)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    except OSError as error:
        raise XReasonerError(f"cannot write {out}: {error.strerror}; what was there before stays as it was") from error
    finally:
        aside.unlink(missing_ok=True)
    return tally
