"""Splitting a reply into thought and answer, by string: on most models the tags are text, not tokens.

One reading serves the whole reply and the reply that is streamed, so both are equal for every text:

- A thought is open from the start where the prompt opened it, or where the reply begins with `<think>`.
- The first `</think>` ends it. A stream cannot take back what it sent, so nothing after that changes the thought.
- All that follows is the content: what a chat client is shown, without the `<answer>` tags. A further `<think>` or
  `</think>` in it is text (but for a `</think>` right after the first, which repeats it).
- The answer is the part of the content that counts: inside the last `<answer>` tags, or else all of it; where more
  `</think>` follow, only what stands after the last one.
- Spaces around thought, content and answer are dropped, and so is a tag that is cut off at the end (two characters or
  more: a lone `<` is a sign that a model may answer with).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


@dataclass(frozen=True, slots=True)
class Trace:
    """A reply's parts without their tags.

    thought: the text inside the thought. answer: the final answer. content: all text outside of the thought, which is
    the answer with whatever stands around it. closed: False when a thought was opened and never ended.
    """

    thought: str
    answer: str
    closed: bool
    tagged: bool
    """True when the answer stood in `<answer>` tags."""
    content: str = ""


def split(text: str, opened: bool = False) -> Trace:
    """Split a whole reply.

    Args:
        text: The reply, with its tags.
        opened: The prompt has opened the thought already, and the text does not hold that tag.

    Returns:
        Its parts. A thought that never ends is reasoning: content and answer stay empty.
    """
    splitter = Splitter(opened)
    splitter.feed(text)
    return splitter.close()[1]


def thought_opening(tail: str) -> str:
    """What a prompt has written of the reply's thought: `<think>` and what follows it, or nothing.

    Args:
        tail: What the chat template writes where the assistant's turn begins. Qwen3-VL-Thinking's ends in `<think>`
            and a newline; a template for replies without a thought ends in an empty one, which is closed.
    """
    _, tag, rest = tail.rpartition(OPEN)
    return tag + rest if tag and CLOSE not in rest else ""


def reply_after(opening: str, response: str) -> str:
    """A response as it continues a prompt that has opened the thought: `<think>` is written once.

    Args:
        opening: See `thought_opening`; "" leaves the response as it is.
        response: `<think> … </think> …`, or an answer alone, before which the thought is closed.
    """
    if not opening:
        return response
    body = response.lstrip()
    if not body.startswith(OPEN):
        return f"{CLOSE}\n\n{body}" if opening[-1:].isspace() else f"\n{CLOSE}\n\n{body}"
    body = body[len(OPEN) :]
    return body.lstrip() if opening[-1:].isspace() else body


def _answer(text: str) -> tuple[str, bool]:
    """(answer, tagged) of the text after the thought."""
    _, tag, rest = text.rpartition(ANSWER_OPEN)
    if not tag:
        return _without_cut_tag(text, (ANSWER_OPEN,)).strip(), False
    body, closing, _ = rest.partition(ANSWER_CLOSE)
    return (body if closing else _without_cut_tag(body, (ANSWER_CLOSE,))).strip(), True


def _without_cut_tag(text: str, tags: tuple[str, ...]) -> str:
    """The text without the beginning of a tag at its end; a lone `<` is text."""
    cut = _possible_tag(text, tags)
    return text[:-cut] if cut > 1 else text


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
    """Splits a reply while it is written: chunks in, labeled pieces out, without the tags.

    However the text is cut into chunks, the pieces of each label join to the same text. Thought pieces join to
    `Trace.thought`, the others together to `Trace.content`. What may be the beginning of a tag is held back, and so
    are spaces, until it is known that text follows.

    Args:
        opened: The prompt has opened the thought already.
    """

    def __init__(self, opened: bool = False) -> None:
        self._opened = opened
        self._label: Label | None = "thought" if opened else None
        self._held = ""
        self._fresh = False
        """Nothing but spaces since the thought ended."""
        self._spaces = {"thought": "", "content": ""}
        self._parts: dict[str, list[str]] = {"thought": [], "content": []}
        self._chunks: list[str] = []

    def feed(self, chunk: str) -> list[Piece]:
        """The pieces that this chunk settles."""
        self._chunks.append(chunk)
        self._held += chunk
        pieces: list[Piece] = []
        if self._label is None and not self._begin():
            return pieces
        while (tag_at := self._next_tag()) is not None:
            at, tag = tag_at
            self._emit(self._held[:at], pieces)
            self._held = self._held[at + len(tag) :]
            self._enter(tag)
        settled = len(self._held) - _possible_tag(self._held, self._tags())
        if self._fresh and self._held[:settled].strip():
            self._fresh = False  # what looked like the beginning of a second `</think>` is text
            settled = len(self._held) - _possible_tag(self._held, self._tags())
        self._emit(self._held[:settled], pieces)
        self._held = self._held[settled:]
        return pieces

    def close(self) -> tuple[list[Piece], Trace]:
        """What was held back, now that nothing follows, and the whole reply's trace."""
        pieces: list[Piece] = []
        if self._label is None:  # the beginning of `<think>`, or nothing but spaces
            self._label, held = "text", self._held.lstrip()
        else:
            held = self._held
        if len(held) == 1:
            self._emit(held, pieces)
        self._held = ""
        return pieces, self._trace()

    def _trace(self) -> Trace:
        thought, content = ("".join(self._parts[name]) for name in ("thought", "content"))
        if self._label == "thought":
            return Trace(thought, "", False, False)
        answer, tagged = _answer("".join(self._chunks).rpartition(CLOSE)[2])
        if not tagged and CLOSE not in content:
            answer = content
        return Trace(thought, answer, True, tagged, content)

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
        if self._label == "thought":
            return (CLOSE,)
        if self._label == "answer":
            return (ANSWER_CLOSE, ANSWER_OPEN)
        return (ANSWER_OPEN, CLOSE) if self._fresh else (ANSWER_OPEN,)

    def _next_tag(self) -> tuple[int, str] | None:
        """Where the next tag stands in what is held."""
        places = ((at, tag) for tag in self._tags() if (at := self._held.find(tag)) >= 0)
        at, tag = min(places, default=(-1, ""))
        if tag == CLOSE and self._label != "thought" and self._held[:at].strip():
            self._fresh = False  # not right behind the first, so the content speaks of the tag
            return self._next_tag()
        return None if at < 0 else (at, tag)

    def _enter(self, tag: str) -> None:
        self._fresh = tag == CLOSE
        self._label = "answer" if tag == ANSWER_OPEN else "text"

    def _emit(self, text: str, pieces: list[Piece]) -> None:
        """Add a piece, with the spaces that were held back before it; spaces at its end wait for more."""
        assert self._label is not None
        channel = "thought" if self._label == "thought" else "content"
        body = text.rstrip()
        if not body:
            self._spaces[channel] += text
            return
        self._fresh = False
        piece = self._spaces[channel] + body
        if not self._parts[channel]:
            piece = piece.lstrip()
        self._spaces[channel] = text[len(body) :]
        self._parts[channel].append(piece)
        pieces.append((self._label, piece))


def _possible_tag(text: str, tags: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a tag."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)
