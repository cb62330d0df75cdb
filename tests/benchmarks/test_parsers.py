"""The published rules on replies whose treatment is known, faults included, and the spread over stored replies."""

from __future__ import annotations

from typing import Any

import pytest

from xreasoner.benchmarks import parsers
from xreasoner.benchmarks.parsers import Case

FRUIT = ("apple", "ripe banana", "cherry", "date")
RULES = {rule.name: rule for rule in parsers.RULES}


def credit(rule: str, text: str, gold: str = "B", **more: Any) -> parsers.Credit:
    more.setdefault("answer_type", "choice" if gold in "ABCD" else "integer")
    return RULES[rule].read(Case(text, gold, FRUIT if more["answer_type"] == "choice" else (), **more))


@pytest.mark.parametrize(
    ("rule", "text", "value", "guessed"),
    [
        ("strict", "<think>x</think> <answer>B</answer>", 1, False),
        ("strict", "<think>x</think><answer>B: ripe banana</answer>", 1, False),
        ("strict", "The answer is B.", 0, False),
        ("strict", "<answer>B</answer> or so", 0, False),
        ("strict", "<think><answer>B</answer></think> none", 0, False),
        ("MMMU", "(A) is wrong, so (B)", 1, False),  # the last of several
        ("MMMU", "It is B", 1, False),
        ("MMMU", "It is (B).", 1, False),
        ("MMMU", "It is B. ", 0.25, True),  # "B." holds no " B ": the rule guesses
        ("MMMU", "I would say it must be a ripe banana here", 1, False),
        ("MMMU", "ripe banana", 0.25, True),  # five words or fewer: a guess
        ("MMMU", "A note: ripe banana it is, surely", 0, False),  # the article "A" is taken for an option
        ("MMMU", "", 0.25, True),
        ("MMMU-Pro", "Answer: B", 1, False),
        ("MMMU-Pro", "Answer: B. DNA polymerase Adds bases", 0, False),  # capitals in the text; "A " of "DNA " wins
        ("MMMU-Pro", "", 0.25, True),
        ("MMLU-Pro", "the answer is (A). No, the answer is (B)", 0, False),  # the first match holds
        ("MMLU-Pro", "Answer: B", 1, False),
        ("MMLU-Pro", "A or maybe B", 1, False),
        ("MMLU-Pro", "no idea", 0.25, True),
        ("MathVista", "<think>..</think><answer>(B)</answer>", 1, False),
        ("MathVista", "<answer>a ripe banana</answer>", 1, True),  # the nearest string
        ("MathVista", "<answer>ripe banana</answer>", 1, False),
    ],
)
def test_options(rule: str, text: str, value: float, guessed: bool) -> None:
    found = credit(rule, text)
    assert (found.value, found.guessed) == (value, guessed)


def test_an_empty_reply_gets_the_nearest_option_from_mathvista_and_nothing_from_the_strict() -> None:
    assert credit("MathVista", "", gold="D") == parsers.Credit(1.0, guessed=True)  # "date" is the shortest
    assert credit("MathVista", "", gold="B").value == 0
    for rule in ("strict", "GSM8K", "GSM8K, flexible"):
        assert credit(rule, "", gold="7").value == 0
    assert credit("MMMU", "", gold="7").value == 0


@pytest.mark.parametrize(
    ("rule", "text", "gold", "kind", "value"),
    [
        ("GSM8K", "so\n#### 1,234", "1234", "integer", 1),
        ("GSM8K", "it is 1234", "1234", "integer", 0),
        ("GSM8K", "#### 29.00", "29", "integer", 0),
        ("GSM8K, flexible", "It costs $29.", "29", "integer", 1),
        ("GSM8K, flexible", "It costs $29.00", "29", "integer", 0),  # a known fault of that rule
        ("GSM8K, flexible", "12 apples, then 15", "15", "integer", 1),
        ("MMMU", "The total is 42", "42", "integer", 1),
        ("MMMU", "42 or 17", "42", "integer", 1),  # any number in the last part counts
        ("MMMU", "The answer is not ATP but GTP.", "ATP", "text", 1),  # the gold as a substring of a denial
        ("MMMU", "The answer is GTP.", "ATP", "text", 0),
        ("MMMU", "The answer is two.", "['two', '2']", "text", 1),  # a list of golds: any of them
        ("MMMU", "The answer is 2", "['two', '2']", "text", 1),
        ("MMMU", "The answer is three.", "['two', '2']", "text", 0),
        ("MathVista", "<answer>14.7</answer>", "14", "integer", 1),  # cut off, not rounded
        ("MathVista", "<answer>1.23</answer>", "1.2", "number", 1),
        ("MathVista", "<answer>no number</answer>", "14", "integer", 0),
        ("strict", "<answer>42</answer>", "42", "integer", 1),
        ("strict", "<answer>42.0</answer>", "42", "integer", 0),
    ],
)
def test_free_answers(rule: str, text: str, gold: str, kind: str, value: float) -> None:
    case = Case(text, gold, (), kind, 1 if kind == "number" else None)
    assert RULES[rule].read(case).value == value


def test_the_spread_leaves_out_rules_that_read_nothing() -> None:
    def row(number: int, response: str, **more: Any) -> dict[str, Any]:
        named = {"bench": "b", "id": str(number), "options": [], "answer_type": "integer", "gold": "5"}
        return {**named, "response": response, "correct": response.endswith("<answer>5</answer>"), **more}

    rows = [row(i, "<answer>5</answer>") for i in range(6)] + [
        row(i, "5 then <answer>4</answer>") for i in range(6, 10)
    ]
    options = {"options": list(FRUIT), "gold": "A", "answer_type": "choice", "correct": False}
    rows.append(row(10, "", **options))
    choice, number = parsers.spread(rows)
    assert (number["kind"], number["n"]) == ("number", 10)
    scores = {entry["rule"]: entry["score"] for entry in number["rules"]}
    assert scores["ours"] == scores["strict"] == scores["GSM8K, flexible"] == 0.6
    assert scores["GSM8K"] == 0
    assert number["spread"] == max(scores.values()) - 0.6
    assert number["error"] == pytest.approx(0.26, abs=0.02)
    empty = {entry["rule"]: (entry["empty"], entry["guessed"], entry["read"]) for entry in choice["rules"]}
    assert empty["ours"] == empty["strict"] == (0, 0, 0)
    assert empty["MMMU"] == (0.25, 1, 0)
