"""Splitting a trace by string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xreasoner.trace import CLOSE, Label, Piece, Splitter, split


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


def _streamed(chunks: list[str], opened: bool = False) -> tuple[list[Piece], Piece | None]:
    """The pieces with equal neighbours joined, and the piece that only the end settled."""
    splitter, pieces = Splitter(opened), list[Piece]()
    for chunk in chunks:
        pieces += splitter.feed(chunk)
    left, trace = splitter.close()
    assert trace == split("".join(chunks))
    joined: list[Piece] = []
    for label, text in [*pieces, *left]:
        if joined and joined[-1][0] == label:
            joined[-1] = (label, joined[-1][1] + text)
        else:
            joined.append((label, text))
    return joined, left[0] if left else None


tagged = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<", "</", "th", " ", "ab"]), max_size=9
)


@given(parts=tagged, cuts=st.lists(st.integers(0, 60), max_size=12), opened=st.booleans())
def test_the_stream_does_not_depend_on_where_it_is_cut(parts: list[str], cuts: list[int], opened: bool) -> None:
    text = "".join(parts)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[a:b] for a, b in pairwise(ends)]
    assert _streamed(chunks, opened) == _streamed([text], opened) == _streamed(list(text), opened)


def _of(pieces: list[Piece], label: Label) -> str:
    return "".join(text for found, text in pieces if found == label).strip()


@given(thought=words, before=words, answer=words)
def test_the_stream_agrees_with_the_whole(thought: str, before: str, answer: str) -> None:
    for text in (f"<think>{thought}</think>{before}<answer>{answer}</answer>", f" <think>{thought}{CLOSE}{before}"):
        whole = split(text)
        pieces, _ = _streamed(list(text))
        assert _of(pieces, "thought") == whole.thought
        assert _of(pieces, "answer" if whole.tagged else "text") == whole.answer


def test_the_stream_holds_back_only_what_may_be_a_tag() -> None:
    splitter = Splitter()
    assert splitter.feed(" <thi") == []
    assert splitter.feed("nk> 3 < 4 </th") == [("thought", " 3 < 4 ")]
    assert splitter.feed("e end</think> so <answer>7</ans") == [
        ("thought", "</the end"),
        ("text", " so "),
        ("answer", "7"),
    ]
    assert splitter.close() == ([("answer", "</ans")], split(" <think> 3 < 4 </the end</think> so <answer>7</ans"))
