"""Splitting a trace by string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xreasoner.trace import split


@pytest.mark.parametrize(
    ("text", "thought", "answer", "closed"),
    [
        ("<think> a </think> <answer>B: 14</answer>", "a", "B: 14", True),
        ("a </think> <answer>7</answer>", "a", "7", True),  # a missing opening tag
        ("<think> a and on", "a and on", "", False),  # a trace that never closes
        ("<think> a </think> plain", "a", "plain", True),
        ("<answer>7</answer>", "", "7", True),
        ("just text", "", "just text", True),
        ("<think> a </think> <think> b </think> <answer>7</answer>", "a </think> <think> b", "7", True),
        ("<think> a </think> <answer>7", "a", "7", True),
        ("", "", "", True),
    ],
)
def test_split(text: str, thought: str, answer: str, closed: bool) -> None:
    trace = split(text)
    assert (trace.thought, trace.answer, trace.closed) == (thought, answer, closed)


words = st.text(alphabet="abc <>/", max_size=30)


@given(thought=words, answer=words)
def test_whatever_was_thought_the_answer_comes_back(thought: str, answer: str) -> None:
    found = split(f"<think>{thought}</think><answer>{answer}</answer>")
    assert found.closed
    assert found.answer == answer.strip()
    assert found.thought == thought.strip()
