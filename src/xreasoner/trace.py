"""Splitting a trace into thought and answer, by string: on these models the tags are text, not tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


@dataclass(frozen=True, slots=True)
class Trace:
    """thought and answer without their tags; closed is False when a thought was opened and never ended."""

    thought: str
    answer: str
    closed: bool
    tagged: bool
    """True when the answer stood in `<answer>` tags."""


def split(text: str) -> Trace:
    """Split a whole reply.

    A missing opening tag is tolerated. The text after the last `</think>` decides. A thought that never ends is
    reasoning: the answer stays empty.
    """
    before, tag, after = text.rpartition(CLOSE)
    if tag:
        thought = before.replace(OPEN, "", 1) if before.lstrip().startswith(OPEN) else before
        return Trace(thought.strip(), *_answer(after))
    if text.lstrip().startswith(OPEN):
        return Trace(text.lstrip()[len(OPEN) :].strip(), "", False, False)
    return Trace("", *_answer(text))


def _answer(text: str) -> tuple[str, bool, bool]:
    """(answer, closed, tagged) of the text after the thought."""
    _, tag, rest = text.rpartition(ANSWER_OPEN)
    if not tag:
        whole = text.strip()
        return ("" if ANSWER_OPEN.startswith(whole) else whole), True, False  # cut off in the middle of the tag
    return rest.partition(ANSWER_CLOSE)[0].strip(), True, True


def repeats(tokens: Sequence[object], least: int = 64, times: int = 4) -> bool:
    """Whether the tokens end in a loop: at least `times` copies of one piece, of at least `least` tokens together."""
    for period in range(1, len(tokens) // times + 1):
        span = max(least, period * times)
        if span > len(tokens):
            continue
        end = tokens[-span:]
        if all(end[k] == end[k - period] for k in range(period, span)):
            return True
    return False


Label = Literal["thought", "text", "answer"]
Piece = tuple[Label, str]
"""A piece of a reply: inside the thought, outside all tags, or inside `<answer>` tags."""


class Splitter:
    """Splits a reply while it is written: chunks in, labelled pieces out, the tags left out.

    However the text is cut into chunks, the pieces of one label in a row join to the same text; a tag that may still
    be coming is held back. The stream takes the first `</think>` for the end of the thought and cannot take back
    what it gave out, so the whole reply's `split` (see `close`) decides where a reply has several. opened: the
    prompt has opened the thought already.
    """

    def __init__(self, opened: bool = False) -> None:
        self._label: Label | None = "thought" if opened else None
        self._held = ""
        self._text = ""

    def feed(self, chunk: str) -> list[Piece]:
        """The pieces that this chunk settles."""
        self._text += chunk
        self._held += chunk
        pieces: list[Piece] = []
        if self._label is None and not self._begin():
            return pieces
        while (found := self._next_tag()) is not None:
            assert self._label is not None
            at, tag = found
            pieces.append((self._label, self._held[:at]))
            self._held = self._held[at + len(tag) :]
            self._label = "answer" if tag == ANSWER_OPEN else "text"
        kept = _possible_tag(self._held, self._tags())
        pieces.append((self._label or "text", self._held[: len(self._held) - kept]))
        self._held = self._held[len(self._held) - kept :]
        return [piece for piece in pieces if piece[1]]

    def close(self) -> tuple[list[Piece], Trace]:
        """What was held back, now that nothing follows, and the whole reply's trace."""
        whole = split(self._text)
        left: list[Piece] = [(self._label or "text", self._held)] if self._held else []
        self._held = ""
        return ([] if self._label == "text" and not whole.answer else left), whole

    def _begin(self) -> bool:
        """Is it settled whether the reply opens a thought?"""
        start = self._held.lstrip()
        if len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self._label = "thought" if start.startswith(OPEN) else "text"
        if self._label == "thought":
            self._held = start[len(OPEN) :]
        return True

    def _tags(self) -> tuple[str, ...]:
        return {"thought": (CLOSE,), "answer": (ANSWER_CLOSE,)}.get(self._label or "", (CLOSE, ANSWER_OPEN))

    def _next_tag(self) -> tuple[int, str] | None:
        return min(((at, tag) for tag in self._tags() if (at := self._held.find(tag)) >= 0), default=None)


def _possible_tag(text: str, tags: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a tag."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)
