"""Answers in words: yes, no, maybe, and free text."""

from __future__ import annotations

import re

from xreasoner.grading import extraction
from xreasoner.grading.options import CONFLICT

_SYNONYMS = {"true": "yes", "false": "no", "yeah": "yes", "nope": "no"}
_WORD = re.compile(r"(?<![\w'’-])(yes|no|maybe|true|false|yeah|nope)(?![\w'’-])", re.IGNORECASE)
_LEAD = re.compile(r"(?!not\b|never\b)[A-Za-z][A-Za-z ]{0,19}:\s+", re.IGNORECASE)


def _plain(word: str) -> str:
    return _SYNONYMS.get(word.casefold(), word.casefold())


def _leading(text: str) -> str | None:
    """The word at the start; "no" only where a pause follows, as in "No, …" ("No effusion is seen" is no answer)."""
    match = _WORD.match(text.lstrip("\"'“‘ "))
    if match is None:
        return None
    rest = text.lstrip("\"'“‘ ")[match.end() :]
    pause = not rest.strip() or rest.lstrip()[0] in ".,;:!)(—–-\n\"'”’"
    return _plain(match[1]) if pause or match[1].casefold() == "yes" else None


def yes_or_no(reply: extraction.Reply) -> str | None:
    """What the reply states: "yes", "no" or "maybe"; `CONFLICT` for two of them, None for none."""
    text = extraction.unboxed(reply.content)
    for content in extraction.declarations(text):
        if (found := _leading(content)) is not None:
            return CONFLICT if _others(content, found) else found
    found = _leading(text)
    if found is None:
        return None
    return CONFLICT if len(text.split()) <= 6 and _others(text, found) else found


def _others(text: str, found: str) -> bool:
    first = re.split(r"[.;\n]", text, maxsplit=1)[0]
    return any(_plain(word) != found for word in _WORD.findall(first))


def free_text(reply: extraction.Reply) -> str:
    """The text that the reply gives: the last declaration, else all of it.

    Outside of tags a leading label ("Facts: …") is not part of the answer.
    """
    text = extraction.unboxed(reply.content)
    declared = extraction.declarations(text)
    if declared:
        return declared[0]
    match = None if reply.tagged else _LEAD.match(text)
    return text[match.end() :] if match else text
