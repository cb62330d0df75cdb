"""Splitting a trace by string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.trace import ANSWER_OPEN, CLOSE, OPEN, Label, Piece, Splitter, split


@pytest.mark.parametrize(
    ("text", "thought", "answer", "closed", "content"),
    [
        ("<think> a </think> <answer>B: 14</answer>", "a", "B: 14", True, "B: 14"),
        ("<think> a and on", "a and on", "", False, ""),  # a thought that never closes
        ("<think> a </think> plain", "a", "plain", True, "plain"),
        ("<answer>7</answer>", "", "7", True, "7"),
        ("just text", "", "just text", True, "just text"),
        ("<think> a </think> <answer>7", "a", "7", True, "7"),
        ("", "", "", True, ""),
        # a solution before the final answer
        ("<think> a </think>\n3 + 4 is 7.\n<answer>\n7\n</answer>", "a", "7", True, "3 + 4 is 7.\n\n7"),
        ("<think> a </think> <answer>A</answer> no: <answer>B</answer>", "a", "B", True, "A no: B"),
        ("<think> a </think> <answer>A <answer>B</answer>", "a", "B", True, "A B"),
        # tags quoted inside the thought
        (
            "<think> I write <answer>B</answer> </think> <answer>C</answer>",
            "I write <answer>B</answer>",
            "C",
            True,
            "C",
        ),
        ("<think> it says <answer>", "it says <answer>", "", False, ""),
        # several closing tags: the first ends the thought, the last says where the answer begins
        ("<think> a </think> <think> b </think> plain", "a", "plain", True, "<think> b </think> plain"),
        ("<think> <think> and </think> </think> <answer>C</answer>", "<think> and", "C", True, "C"),
        ("<think> a </think></think>\n</think> B", "a", "B", True, "B"),
        ("<think> a </think> the tag </think> ends it", "a", "ends it", True, "the tag </think> ends it"),
        # a second block, before and after the answer
        ("<think> a </think> <answer>A</answer> <think> b </think> <answer>B</answer>", "a", "B", True, None),
        # a thought that neither the prompt nor the reply opened
        ("a </think> <answer>7</answer>", "", "7", True, "a </think> 7"),
        ("a <think> b </think> <answer>7</answer>", "", "7", True, "a <think> b </think> 7"),
        (" \n<think>\na\n</think>\n\n<answer>\n7\n</answer>\n", "a", "7", True, "7"),
        ("</think>", "", "", True, "</think>"),
        ("<think></think><answer></answer>", "", "", True, ""),
        # a tag that is cut off, and a sign
        ("<think> a </thi", "a", "", False, ""),
        ("<think> a </think> <answ", "a", "", True, ""),
        ("<think> a </think> <answer>7</ans", "a", "7", True, "7"),
        ("<thi", "", "", True, ""),
        ("<", "", "<", True, "<"),
        ("<think> a </think> <", "a", "<", True, "<"),
        ("<think> a </think> <answer><</answer>", "a", "<", True, "<"),
    ],
)
def test_split(text: str, thought: str, answer: str, closed: bool, content: str | None) -> None:
    trace = split(text)
    assert (trace.thought, trace.answer, trace.closed) == (thought, answer, closed)
    assert content is None or trace.content == content


words = st.text(alphabet="abc <>/", max_size=30)


@given(thought=words, answer=words)
def test_whatever_was_thought_the_answer_comes_back(thought: str, answer: str) -> None:
    found = split(f"<think>{thought}</think><answer>{answer}</answer>")
    assert found.closed
    assert found.answer == answer.strip()
    assert found.thought == thought.strip()


def _chunks(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[a:b] for a, b in pairwise(ends)]


def _streamed(chunks: list[str], opened: bool = False) -> list[Piece]:
    """The pieces with equal neighbors joined."""
    splitter, pieces = Splitter(opened), list[Piece]()
    for chunk in chunks:
        pieces += splitter.feed(chunk)
    left, trace = splitter.close()
    assert trace == split("".join(chunks), opened)
    joined: list[Piece] = []
    for label, text in [*pieces, *left]:
        if joined and joined[-1][0] == label:
            joined[-1] = (label, joined[-1][1] + text)
        else:
            joined.append((label, text))
    return joined


def _of(pieces: list[Piece], *labels: Label) -> str:
    return "".join(text for label, text in pieces if label in labels)


tagged = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "<", "</", "</thi", "<ans", "ink>", "th", " ", "\n", "ab"]
    ),
    max_size=9,
)
anything = st.one_of(tagged.map("".join), st.text(max_size=30))


@settings(max_examples=400)
@given(text=anything, cuts=st.lists(st.integers(0, 60), max_size=12), opened=st.booleans())
def test_the_stream_equals_the_whole_for_every_text_and_every_cut(text: str, cuts: list[int], opened: bool) -> None:
    pieces = _streamed([text], opened)
    assert pieces == _streamed(_chunks(text, cuts), opened) == _streamed(list(text), opened)
    whole = split(text, opened)
    assert _of(pieces, "thought") == whole.thought
    assert _of(pieces, "text", "answer") == whole.content
    assert whole.closed or (opened and CLOSE not in text) or text.lstrip().startswith(OPEN)


@given(text=anything, space=st.sampled_from(["", "\n", " "]))
def test_a_thought_opened_by_the_prompt_reads_like_one_that_the_reply_opens(text: str, space: str) -> None:
    assert split(text, opened=True) == split(OPEN + space + text)


@given(thought=words, before=words, answer=words)
def test_the_answer_is_told_apart_from_the_solution_before_it(thought: str, before: str, answer: str) -> None:
    text = f"<think>{thought}</think>{before}<answer>{answer}</answer>"
    pieces, whole = _streamed(list(text)), split(text)
    assert whole.answer == answer.strip() == _of(pieces, "answer").strip()
    assert _of(pieces, "text").strip() == before.strip()


def test_the_stream_holds_back_only_what_may_be_a_tag_or_a_space_at_an_end() -> None:
    splitter = Splitter()
    assert splitter.feed(" <thi") == []
    assert splitter.feed("nk> 3 < 4 </th") == [("thought", "3 < 4")]
    assert splitter.feed("e end</think> so <answer>7</ans") == [
        ("thought", " </the end"),
        ("text", "so"),
        ("answer", " 7"),
    ]
    assert splitter.close() == ([], split(" <think> 3 < 4 </the end</think> so <answer>7</ans"))


quoted = st.lists(st.sampled_from(["<think>", "<answer>", "</answer>", "<", " ", "a", "/"]), max_size=8).map("".join)


@given(thought=quoted, answer=words, cuts=st.lists(st.integers(0, 90), max_size=12))
def test_tags_quoted_inside_the_thought_stay_there(thought: str, answer: str, cuts: list[int]) -> None:
    text = f"<think>{thought}</think> <answer>{answer}</answer>"
    pieces = _streamed(_chunks(text, cuts))
    assert _of(pieces, "thought") == split(text).thought == thought.strip()
    assert _of(pieces, "answer") == split(text).answer == answer.strip()


@given(thought=quoted, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_a_thought_that_never_closes_is_no_answer_however_it_is_cut(thought: str, cuts: list[int]) -> None:
    text = f"<think>{thought}."
    pieces = _streamed(_chunks(text, cuts))
    assert {label for label, _ in pieces} <= {"thought"}
    found = split(text)
    assert (found.thought, found.answer, found.closed) == (f"{thought}.".strip(), "", False)


@given(first=words, second=words, answer=words)
def test_the_answer_behind_a_second_block_counts(first: str, second: str, answer: str) -> None:
    text = f"<think>{first}</think> <answer>x</answer> <think>{second}</think> <answer>{answer}</answer>"
    assert split(text).answer == answer.strip()


def test_a_tag_that_is_cut_off_is_no_answer() -> None:
    for n in range(2, len(ANSWER_OPEN)):  # one character, `<`, may be the answer itself
        splitter = Splitter()
        pieces = splitter.feed(f"<think> a </think> {ANSWER_OPEN[:n]}")
        left, whole = splitter.close()
        assert (whole.answer, whole.content) == ("", "")
        assert pieces + left == [("thought", "a")]
