"""Answers in words: yes, no, maybe, and free text."""

from __future__ import annotations

import ast
import re

from xreasoner.grading import extraction
from xreasoner.grading.extraction import Reply
from xreasoner.grading.options import CONFLICT

_YES, _NO = "true yeah oui sí ja да はい 是的 是".split(), "false nope nein нет いいえ 不是 否".split()  # noqa: SIM905
_SYNONYMS = dict.fromkeys(_YES, "yes") | dict.fromkeys(_NO, "no")
_WORD = re.compile(rf"(?<![\w'-])(yes|no|maybe|{'|'.join(_SYNONYMS)})(?![\w-]|'\w)", re.IGNORECASE)
_QUESTION = re.compile(r"^(?:[^.!?\n]{1,200}\?\s+)+")
_NOT_BUT = re.compile(r"\bnot\s[^.,;:]{1,60}?,?\sbut\s+(?:rather\s+)?([^.,;:]+)", re.IGNORECASE)
_LEAD = re.compile(r"(?!not\b|never\b)[A-Za-z][A-Za-z ]{0,19}:\s+", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:(?:in|on|at)\s+(?=the\s))?(?:an?|the)\s+")
_SHORT = re.compile(r"\(([A-Z][A-Za-z]{0,2}[A-Z]\w{0,3})\)\W*$")
_HYPHEN = re.compile(r"(?<=\w)-(?=[^\W\d])")
_ASIDE = re.compile(r"\s\(|,\s+(?:the|an?)\s")
_SUBJECT = re.compile(
    r"(?:the|this|that)\s[\w ]{1,40}?\s(?:is|was|shows|appears\s+to\s+be)\s+(?:(?:located|seen|found)\s+)?(.+)",
    re.IGNORECASE,
)
_AT_END = re.compile(
    r"(?:(?!(?:if|unless|when|whether|suppose|yes|no)\b)[^.!?\n]{1,80},\s*|(?:absolutely|definitely|certainly|clearly|probably|most\s+likely)\s+)(yes|no|maybe)[\s.!]*",
    re.IGNORECASE,
)
_LAST_SENTENCE = re.compile(r"[^?]*[.!]\s+(yes|no|maybe)[\s.!]*", re.IGNORECASE)
_APPOSITION = re.compile(r"(?<=\w\w)[.;]\s|,\s+(?:the|an?|which|because|since|as)\s|\s+because\s")
_IT_IS = re.compile(r"(?:it|this|that)(?:'s|\s+(?:is|was|(?:appears|seems)\s+to\s+be))\s+", re.IGNORECASE)


def plain_word(word: str) -> str:
    """yes, no or maybe for the words that mean them."""
    return _SYNONYMS.get(word.casefold(), word.casefold())


def _leading(text: str) -> str | None:
    """The word at the start; "no" only where a pause follows, as in "No, …" ("No effusion is seen" is no answer)."""
    text = re.sub(r"^[\"'(\[{\s]*(?:an?\s+)?", "", text)
    match = _WORD.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    pause = (
        not rest.strip()
        or rest.startswith("\n")
        or rest.lstrip()[0] in ".,;:!)(]}—–-\n\"'"
        or re.match(r"\s+because\b", rest)
    )
    return plain_word(match[1]) if pause or match[1].casefold() in ("yes", "maybe") else None


def yes_or_no(reply: Reply) -> str | None:
    """What the reply states: "yes", "no" or "maybe"; `CONFLICT` for two of them, None for none."""
    text = _QUESTION.sub("", extraction.unboxed(reply.content))
    for declaration in extraction.declarations(text):
        content = declaration.content
        found = _leading(content) or (_leading(extraction.bare(content)) if declaration.strong else None)
        if found is not None:
            if extraction.retracted(text, declaration.start):
                return None
            both = len(text.split()) == 2 and _others(text, found)  # "yes, no"
            return CONFLICT if both or _others(content, found) else found
    found = _leading(text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = _leading(lines[-1]) if len(lines) > 1 and len(lines[-1].split()) == 1 else None
    if (
        found is None
        and (ending := _AT_END.fullmatch(text))
        and not extraction.denied(text, ending.start(1), len(text))
    ):
        return plain_word(ending[1])
    ending = _LAST_SENTENCE.fullmatch(text)
    if found is None and ending and len(_WORD.findall(text)) == 1:
        return plain_word(ending[1])
    if found is None or extraction.asked(text, 0):
        return last
    said_again = {
        plain_word(match[1]) for match in re.finditer(r"[.!?\n]\s*(?:\w+,\s+)?(yes|no)\b[,.!\s]", text + " ", re.I)
    }
    if (last or found) != found or said_again - {found} or extraction.retracted(text, 0):
        return CONFLICT
    return CONFLICT if len(text.split()) <= 6 and _others(text, found) else found


def _others(text: str, found: str) -> bool:
    first = extraction.CERTAINLY.sub("", re.split(r"[.;\n]", text, maxsplit=1)[0])
    joined = re.search(r"\b(?:or|and|/)\s*|/", first) is not None or len(first.split()) <= 6
    return joined and any(
        plain_word(match[1]) != found and not extraction.denied(first, match.start(), match.end())
        for match in _WORD.finditer(first)
    )


def comparable(text: str) -> str:
    """Short text as it is compared: normalised, no article in front, a hyphen between letters is a space."""
    return _ARTICLE.sub("", _HYPHEN.sub(" ", extraction.normalise(text)))


def accepted(gold: str) -> list[str]:
    """The golds that a data set accepts: one, or those of a list that is given as a string."""
    gold = gold.strip()
    if gold.startswith("[") and gold.endswith("]"):
        try:
            found = ast.literal_eval(gold)
        except (ValueError, SyntaxError):
            return [gold]
        if isinstance(found, list) and found:
            return [str(each) for each in found]
    return [gold]


def free_text(reply: Reply) -> list[str]:
    """The texts that the reply may give: the last declaration, its first sentence, or all of the reply.

    Outside of tags a leading label ("Facts: …") is not part of the answer.
    """
    text = extraction.unboxed(reply.content)
    for declaration in extraction.declarations(text):
        if declaration.strong:
            if extraction.retracted(text, declaration.start):
                return []
            content = extraction.bare(declaration.content)
            return [content, _APPOSITION.split(content, maxsplit=1)[0]]
    match = None if reply.tagged else _LEAD.match(text)
    said = extraction.bare(text[match.end() :] if match else text)
    is_it = _IT_IS.match(said)
    found = [said, *([said[is_it.end() :]] if is_it else [])]
    if re.search(r"[.;!?]\s|\n|\bor\b", said) is None:  # of one sentence also its end, and what an aside explains
        found.append(_ASIDE.split(said, maxsplit=1)[0])
        found += _SHORT.findall(said)
        subject, but = _SUBJECT.fullmatch(said.strip()), _NOT_BUT.search(said)
        found += [match[1] for match in (subject, but) if match and not extraction.denied(said, *match.span(1))]
    return found
