"""`xreasoner batch`: a file of OpenAI batch lines in, a file of answers out, each line answered once whatever happens.

An answer is appended in one write, so a killed run leaves at most one torn line, which the next run cuts off. What is
answered already is known by its line's number, and is not asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from xreasoner.completion import Completion
from xreasoner.data.readers import BadRow, read_records
from xreasoner.decisions import decide
from xreasoner.engines.base import Request
from xreasoner.engines.driving import finished
from xreasoner.errors import DataError, EngineError, UserError, reason
from xreasoner.media import Guard
from xreasoner.reasoner import Reasoner
from xreasoner.serving.chat_request import ChatRequest, RequestRules, parse_request, reply_body
from xreasoner.serving.openai_schema import BATCH_FIELDS

URL = "/v1/chat/completions"
FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input. problem: why it cannot be asked, "" for a good one."""

    number: int
    custom_id: str | None
    body: Any
    problem: str = ""

    @property
    def id(self) -> str:
        return f"batch_req_{self.number}"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a batch file, blank ones omitted; one that cannot be read says why."""
    seen: dict[str, int] = {}
    for record in read_records(path):
        if isinstance(record, BadRow):
            yield Line(record.number, None, None, record.reason)
        else:
            yield _line(record.number, record.values, seen)


def _line(number: int, row: Mapping[str, Any], seen: dict[str, int]) -> Line:
    if list(row) == [str(k) for k in range(len(row))]:  # the reader's names for a list's items
        return Line(number, None, None, "found list, expected an object")
    custom_id = row.get("custom_id")
    known = custom_id if isinstance(custom_id, str) else None
    unknown = [name for name in row if name not in FIELDS]
    problem = ""
    if not known:
        problem = f"custom_id: found {str(custom_id)[:60]!r}, expected a text"
    elif known in seen:
        problem = f"custom_id: {known[:60]!r} is that of line {seen[known]} too; expected every line to have its own"
    elif unknown:
        problem = f"{unknown[0]}: unsupported field; supported: {', '.join(FIELDS)}"
    elif row.get("method", "POST") != "POST" or row.get("url", URL) != URL:
        problem = f"found {row.get('method')} {row.get('url')}; expected POST {URL}"
    if known:
        seen.setdefault(known, number)
    return Line(number, known, row.get("body"), problem)


FAILED = "server_error"
"""The code of a request that failed in the engine."""
GIVE_UP = 32
"""Requests that fail one after the other before the rest is given up."""


@dataclass(slots=True)
class Outcome:
    """What a run did. total: lines of the input; before: answered by earlier runs; refused: numbers of bad lines.

    reasons: why each of them was refused, with its number ("line 3: …").
    failed: lines whose request failed in the engine, with their errors; the next run asks them again.
    """

    total: int
    before: int
    answered: int
    refused: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    failed: list[tuple[Line, Exception]] = field(default_factory=list)


def run_batch(
    reasoner: Reasoner,
    source: Path,
    out: Path,
    guard: Guard,
    show: Callable[[int, int], None] = lambda done, total: None,
    *,
    prompt: str = "default",
) -> Outcome:
    """Answer every line of `source` that `out` has no answer to. show(done, total) after each.

    prompt: how the last user message is put where a line does not say it (`chat_request.RequestRules`).

    A request that fails ends no other. It has an error with the code `server_error` at the end of `out`, where the
    next run drops it and asks again.

    Raises `DataError` where `out` belongs to another input, `UserError` where another run writes it, `EngineError`
    where the model cannot continue, or a request's own error where `GIVE_UP` fail one after the other; what is answered
    stays in `out`.
    """
    lines = {line.number: line.custom_id for line in read_lines(source)}
    if not lines:
        raise DataError(f"{source}: is empty; expected one OpenAI batch object a line")
    with _locked(out) as file:
        answered, reasons = _answered(file, out, lines)
        outcome = Outcome(len(lines), len(answered), 0, list(reasons), reasons)
        waiting = (line for line in read_lines(source) if line.number not in answered)
        rules, in_a_row = RequestRules(prompt, fields=BATCH_FIELDS, any_model=True), 0
        requests = _asked(reasoner, guard, rules, waiting, file, outcome, show)
        for (line, asked), result in finished(reasoner.engine, requests):
            answer = result if isinstance(result, Exception) else _body(reasoner, asked, result)
            if not isinstance(answer, Exception) or isinstance(answer, UserError):
                in_a_row = 0
                _write(file, line, answer, outcome)
            else:
                in_a_row += 1
                if isinstance(answer, EngineError) or in_a_row >= GIVE_UP:
                    raise answer
                outcome.failed.append((line, answer))
            show(outcome.before + outcome.answered, outcome.total)
        outcome.failed.sort(key=lambda pair: pair[0].number)
        for line, error in outcome.failed:  # last, so that the next run can cut them off
            _write(file, line, error, outcome)
    outcome.refused.sort()
    return outcome


def _asked(
    reasoner: Reasoner,
    guard: Guard,
    rules: RequestRules,
    lines: Iterator[Line],
    file: IO[bytes],
    outcome: Outcome,
    show: Callable[[int, int], None],
) -> Iterator[tuple[tuple[Line, ChatRequest], Request]]:
    """The requests of the good lines; bad ones are answered at once."""
    for line in lines:
        try:
            if line.problem:
                raise UserError(line.problem)
            asked = parse_request(line.body, reasoner, guard, rules)
            yield (line, asked), asked.request
        except UserError as error:
            _write(file, line, error, outcome)
            show(outcome.before + outcome.answered, outcome.total)


def _body(reasoner: Reasoner, asked: ChatRequest, completions: list[Completion]) -> dict[str, Any] | Exception:
    """The service's reply to the same request, or why its options have no probabilities."""
    decision = None
    if asked.options:
        try:
            with suppress(UserError):  # a server that does not score
                decision = decide(reasoner.engine, asked.request, completions[0], asked.options)
        except Exception as error:
            return error
    return reply_body(reasoner, asked, completions, decision)


def _write(file: IO[bytes], line: Line, result: dict[str, Any] | Exception, outcome: Outcome) -> None:
    """Append an answer, whole or not at all."""
    response = error = None
    if isinstance(result, UserError):
        error = {"code": "invalid_request_error", "message": f"line {line.number}: {result}", "line": line.number}
        outcome.refused.append(line.number)
        outcome.reasons[line.number] = str(error["message"])
    elif isinstance(result, Exception):
        error = {"code": FAILED, "message": f"line {line.number}: {reason(result)}", "line": line.number}
    else:
        response = {"status_code": 200, "request_id": line.id, "body": result}
    row = {"id": line.id, "custom_id": line.custom_id, "response": response, "error": error}
    try:
        data = json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair is JSON, and no text
        data = json.dumps(row).encode()
    file.write(data + b"\n")
    file.flush()
    os.fsync(file.fileno())
    outcome.answered += error is None or error["code"] != FAILED


def _locked(out: Path) -> IO[bytes]:
    """The output, open for one run alone."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; expected a file's name, such as {out / 'answers.jsonl'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{out}: another run is writing it; wait for its end, or choose another -o") from None
    return file


def _answered(file: IO[bytes], out: Path, lines: dict[int, str | None]) -> tuple[set[int], dict[int, str]]:
    """Numbers of the lines that have an answer, and why some were refused.

    A torn last line is cut off, and so are the requests at the end that failed.
    """
    file.seek(0)
    answered: set[int] = set()
    reasons: dict[int, str] = {}
    whole = 0
    for number, data in enumerate(file, 1):
        if not data.endswith(b"\n"):
            file.truncate(whole)
            break
        try:
            row = json.loads(data)
            line = int(row["id"].removeprefix("batch_req_"))
            if lines[line] != row["custom_id"]:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{out}:{number}: is no answer to a line of this input; choose another -o") from None
        if isinstance(row["error"], dict) and row["error"].get("code") == FAILED:
            file.truncate(whole)
            break
        whole += len(data)
        answered.add(line)
        if row["error"] is not None:
            error = row["error"]
            reasons[line] = str(error.get("message", error) if isinstance(error, dict) else error)
    return answered, reasons
