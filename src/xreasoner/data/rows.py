"""Your own data: questions with answers, or chat messages, one a row, in JSONL, JSON, CSV or Parquet.

Questions: `question` (or `prompt`), `gold` (or `answer`), and for SFT `response` (or `completion`). Also read: `id`,
`answer_type`, `options` (a list of texts; the gold is then a label or one of the texts), `domain` ("general" when left
out), `meta`. A row with `image` or `images` is marked as a picture problem, which post-training refuses.

Messages: `messages` of {role, content}, `conversations` of {from, value}, or `prompt` and `completion` of such (TRL,
verl): one user's turn and one assistant's, and a system's before them if there is one, whose text is put before the
user's. `gold` and `answer_type` as above, for RL; verl's `reward_model.ground_truth` is a gold too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, get_args

from xreasoner.data.sources import Rows, chain, table_of
from xreasoner.data.tables import Row
from xreasoner.problem import LABELS, AnswerType, Problem
from xreasoner.trace import CLOSE

_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def questions(options: dict[str, Any]) -> Rows:
    """The source `rows`. options: path, config, split, revision (see `table_of`)."""
    return Rows(table_of(options), _question)


def messages(options: dict[str, Any]) -> Rows:
    """The source `messages`. options: path, config, split, revision."""
    return Rows(table_of(options), _chat)


def _question(row: Row) -> tuple[Problem, str]:
    name = "prompt" if "question" not in row.values and "prompt" in row.values else "question"
    response = row.optional("response") or row.optional("completion")
    gold = "answer" if "gold" not in row.values and "answer" in row.values else "gold"
    return _problem(row, row.text(name), row.text(gold) if gold in row.values or not response else ""), response


def _problem(row: Row, question: str, gold: str) -> Problem:
    options = _options(row)
    kind: Any = row.values.get("answer_type") or ("choice" if options else "number")
    if kind not in get_args(AnswerType):
        raise row.wrong("answer_type", kind, f"one of {', '.join(get_args(AnswerType))}")
    if kind == "choice" and options:
        gold = _label(row, gold, options)
    return Problem(
        id=row.optional("id") or row.name,
        question=question,
        gold=gold,
        answer_type=kind,
        options=options,
        domain=row.optional("domain") or "general",
        modality="image" if row.values.get("image") or row.values.get("images") else "text",
        source=row.optional("source") or row.file,
        family=row.optional("family"),
        meta=_meta(row),
    )


def _options(row: Row) -> tuple[str, ...]:
    found = row.values.get("options")
    if found is None:
        return ()
    if (
        not isinstance(found, list)
        or len(found) > len(LABELS)
        or not all(isinstance(o, str | int | float) for o in found)
    ):
        raise row.wrong("options", found, f"a list of at most {len(LABELS)} texts")
    return tuple(map(str, found))


def _label(row: Row, gold: str, options: tuple[str, ...]) -> str:
    """The gold's label; a gold that is one option's text is that option."""
    if not gold or (len(gold.strip()) == 1 and gold.strip().upper() in LABELS[: len(options)]):
        return gold.strip().upper()
    if options.count(gold) == 1:
        return LABELS[options.index(gold)]
    raise row.wrong("gold", gold, f"a label from A to {LABELS[len(options) - 1]}, or the text of one option")


def _meta(row: Row) -> Mapping[str, Any]:
    found = row.values.get("meta") or {}
    if isinstance(found, str):  # Parquet has no free mappings
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(found)
    if not isinstance(found, Mapping):
        raise row.wrong("meta", found, "a mapping")
    return found


def _chat(row: Row) -> tuple[Problem, str]:
    field, turns = _turns(row)
    if not isinstance(turns, list) or not turns:
        raise row.wrong(field, turns, "a list of turns with role and content")
    said = [_turn(row, f"{field}.{k}", turn) for k, turn in enumerate(turns)]
    roles = [role for role, _ in said]
    shown = roles[1:] if roles[0] == "system" else roles
    if shown not in (["user"], ["user", "assistant"]):
        raise row.wrong(field, roles, "one user's turn and one assistant's, after a system's if there is one")
    question = "\n\n".join(text for role, text in said if role != "assistant")
    response = next((text for role, text in said if role == "assistant"), "")
    gold = row.optional("gold") or row.optional("answer")
    if not gold and "reward_model" in row.values:
        gold = row.text("reward_model.ground_truth")
    return _problem(row, question, gold), response


def _turns(row: Row) -> tuple[str, Any]:
    """The field that holds the turns, and them."""
    field = next((name for name in ("messages", "conversations", "prompt") if name in row.values), "messages")
    turns, reply = row.values.get(field), row.values.get("completion")
    if field == "prompt" and isinstance(turns, list) and isinstance(reply, list):
        return field, [*turns, *reply]
    return field, turns


def _turn(row: Row, field: str, turn: Any) -> tuple[str, str]:
    """(role, text); an assistant's reasoning kept in a field of its own becomes a thought in tags."""
    if not isinstance(turn, Mapping):
        raise row.wrong(field, turn, "a turn with role and content")
    role = _ROLES.get(str(turn.get("role", turn.get("from"))))
    if role is None:
        raise row.wrong(f"{field}.role", turn.get("role", turn.get("from")), f"one of {', '.join(_ROLES)}")
    text = turn.get("content", turn.get("value"))
    if isinstance(text, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in text):
        text = "".join(str(part.get("text", "")) for part in text)
    if not isinstance(text, str) or not text.strip():
        raise row.wrong(f"{field}.content", text, "text (post-training is text only)")
    thought = turn.get("reasoning_content") or turn.get("reasoning") or ""
    return role, chain(str(thought), text) if role == "assistant" and thought and CLOSE not in text else text
