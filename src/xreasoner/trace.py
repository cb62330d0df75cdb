"""Splitting a trace into thought and answer, by string: on these models the tags are text, not tokens."""

from __future__ import annotations

from dataclasses import dataclass

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
        return text.strip(), True, False
    return rest.partition(ANSWER_CLOSE)[0].strip(), True, True
