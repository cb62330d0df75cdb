"""Splitting a trace by string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xreasoner.trace import ANSWER_OPEN, CLOSE, Label, Piece, Splitter, split


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
        # tags quoted inside the thought
        ("<think> I write <answer>B</answer> </think> <answer>C</answer>", "I write <answer>B</answer>", "C", True),
        ("<think> <think> and </think> </think> <answer>C</answer>", "<think> and </think>", "C", True),
        ("<think> it says <answer>", "it says <answer>", "", False),
        # a second block, before and after the answer
        ("<think> a </think> <answer>A</answer> <think> b </think> <answer>B</answer>", None, "B", True),
        ("a <think> b </think> <answer>7</answer>", "a <think> b", "7", True),
        ("<think> a </think> <answer>A</answer> no: <answer>B</answer>", "a", "B", True),
        (" \n<think>\na\n</think>\n\n<answer>\n7\n</answer>\n", "a", "7", True),
        ("</think>", "", "", True),
        ("<think></think><answer></answer>", "", "", True),
    ],
)
def test_split(text: str, thought: str | None, answer: str, closed: bool) -> None:
    trace = split(text)
    assert (trace.answer, trace.closed) == (answer, closed)
    assert thought is None or trace.thought == thought


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


quoted = st.lists(st.sampled_from(["<think>", "<answer>", "</answer>", "<", " ", "a", "/"]), max_size=8).map("".join)


@given(thought=quoted, answer=words, cuts=st.lists(st.integers(0, 90), max_size=12))
def test_tags_quoted_inside_the_thought_stay_there(thought: str, answer: str, cuts: list[int]) -> None:
    text = f"<think>{thought}</think> <answer>{answer}</answer>"
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces, _ = _streamed([text[a:b] for a, b in pairwise(ends)])
    assert _of(pieces, "thought") == split(text).thought == thought.strip()
    assert _of(pieces, "answer") == split(text).answer == answer.strip()


@given(thought=quoted, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_a_thought_that_never_closes_is_no_answer_however_it_is_cut(thought: str, cuts: list[int]) -> None:
    text = f"<think>{thought}"
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces, _ = _streamed([text[a:b] for a, b in pairwise(ends)])
    assert {label for label, _ in pieces} <= {"thought"}
    found = split(text)
    assert (found.thought, found.answer, found.closed) == (thought.strip(), "", False)


@given(thought=words, answer=words)
def test_a_template_that_opens_the_thought_is_streamed_as_one(thought: str, answer: str) -> None:
    text = f"{thought}</think><answer>{answer}</answer>"
    pieces, _ = _streamed(list(text), opened=True)
    assert _of(pieces, "thought") == split(text).thought
    assert _of(pieces, "answer") == answer.strip()


@given(first=words, second=words, answer=words)
def test_the_answer_behind_a_second_block_counts(first: str, second: str, answer: str) -> None:
    text = f"<think>{first}</think> <answer>x</answer> <think>{second}</think> <answer>{answer}</answer>"
    assert split(text).answer == answer.strip()


def test_a_tag_that_is_cut_off_is_no_answer() -> None:
    for n in range(1, len(ANSWER_OPEN)):
        splitter = Splitter()
        pieces = splitter.feed(f"<think> a </think> {ANSWER_OPEN[:n]}")
        left, whole = splitter.close()
        assert whole.answer == split(f"<think> a </think> {ANSWER_OPEN[:n]}").answer == ""
        assert "".join(text for label, text in pieces + left if label != "thought").strip() == ""
