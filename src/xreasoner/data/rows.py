"""Your own data: questions with answers, or chat messages, one a row, in any format that `readers` reads.

Questions: `question` (or `prompt`, or Alpaca's `instruction` with `input`), `gold` (or `answer`), and for SFT
`response` (or `completion`, or Alpaca's `output`). Also read: `system` (put before the question), `id`, `answer_type`,
`options` or `choices` (a list, a list written as text, a mapping of labels, or the columns A, B, C, …; the gold is
then a label or one of the texts), `domain` (default: "general"), `meta`. A row with `image` or `images` is marked as an
image problem, which post-training refuses.

Messages: `messages` of {role, content}, `conversations` of {from, value}, or `prompt` and `completion` of such (TRL,
verl): one user's turn and one assistant's, and a system's before them if any, whose text is put before the user's, as
is that of a field `system`. `gold` and `answer_type` as above, for RL; verl's `reward_model.ground_truth` is a gold
too.

Fields that are not read are ignored, reported or refused by the rule in `fields`.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from xreasoner.data.fields import check_fields, check_message, says_nothing
from xreasoner.data.readers import Row, format_of
from xreasoner.data.sources import Rows, chain, table_of
from xreasoner.grading.rescoring import OPTION_COLUMNS, option_columns, option_texts
from xreasoner.problem import LABELS, AnswerType, Problem
from xreasoner.trace import CLOSE

_ROLES = {
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_SYSTEM = ("system", "system_prompt")
_ANSWERS = ("gold", "answer")
_COMMON = ("id", "answer_type", "options", "choices", "domain", "source", "family", "meta", "image", "images", *_SYSTEM)
_QUESTION = frozenset(
    [*_COMMON, *_ANSWERS, "question", "prompt", "instruction", "input", "response", "completion", "output"]
)
_MESSAGES = frozenset([*_COMMON, *_ANSWERS, "messages", "conversations", "prompt", "completion", "reward_model"])


def questions(options: dict[str, Any]) -> Rows:
    """The source `rows`. options: path, config, split, revision (see `table_of`)."""
    return Rows(table_of(options), _question, _QUESTION | OPTION_COLUMNS)


def messages(options: dict[str, Any]) -> Rows:
    """The source `messages`. options: path, config, split, revision."""
    return Rows(table_of(options), _chat, _MESSAGES | OPTION_COLUMNS)


def _question(row: Row) -> tuple[Problem, str]:
    asked = _one_of(row, ("question", "prompt", "instruction")) or "question"
    alpaca = asked == "instruction"
    replied = _one_of(row, ("response", "completion", *(["output"] if alpaca else [])))
    response = row.text(replied) if replied else ""
    gold = _gold(row)
    if gold is None:
        gold = row.text("gold") if not response else ""
    more = row.optional("input") if alpaca else ""
    question = "\n\n".join([*_system(row), row.text(asked), *([more] if more else [])])
    problem = _problem(row, question, gold)
    used = {asked, replied, *_ANSWERS, *_COMMON, *(["input"] if alpaca else [])}
    check_fields(row, used, "rows", (question, response))
    return problem, response


def _gold(row: Row) -> str | None:
    """The gold answer, None where the row has no such field; blank is missing too."""
    name = _one_of(row, _ANSWERS)
    if name:
        return row.text(name)
    present = next((name for name in _ANSWERS if name in row.values), None)
    return row.text(present) if present else None


def _one_of(row: Row, names: Sequence[str]) -> str:
    """The first of several names for one thing that has a value, "" if none has. Raises `DataError` for two values."""
    having = [name for name in names if row.has(name)]
    for other in having[1:]:
        if row.values[other] != row.values[having[0]]:
            raise row.wrong(other, row.values[other], f"no such field beside {having[0]!r}, or the same value")
    return having[0] if having else ""


def _system(row: Row) -> list[str]:
    """The text of a field `system`, [] where the row has none."""
    name = _one_of(row, _SYSTEM)
    return [row.text(name)] if name else []


def _problem(row: Row, question: str, gold: str) -> Problem:
    options = _options(row)
    kind: Any = row.optional("answer_type") or ("choice" if options else "number")
    if kind not in get_args(AnswerType):
        raise row.wrong("answer_type", kind, f"one of {', '.join(get_args(AnswerType))}")
    if kind == "choice" and options:
        gold = _label(row, _one_of(row, _ANSWERS) or "gold", gold, options)
    return Problem(
        id=row.optional("id") or row.name,
        question=question,
        gold=gold,
        answer_type=kind,
        options=options,
        domain=row.optional("domain") or "general",
        modality="text" if all(says_nothing(name, row.values.get(name)) for name in ("image", "images")) else "image",
        source=row.optional("source") or row.file,
        family=row.optional("family"),
        meta=_meta(row),
    )


def _options(row: Row) -> tuple[str, ...]:
    """The options of a field, or of columns for each."""
    name = _one_of(row, ("options", "choices"))
    if not name:
        columns, missing = option_columns(row.values)
        if missing:
            raise row.wrong(missing, row.values.get(missing), "an option before the last one that the row has")
        return tuple(row.text(column) for column in columns)
    try:
        options = option_texts(row.values[name])
    except ValueError as error:
        raise row.wrong(name, row.values[name], f"a list of at most {len(LABELS)} texts ({error})") from None
    if len(options) > len(LABELS):
        raise row.wrong(name, row.values[name], f"a list of at most {len(LABELS)} texts")
    return options


def _label(row: Row, name: str, gold: str, options: tuple[str, ...]) -> str:
    """The label of a gold, which the field `name` holds; a gold that is one option's text is that option."""
    if not gold or (len(gold.strip()) == 1 and gold.strip().upper() in LABELS[: len(options)]):
        return gold.strip().upper()
    if options.count(gold) == 1:
        return LABELS[options.index(gold)]
    expected = f"a label from A to {LABELS[len(options) - 1]}, or the text of one option"
    if gold.strip().isdecimal():
        expected += " (write a place among the options as its label: 0 or 1 may be the first)"
    raise row.wrong(name, gold, expected)


def _meta(row: Row) -> Mapping[str, Any]:
    found = row.values.get("meta") or {}
    if isinstance(found, str):  # Parquet has no free mappings
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(found)
    if not isinstance(found, Mapping):
        raise row.wrong("meta", found, "a mapping")
    return found


def _chat(row: Row) -> tuple[Problem, str]:
    field, turns = _turns(row)
    if not isinstance(turns, list) or not turns:
        raise row.wrong(field, turns, "a list of turns with role and content")
    parts = [_turn(row, f"{field}.{k}", turn) for k, turn in enumerate(turns)]
    roles = [role for role, _ in parts]
    shown = roles[1:] if roles[0] == "system" else roles
    if shown not in (["user"], ["user", "assistant"]):
        raise row.wrong(field, roles, "one user's turn and one assistant's, after a system's if there is one")
    inside, beside = [text for role, text in parts if role == "system" and text], _system(row)
    if inside and beside and inside != beside:
        raise row.wrong("system", beside[0], f"the text of the system message in {field!r}, or no such field")
    question = "\n\n".join([*(beside or inside), *(text for role, text in parts if role == "user")])
    response = next((text for role, text in parts if role == "assistant"), "")
    name = _one_of(row, _ANSWERS)
    gold = row.text(name) if name else ""
    if not gold and "reward_model" in row.values:
        gold = row.text("reward_model.ground_truth")
    problem = _problem(row, question, gold)
    used = {field, *_ANSWERS, *_COMMON, "reward_model", *(["completion"] if field == "prompt" else [])}
    check_fields(row, used, "messages", (question, response))
    return problem, response


def _turns(row: Row) -> tuple[str, Any]:
    """The field that holds the turns, and them."""
    field = next((name for name in ("messages", "conversations", "prompt") if row.has(name)), "messages")
    turns, reply = row.values.get(field), row.values.get("completion")
    if isinstance(turns, str) and turns.lstrip().startswith("[") and format_of(row.path) in ("csv", "tsv"):
        for parse in (json.loads, ast.literal_eval):  # a CSV file has no lists
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                turns = parse(turns)
                break
    if field == "prompt" and isinstance(turns, list) and isinstance(reply, list):
        return field, [*turns, *reply]
    if field == "prompt" and row.has("completion"):
        raise row.wrong("completion", reply, "a list of messages, as `prompt` is one")
    return field, turns


def _turn(row: Row, field: str, turn: Any) -> tuple[str, str]:
    """(role, text); an assistant's reasoning kept in a field of its own becomes a thought in tags."""
    if not isinstance(turn, Mapping):
        raise row.wrong(field, turn, "a turn with role and content")
    role = _ROLES.get(str(turn.get("role", turn.get("from"))))
    if role is None:
        raise row.wrong(f"{field}.role", turn.get("role", turn.get("from")), f"one of {', '.join(_ROLES)}")
    check_message(row, field, turn)
    text = turn.get("content", turn.get("value"))
    if isinstance(text, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in text):
        text = "".join(str(part.get("text") or "") for part in text)
    if role == "system" and (text is None or (isinstance(text, str) and not text.strip())):
        return role, ""  # a system message that says nothing
    if not isinstance(text, str) or not text.strip():
        raise row.wrong(f"{field}.content", text, "text (post-training is text only)")
    thought = next((turn[name] for name in ("reasoning_content", "reasoning", "thinking") if turn.get(name)), "")
    if thought and (not isinstance(thought, str) or role != "assistant"):
        raise row.wrong(f"{field}.reasoning", thought, "text, in an assistant's message")
    return role, chain(thought, text) if thought and CLOSE not in text else text
