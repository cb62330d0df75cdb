"""Re-scoring saved replies: JSONL in, the same lines with their verdicts out. No model is needed."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, cast

from xreasoner.data.readers import BadRow, Row, json_line, read_records
from xreasoner.errors import DataError, UserError, XReasonerError
from xreasoner.grading.grader import judge
from xreasoner.grading.version import grader_version
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
    """What a file came to, in rows. bad: those that could not be judged; invalid: of those, the user's mistakes."""

    total: int = 0
    correct: int = 0
    bad: int = 0
    invalid: int = 0


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
    """Options from a list, a list in a string (in a list …), or one of the mappings below.

    Mappings: {"A": text, …} or {"0": text, …}, [{"key" or "label", "value" or "text"}, …] and {"label": [...], "text":
    [...]}. Raises `ValueError` for anything else, and for an option that is no text.
    """
    for _ in range(3):
        if isinstance(choices, str) and choices.strip()[:1] in ("[", "{", "("):
            choices = _literal(choices)
        if isinstance(choices, list) and len(choices) == 1 and _is_list(choices[0]):
            choices = choices[0]
    if choices is None or choices == "":
        return ()
    if isinstance(choices, dict):
        return _labeled(choices)
    if not isinstance(choices, list | tuple):
        raise ValueError(f"found {choices!r:.200}, expected a list of texts or null")
    if choices and all(isinstance(each, dict) for each in choices):
        pairs = [(each.get("key", each.get("label")), each.get("value", each.get("text"))) for each in choices]
        if any(label is None or text is None for label, text in pairs):
            raise ValueError(f"found {choices!r:.200}, expected each option with a key and a value")
        return _in_order({str(label): text for label, text in pairs}, len(pairs))
    return tuple(_option(each) for each in choices)


def _column_names(form: str) -> tuple[list[str], list[str]]:
    letters = [form.format(label) if form == "{}" else form.format(label.lower()) for label in LABELS]
    return letters, [] if form == "{}" else [form.format(k + 1) for k in range(len(LABELS))]


_FORMS = ("{}", "option_{}", "option{}", "choice_{}", "choice{}", "op{}", "opt_{}", "opt{}")
_GROUPS = [names for form in _FORMS for names in _column_names(form) if names]
OPTION_COLUMNS = frozenset(name for names in _GROUPS for name in names)
"""How data sets call the columns of a question's options: by a letter from A or a number from 1."""


def option_columns(values: Mapping[str, Any]) -> tuple[list[str], str]:
    """(the columns A, B, C, … (or option_a, …; option1, …) that hold options, "") or ([], the one that is missing).

    ([], "") where a row has no two of them. Blank columns at the end are those of questions with more options.
    """
    plain = {name if len(name) == 1 else name.lower().replace(" ", "_"): name for name in map(str, values)}
    for names in _GROUPS:
        if not (names[0] in plain and names[1] in plain):
            continue
        present = [plain[name] for name in names if name in plain]
        filled = [name for name in present if values[name] not in (None, "")]
        if filled != present[: len(filled)] or len(filled) == 1:
            return [], next(name for name in present if name not in filled)
        return filled, ""
    return [], ""


def _labeled(choices: dict[Any, Any]) -> tuple[str, ...]:
    labels, texts = choices.get("label"), choices.get("text")
    if isinstance(labels, list) and isinstance(texts, list) and len(choices) == 2 and len(labels) == len(texts):
        return _in_order({str(label): text for label, text in zip(labels, texts, strict=True)}, len(labels))
    return _in_order({str(label): text for label, text in choices.items() if text is not None}, 0)


def _in_order(choices: dict[str, Any], count: int) -> tuple[str, ...]:
    """The texts in the order of their labels, which are A, B, C, … or numbers from 0 or 1."""
    names = sorted(choices, key=lambda name: (len(name), name))
    n = len(names)
    known = [[*LABELS[:n]], [*LABELS[:n].lower()], [str(k) for k in range(n)], [str(k + 1) for k in range(n)]]
    if names not in known or (count and count != n):
        raise ValueError(f"found options under {', '.join(names)[:100]!r}, expected labels A, B, C, … in a row")
    return tuple(_option(choices[name]) for name in names)


def _option(value: object) -> str:
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        raise ValueError(f"found the option {value!r:.100}, expected a text")
    return str(value)


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
    is_missing = isinstance(gold, bool) or not str(gold).strip() or (isinstance(gold, float) and gold != gold)
    if not isinstance(gold, str | int | float | Decimal | list) or is_missing:
        raise _BadLineError(f"field 'gold': found {gold!r}, expected text")
    name = "choices" if "choices" in row else "options"
    columns, missing = ([], "") if row.get(name) else option_columns(row)
    if missing:
        raise _BadLineError(f"field {missing!r}: found {row[missing]!r}, expected an option before the row's last one")
    try:
        options = option_texts([row[column] for column in columns] or row.get(name))
    except ValueError as error:
        raise _BadLineError(f"field {name!r}: {error}") from None
    if kind == "choice" and not options and re.fullmatch(r"\W*[A-Za-z]\W*", str(gold)):
        options = ("",) * len(LABELS)  # the options stand in the question or the picture; labels alone can be compared
    if kind == "choice" and not 1 <= len(options) <= len(LABELS):
        raise _BadLineError(f"field {name!r}: found {len(options)} options, expected 1 to {len(LABELS)}")
    extra = row.get("meta") or {}
    if isinstance(extra, str):  # CSV and Parquet have no free mappings
        with suppress(ValueError):
            extra = json.loads(extra)
    if not isinstance(extra, dict) or (kind == "gym" and not {"name", "entry"} <= set(extra)):
        raise _BadLineError("field 'meta': expected an object; for gym with 'name' and 'entry'")
    question = str(row.get("question") or "")
    question = question if question.strip() else "?"
    problem = Problem(str(row.get("id", "")), question, str(gold), kind, options, meta={**extra, **meta})
    return problem, response


def grade_line(line: bytes) -> tuple[dict[str, Any], str]:
    """(the output row, the complaint or "") of one input line."""
    record = next(read_records(Path("line.jsonl"), line), BadRow("line.jsonl", 1, reason="is empty"))
    row, complaint, _ = grade_record(record)
    return row, complaint


def grade_record(record: Row | BadRow) -> tuple[dict[str, Any], str, bool]:
    """(the output row, the complaint or "", whether the input is to blame) of one row."""
    row = dict(record.values) if isinstance(record, Row) else {}
    is_users = True
    try:
        if isinstance(record, BadRow):
            raise _BadLineError(record.reason)
        if list(row) == [str(k) for k in range(len(row))]:  # the reader's names for a list's items
            row = {}
            raise _BadLineError("found list, expected an object")
        problem, response = problem_of(row)
        is_users = False
        verdict = judge(problem, response, str(row.get("exit") or "natural"))
    except Exception as error:  # whatever a row holds, the others are graded
        complaint = str(error) if isinstance(error, _BadLineError) else f"cannot be judged: {_named(error)}"
        return {**row, "outcome": "error", "extracted": "", "correct": False, "note": complaint}, complaint, is_users
    version = {"grader": grader_version()} if "grader" in row else {}
    return {**row, **_added(verdict), **version}, verdict.note if verdict.outcome == "error" else "", False


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _encoded(row: dict[str, Any]) -> bytes:
    return json_line(row).encode(errors="backslashreplace") + b"\n"


def _added(verdict: Verdict) -> dict[str, Any]:
    added = {
        "outcome": verdict.outcome,
        "extracted": verdict.normalised or verdict.extracted,
        "correct": verdict.correct,
    }
    return {**added, "note": verdict.note} if verdict.note else added


def _graded(records: Iterable[Row | BadRow]) -> Iterator[tuple[Row | BadRow, tuple[dict[str, Any], str, bool]]]:
    """Graded in order; several rows are under way at once, for those that wait for a worker."""
    rest = iter(records)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while chunk := list(islice(rest, _CHUNK)):
            yield from zip(chunk, threads.map(grade_record, chunk), strict=True)


def _write(source: Path, put: Callable[[bytes], object], complain: Callable[[str], None]) -> Tally:
    tally = Tally()
    for record, (row, complaint, is_users) in _graded(read_records(source)):
        tally.total += 1
        tally.correct += bool(row["correct"])
        if complaint:
            tally.bad += 1
            tally.invalid += is_users
            complain(f"{Path(record.path).name}{record.where.removeprefix(record.path)}: {complaint}")
        put(_encoded(row))
    if tally.total == 0:
        raise DataError(f"{source}: is empty; expected rows with response, gold and answer_type")
    return tally


def grade_file(path: Path, out: Path | None, complain: Callable[[str], None]) -> Tally:
    """Grade a file of replies row by row into `out` (JSONL, written aside, then renamed); None is standard output.

    complain: is told of each line that cannot be judged; its output line carries the outcome "error". Raises
    `DataError` for a file that is not there, `UserError` for an output that is the input.
    """
    if not path.exists() or path.is_dir():
        raise DataError(f"{path}: no such file; expected JSONL with response, gold, answer_type and choices")
    if out is None:
        tally = _write(path, sys.stdout.buffer.write, complain)
        sys.stdout.flush()
        return tally
    if out.is_dir() or (out.exists() and out.samefile(path)):
        raise UserError(f"{out}: expected another file than the input and no folder; choose another --out")
    aside = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            tally = _write(path, file.write, complain)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    except OSError as error:
        raise XReasonerError(f"cannot write {out}: {error.strerror}; what was there before stays as it was") from error
    finally:
        aside.unlink(missing_ok=True)
    return tally
