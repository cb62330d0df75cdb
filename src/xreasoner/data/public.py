"""The public data sets of the paper, each read by its true schema: OpenThoughts-114k, Orz-57k, MedQA and MedMCQA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xreasoner.data.readers import Row
from xreasoner.data.sources import Rows, boxed, chain, table_of
from xreasoner.errors import RecipeError
from xreasoner.grading.numbers import read_number
from xreasoner.problem import LABELS, AnswerType, Problem

OPENTHOUGHTS = "open-thoughts/OpenThoughts-114k"
ORZ = "Open-Reasoner-Zero/orz_math_57k_collection"
MEDQA = "GBaker/MedQA-USMLE-4-options"
MEDMCQA = "openlifescienceai/medmcqa"

_MARKED = re.compile(
    r"<\|begin_of_thought\|>(?P<thought>.*)<\|end_of_thought\|>\s*"
    r"<\|begin_of_solution\|>(?P<solution>.*?)(?:<\|end_of_solution\|>\s*)?$",
    re.DOTALL,
)


def openthoughts(options: dict[str, Any]) -> Rows:
    """The source `openthoughts`. options: path (the hub's when left out), config (`default` or `metadata`), revision.

    `default` has R1's chain between markers and no gold answer; `metadata` has the chain in two fields, and for
    mathematics the gold that stands in the reference solution's box. R1's own system prompt is left out: the recipe's
    prompt takes its place.
    """
    config = options.get("config", "default")
    if config not in ("default", "metadata"):
        raise RecipeError(f"data.options.config: found {config!r}, expected 'default' or 'metadata'")
    return Rows(table_of(options, OPENTHOUGHTS), _thoughts if config == "default" else _thoughts_metadata)


def _thoughts(row: Row) -> tuple[Problem, str]:
    turns = row.values.get("conversations")
    if not isinstance(turns, list) or [_side(turn) for turn in turns] != ["user", "assistant"]:
        raise row.wrong("conversations", turns, "a user's and an assistant's turn, each with from and value")
    question, reply = (str(turn["value"]) for turn in turns)
    marked = _MARKED.search(reply)
    if marked is None:
        raise row.wrong(
            "conversations.1.value", reply, "<|begin_of_thought|> … <|end_of_thought|> <|begin_of_solution|> …"
        )
    return _mathematics(row, question, "", ""), chain(marked["thought"], marked["solution"])


def _side(turn: Any) -> Any:
    return turn.get("from") if isinstance(turn, Mapping) and isinstance(turn.get("value"), str) else None


def _thoughts_metadata(row: Row) -> tuple[Problem, str]:
    question, starter = row.text("problem"), row.optional("starter_code")
    family = row.text("domain")
    gold = boxed(row.optional("ground_truth_solution")) if family == "math" else ""
    response = chain(row.text("deepseek_reasoning"), row.text("deepseek_solution"), gold)
    return _mathematics(row, f"{question}\n{starter}" if starter else question, gold, family), response


def orz(options: dict[str, Any]) -> Rows:
    """The source `orz`: Orz-57k, a list of [{from: human, value}, {from: assistant, ground_truth: {value}}]."""
    return Rows(table_of(options, ORZ), _pair)


def _pair(row: Row) -> tuple[Problem, str]:
    human, assistant = row.values.get("0"), row.values.get("1")
    if not isinstance(human, Mapping) or human.get("from") != "human" or not isinstance(human.get("value"), str):
        raise row.wrong("0", human, "{from: human, value: …}")
    if not isinstance(assistant, Mapping) or not isinstance(assistant.get("ground_truth"), Mapping):
        raise row.wrong("1", assistant, "{from: assistant, ground_truth: {value: …}}")
    return _mathematics(row, row.text("0.value"), row.text("1.ground_truth.value"), "math"), ""


def _mathematics(row: Row, question: str, gold: str, family: str) -> Problem:
    return Problem(
        id=row.name,
        question=question,
        gold=gold,
        answer_type=mathematical(gold),
        source=row.file,
        family=family,
    )


def mathematical(gold: str) -> AnswerType:
    """How a mathematical gold is compared: a plain number as a number, all else as an expression."""
    found = read_number(gold)
    return "number" if found is not None and not found[1].strip() else "latex"


def medqa(options: dict[str, Any]) -> Rows:
    """The source `medqa`: options as a mapping of labels (4 options) or a list of {key, value} (5), `answer_idx`."""
    return Rows(table_of(options, MEDQA), _usmle)


def _usmle(row: Row) -> tuple[Problem, str]:
    found = row.values.get("options")
    if isinstance(found, list) and all(isinstance(o, Mapping) and "key" in o and "value" in o for o in found):
        found = {option["key"]: option["value"] for option in found}
    if not isinstance(found, Mapping) or not found or sorted(found) != list(LABELS[: len(found)]):
        raise row.wrong("options", found, "the options by their labels A, B, C, …")
    gold = row.choice("answer_idx", sorted(found))
    if row.text("answer").strip() != str(found[gold]).strip():
        raise row.wrong("answer", row.values["answer"], f"the text of option {gold}, {found[gold]!r}")
    return _medical(row, tuple(str(found[label]) for label in sorted(found)), gold, "medqa"), ""


def medmcqa(options: dict[str, Any]) -> Rows:
    """The source `medmcqa`: opa to opd, and `cop`, counted from `first` (0 in the data set's own copy, 1 in others)."""
    first = options.get("first", 0)
    if first not in (0, 1):
        raise RecipeError(f"data.options.first: found {first!r}, expected 0 or 1")
    return Rows(table_of(options, MEDMCQA, own=("first",)), lambda row: _mcqa(row, first))


def _mcqa(row: Row, first: int) -> tuple[Problem, str]:
    options = tuple(row.text(name) for name in ("opa", "opb", "opc", "opd"))
    right = row.values.get("cop")
    if not isinstance(right, int) or not 0 <= right - first < 4:
        raise row.wrong("cop", right, f"a number from {first} to {first + 3} (the test split has none)")
    return _medical(row, options, LABELS[right - first], "medmcqa"), ""


def _medical(row: Row, options: tuple[str, ...], gold: str, source: str) -> Problem:
    return Problem(
        id=row.optional("id") or row.name,
        question=row.text("question"),
        gold=gold,
        answer_type="choice",
        options=options,
        domain="clinical",
        source=source,
        family=row.optional("subject_name"),
    )
