"""The grader on any bytes: every reply gets a verdict, in under a second, and memory stays flat."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

from fuzz.budget import fuzz
from hypothesis import strategies as st

from xreasoner.grading import judge
from xreasoner.grading.rescoring import grade_line
from xreasoner.problem import AnswerType, Problem
from xreasoner.verdict import Verdict

OUTCOMES = {"correct", "wrong", "truncated", "unparsed", "refused", "conflict", "error"}
PROBLEMS: list[tuple[AnswerType, str, tuple[str, ...], str]] = [
    ("choice", "B", ("12 cm", "14 cm", "2\\frac{2}{3}", "same", "same"), "Which?"),
    ("choice", "same", ("same", "same", "other"), "Which?"),
    ("integer", "14", (), "How many?"),
    ("number", "2 2/3", (), "How much?"),
    ("quantity", "5 m/s", (), "How fast?"),
    ("yesno", "no", (), "Is there a left pleural effusion in the image?"),
    ("yesno", "no", (), "?"),
    ("list", "[3, 5]", (), "Which range?"),
    ("text", "1 1/2 cups", (), "How much?"),
]
CASES = Path(__file__).parent.parent / "grading" / "hard_cases.jsonl"
REPLIES = [str(json.loads(line)["response"]) for line in CASES.read_text().splitlines()[::7]]
PIECES = (
    "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "**", "$", "\\frac", "{2}", " or ", "not ", "no ",
    "sign of ", "between ", "3–5", "2⅔", "²⁄₃", "（Ｂ）", "【", "「", "答案：", "정답은 ", "الإجابة ", "A: 12 cm\n",
    "B) 14 cm\n", "\n", ". ", "1e9", "/0", "厘米", "万", "\x00", "\u202e", "\ud7ff", "🅱", "= ", "(", "[", "^", "_", "~",
    "\\", "%", "1,", "and ", "?", "!",
)  # fmt: skip
replies = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.lists(st.sampled_from(PIECES), max_size=25).map(lambda parts: "".join(parts).encode()),
    st.tuples(st.sampled_from(REPLIES), st.integers(0, 80), st.text(max_size=6)).map(
        lambda drawn: (drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]).encode()
    ),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 3000)).map(lambda drawn: (drawn[0] * drawn[1]).encode()),
)


def fuzz_grader(data: bytes) -> None:
    """Judge the bytes as a reply to one problem of each kind that needs no worker. Raises nothing."""
    text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    for kind, gold, options, question in PROBLEMS:
        verdict = judge(Problem("p", question, gold, kind, options), text)
        assert isinstance(verdict, Verdict)
        assert verdict.outcome in OUTCOMES - {"error"}, (kind, verdict)
    if len(data) % 8 == 0:  # a worker process judges mathematics, and may need its whole second
        assert judge(Problem("p", "Solve.", "\\frac{8}{3}", "latex"), text).outcome in OUTCOMES


def fuzz_grade_line(data: bytes) -> None:
    """Grade the bytes as one line of a file. Raises nothing; a line that is none is an error that says so."""
    row, complaint = grade_line(data)
    assert row["outcome"] in OUTCOMES
    assert (row["outcome"] == "error") == bool(complaint)


def rows() -> st.SearchStrategy[bytes]:
    values: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.lists(st.text(max_size=5), max_size=4),
    )
    kinds = st.sampled_from(
        ["mcq", "integer", "numeric", "quantity", "yesno", "open", "list", "float:2", "list:1", "x"]
    )
    row = st.fixed_dictionaries(
        {
            "response": st.one_of(values, st.sampled_from(PIECES)),
            "gold": values,
            "answer_type": st.one_of(kinds, values),
        },
        optional={
            "choices": values,
            "options": values,
            "question": values,
            "meta": values,
            "id": values,
            "exit": values,
        },
    )
    return st.one_of(row.map(lambda each: json.dumps(each).encode()), st.binary(max_size=100))


def test_fuzz_grader() -> None:
    assert fuzz(fuzz_grader, replies) > 0


def test_fuzz_grade_line() -> None:
    assert fuzz(fuzz_grade_line, rows()) > 0


def test_grading_keeps_no_memory() -> None:
    def used() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def some(start: int) -> None:
        for n in range(start, start + 150):
            fuzz_grader(f"{REPLIES[n % len(REPLIES)]} {n} 厘米 answer: {n}".encode())

    some(0)
    tracemalloc.start()
    some(1000)
    before = used()
    some(2000)
    assert used() - before < 1_000_000
    tracemalloc.stop()
