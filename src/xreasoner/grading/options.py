"""Which option of a multiple-choice problem a reply chose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from xreasoner.grading import extraction
from xreasoner.grading.numbers import parse_number
from xreasoner.problem import LABELS

CONFLICT = "conflict"
"""Returned in place of a label where a reply chose two options, or its letter and its text disagree."""

_START = re.compile(
    r"[\s\"'“‘]*(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+)?"
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z]|[a-z](?=[:)]\s|[.:)]?\s*$)))(?![\w'’])"
    r"(?P<rest>\s*$|\s*[:.)\],;/&+–—-].*|\s+(?:and|or|is|was|because|since|as|with|\().*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"\s*(?:,\s*(?:and\s|or\s)?|/|&|\+|;|and\s|or\s)\s*(?:option\s+)?[(\[]?([A-Z])[)\]]?(?![\w'’])"
    r"(?=\s*(?:$|[.,;:!)\]/&]|and\b|or\b))"
)
_LISTED = re.compile(r"(?<![\w'’])([A-Z])\s*[:)]|\n\s*([A-Z])\.\s")
_SEPARATOR = re.compile(r"^[\s:.)\],;–—]*(?:-\s+)?")
_IS_RIGHT = re.compile(
    r"(?:\(([A-Za-z])\)|(?<![\w'’])([A-Z])(?![\w'’]))(?:\s*\([^()]{1,80}\))?\s*,?\s+is\s+(?:clearly\s+|therefore\s+)?"
    r"(?:the\s+)?(?:correct|right|best|my\s+answer|the\s+answer)\b"
)
_MENTION = re.compile(r"\(([A-Za-z])\)|\b[Oo]ption\s+\(?([A-Za-z])\)?(?![\w'’])|(?:^|\n)\s*([A-Z])[).:]")
_BARE = re.compile(r"(?<![\w'’.])([B-HJ-Z]|[AI](?!\s+[a-z]))(?![\w'’])")
_PREFIX = re.compile(r"\s*\(?([A-Z])\s*[:.)]\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class Options:
    """Options as they are compared. labels: A, B, …; texts: normalised (text, label), the longest first."""

    labels: frozenset[str]
    texts: tuple[tuple[str, str], ...]
    own: dict[str, str]


@lru_cache(maxsize=4096)
def prepare(options: tuple[str, ...]) -> Options:
    """Options for comparing; a label that the option's own text carries ("B: 14") is taken off where all carry one."""
    pairs = list(zip(LABELS, options, strict=False))
    if pairs and all((match := _PREFIX.match(text)) and match[1] == label for label, text in pairs):
        pairs = [(label, _PREFIX.sub("", text, count=1)) for label, text in pairs]
    own = {label: extraction.normalise(extraction.clean(text)) for label, text in pairs}
    texts = [(text, label) for label, text in own.items() if text and text.upper() not in own]
    return Options(frozenset(own), tuple(sorted(texts, key=lambda pair: -len(pair[0]))), own)


def _label(match: re.Match[str], options: Options) -> str | None:
    letter = next(group for group in match.groups() if group).upper()
    return letter if letter in options.labels else None


def _starts_with(text: str, option: str) -> bool:
    rest = text[len(option) :]
    return text.startswith(option) and not re.match(r"\w|[.,]\d", rest)


def _exact(text: str, options: Options) -> str | None:
    """The option whose text this is, word for word; `CONFLICT` where two options share the text."""
    wanted = extraction.normalise(text)
    found = [label for option, label in options.texts if option == wanted]
    return None if not found else found[0] if len(found) == 1 else CONFLICT


def _contradicts(label: str, text: str, options: Options) -> bool:
    """Does the text behind a letter name another option, or a number that is not the option's?"""
    said = extraction.normalise(text)
    longest = [option for option, _ in options.texts if _starts_with(said, option)][:1]
    if longest:
        return longest[0] != options.own[label]
    return parse_number(said) is not None and parse_number(options.own[label]) is not None


def _read(text: str, options: Options) -> str | None:
    """A label at the start of the text ("B", "(B)", "B: 14", "option B because …") or an option's exact text."""
    exact = _exact(text, options)
    if exact is not None:
        return exact
    match = _START.match(text)
    label = _label(match, options) if match else None
    if match is None or label is None:
        return None
    if extraction.denied(text, match.start(), match.start("rest")):
        return None
    said = extraction.collapse(_SEPARATOR.sub("", match["rest"]).split("\n", 1)[0])
    own = options.own[label]
    if not said or extraction.normalise(said) == own:
        return label
    behind = said[len(own) :] if own and _starts_with(said.casefold(), own) else match["rest"]
    others = [another[1] for another in (_ANOTHER.match(behind),) if another]
    others += [other for pair in _LISTED.findall(match["rest"]) for other in pair if other]
    second = any(other != label and other in options.labels for other in others)
    return CONFLICT if second or _contradicts(label, said, options) else label


def _only(labels: set[str]) -> str | None:
    return None if not labels else next(iter(labels)) if len(labels) == 1 else CONFLICT


def _declared(text: str, options: Options) -> str | None:
    """The last option that the text declares ("the answer is B", "\\boxed{B}"), or says to be right."""
    for content in extraction.declarations(text):
        found = _read(content, options) or _read(content.split(". ", 1)[0], options)
        if found is not None:
            return found
    right = [match for match in _IS_RIGHT.finditer(text) if not extraction.denied(text, match.start(), match.end())]
    return _label(right[-1], options) if right else None


def _mentioned(text: str, pattern: re.Pattern[str], options: Options) -> str | None:
    """The one option that the text mentions by its letter, negated mentions left out."""
    found = {
        _label(match, options)
        for match in pattern.finditer(text)
        if not extraction.denied(text, match.start(), match.end())
    }
    return _only({label for label in found if label is not None})


def _quoted(text: str, options: Options) -> str | None:
    """The one option whose text stands in the reply; a longer option's text hides a shorter one inside it."""
    said = extraction.collapse(text).casefold()
    found = set()
    for option, label in options.texts:
        for match in re.finditer(rf"(?<![\w.,-]){re.escape(option)}(?!\w|[.,]\d)", said):
            if not extraction.denied(said, match.start(), match.end()):
                found.add(label)
            said = said[: match.start()] + " " * len(option) + said[match.end() :]
    return _only(found)


def chosen(reply: extraction.Reply, option_texts: tuple[str, ...]) -> str | None:
    """The label of the option that the reply chose, `CONFLICT`, or None where it chose none.

    In order: the whole reply is an option's text; the last declaration; a label at the start (of a tagged or
    one-line reply); the only option mentioned by letter; in short replies a bare letter or an option's text.
    """
    options, text = prepare(option_texts), extraction.unboxed(reply.content)
    words = len(text.split())
    found = _exact(text, options) or _declared(text, options)
    if found is None and (reply.tagged or "\n" not in text):
        found = _read(text, options)
    if found is None:
        found = _mentioned(text, _MENTION, options)
    if found is None and words <= 12:
        found = _mentioned(text, _BARE, options)
    if found is None and words <= 25:
        found = _quoted(text, options)
    return found
