"""What a reply states as its answer: rules that all answer types share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xreasoner import trace

_LEAKED_TURN = re.compile(r"<\|[^|>\s]{1,40}\|>|\n\s*(?:user|human|assistant|question)\s*:", re.IGNORECASE)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\*\*|__|`|\$|\\[()\[\]]|\\[,;!]")
_SPACES = re.compile(r"\s+")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_CUE = re.compile(
    r"\b(?:answer|antwort|réponse|respuesta|risposta|(?:correct|best|right|final)\s+(?:option|choice))\b"
    r"(?:\s+(?:choice|option|letter))?(?:\s+(?:to|for)\s[^.:\n]{0,60}?)?\s*"
    r"(?:[:：=]|\b(?:is|was|must\s+be|should\s+be|would\s+be|ist|est|es)\b)[\s:：]*",
    re.IGNORECASE,
)
_TAG = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_ANSWER_AT_END = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>\s*$", re.DOTALL)
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|neither|nor|incorrect|wrong|if|unless|whether|suppose|assume|instead\s+of|rather\s+than)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\W{0,3}(?:(?:is|was|are|were)\s+(?:not|never|incorrect|wrong|excluded|false|ruled\s+out)\b|(?:is|was)n['’]t\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.;!?\n]|\bbut\b|\bso\b|\btherefore\b", re.IGNORECASE)
_NEGATIVE_START = re.compile(r"(?:definitely\s+|certainly\s+|probably\s+)?(?:not|never|neither)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:i\s+(?:can['’]?t|cannot|can\s+not|am\s+unable|am\s+not\s+able|won['’]?t|will\s+not|must\s+decline)"
    r"|i['’]m\s+(?:unable|not\s+able|sorry)|(?:unable|not\s+possible|impossible)\s+to\s+"
    r"(?:answer|determine|tell|say|help|assist))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """The part of a reply that may answer. content: cleaned text. tagged: it stood in <answer> tags.
    reached: the reply got as far as an answer (the thought was closed, or none was opened)."""

    content: str
    tagged: bool
    reached: bool


def collapse(text: str) -> str:
    """Whitespace runs become one space; none at the ends."""
    return _SPACES.sub(" ", text).strip()


def normalise(text: str) -> str:
    """How texts are compared: casefolded, whitespace collapsed, quotes and trailing punctuation stripped."""
    return collapse(text).casefold().strip("\"'“”‘’ ").rstrip(".,;:!? \"'”’")


def own_words(text: str) -> str:
    """The text up to a leaked chat turn or an invented next question; what looks so inside a thought stays."""
    for match in _LEAKED_TURN.finditer(text):
        head, tail = text[: match.start()], text[match.end() :].partition(trace.OPEN)[0]
        thinking = trace.CLOSE not in head and (trace.OPEN in head or trace.CLOSE in tail)
        if head.strip() and not thinking:
            return head
    return text


def clean(text: str) -> str:
    """The reply's own words without Markdown and LaTeX wrappers (`\\boxed` stays: it declares)."""
    text = own_words(text)
    if "\\" in text:
        text = _WRAPPER.sub(r"\1", text)
    return _MARKUP.sub("", text).strip()


def unboxed(text: str) -> str:
    """The content of the box where the whole text is one, else the text."""
    match = _BOXED.fullmatch(text.strip().rstrip(".:"))
    return match[1].strip() if match else text


def denied(text: str, start: int, end: int) -> bool:
    """Is what stands at text[start:end] negated or only supposed, in its own clause?"""
    before = text[max(0, start - 120) : start]
    cuts = [match.end() for match in _CLAUSE.finditer(before)]
    return bool(_DENIAL.search(before[cuts[-1] if cuts else 0 :])) or bool(_DENIED_AFTER.match(text, end))


def declarations(text: str) -> list[str]:
    """What the text declares as its answer, the last declaration first; each up to the end of its line.

    Negated and hypothetical ones are left out ("the answer is not A", "if the answer is A").
    """
    found: list[tuple[int, str]] = []
    for match in _CUE.finditer(text):
        line = text[match.end() :].split("\n", 1)[0]
        if line and not _NEGATIVE_START.match(line) and not denied(text, match.start(), match.start()):
            found.append((match.start(), unboxed(line.strip())))
    for match in _BOXED.finditer(text):
        if not denied(text, match.start(), match.end()):
            found.append((match.start(), match[1].strip()))
    return [content for _, content in sorted(found, reverse=True)]


def refuses(text: str) -> bool:
    """Does a short reply decline to answer?"""
    return len(text) < 400 and _REFUSAL.search(text) is not None


def read_reply(text: str, cut: bool) -> Reply:
    """Split a reply (`trace.split`) and clean the part that may answer.

    cut: the completion was stopped from outside; what it holds counts only where a closed <answer> stands. So it
    is with a thought that never ends: only a closed <answer> at the very end counts.
    """
    text = own_words(_TAG.sub(lambda match: f"<{match[1]}{match[2].lower()}>", text))
    split = trace.split(text)
    if not split.closed:
        ending = _ANSWER_AT_END.search(text)
        return Reply(clean(ending[1]), True, True) if ending else Reply("", False, False)
    finished = split.tagged and trace.ANSWER_CLOSE in text.rpartition(trace.ANSWER_OPEN)[2]
    return Reply(clean(split.answer), split.tagged, finished or not cut)
