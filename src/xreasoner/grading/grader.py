"""The one grader: from a problem and a reply to a verdict. Used by RL, by evaluation and by re-scoring alike.

Where two readings are possible, the stricter one holds: an empty, refused, cut-off or shuffled reply scores 0, a
reply that names two answers is a conflict, and no number is rounded (but where the data set says how).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import reasoning_gym

from xreasoner.grading import extraction, numbers, options, words
from xreasoner.grading.extraction import Reply
from xreasoner.problem import Problem
from xreasoner.verdict import Verdict

_VALUE_AT_END = re.compile(r"(?:\b(?:is|are|be|equals|makes|leaves)\b|=)\s*((?:[-+−]\s*)?[\d.\\][^=\n]*)$")
_FULL_MARKS = 1 - 1e-9


def judge(problem: Problem, text: str, exit: str = "natural") -> Verdict:
    """Judge a reply (the text after the prompt) to a problem.

    exit: how the completion ended (`completion.Exit`). A reply that was cut off before it closed an answer is
    `truncated`, whatever else it holds; one that ended by itself is read for what it says.
    """
    reply = extraction.read_reply(text, cut=exit in ("truncated", "aborted"))
    if not reply.reached:
        return Verdict("truncated", reply.content)
    if not reply.content:
        return Verdict("unparsed")
    verdict = _JUDGES[problem.answer_type](problem, reply)
    if verdict.outcome in ("unparsed", "wrong") and extraction.refuses(reply.content):
        return Verdict("refused", verdict.extracted, verdict.normalised)
    return verdict


def _compare(found: str | None, gold: str, reply: Reply) -> Verdict:
    if found is None:
        return Verdict("unparsed", reply.content)
    if found == options.CONFLICT:
        return Verdict("conflict", reply.content)
    return Verdict("correct" if found == gold else "wrong", reply.content, found)


def _choice(problem: Problem, reply: Reply) -> Verdict:
    return _compare(options.chosen(reply, problem.options), problem.gold.strip().upper(), reply)


def _yes_no(problem: Problem, reply: Reply) -> Verdict:
    return _compare(words.yes_or_no(reply), extraction.normalise(problem.gold), reply)


def _text(problem: Problem, reply: Reply) -> Verdict:
    gold = extraction.normalise(extraction.clean(problem.gold))
    if extraction.normalise(reply.content) == gold:
        return Verdict("correct", reply.content, gold)
    given = words.free_text(reply)
    normalised = extraction.normalise(given)
    return Verdict("correct" if normalised == gold else "wrong", given, normalised)


def _numeral(problem: Problem, text: str) -> str | None:
    """The number that the text is; a unit behind it counts only where the question or the gold names it."""
    found = numbers.read_number(text)
    if found is None:
        return None
    unit = found[1].strip(" .").casefold()
    named = f"{problem.question} {problem.gold}".casefold()
    if unit and (len(unit) > 24 or re.search(rf"(?<!\w){re.escape(unit)}(?!\w)", named) is None):
        return None
    return text.strip()[: len(text.strip()) - len(found[1])] if found[1] else text.strip()


def _stated_number(problem: Problem, reply: Reply) -> str | None:
    """The numeral that the reply gives, `CONFLICT` for two, None for none."""
    text = extraction.unboxed(reply.content)
    found = _numeral(problem, text)
    if found is not None:
        return found
    for content in extraction.declarations(text):
        found = _numeral(problem, content) or _numeral(problem, content.split(". ", 1)[0])
        if found is not None:
            return found
    ending = _VALUE_AT_END.search(text) if reply.tagged or "\n" not in text else None
    if ending is not None and not extraction.denied(text, ending.start(), ending.end()):
        found = _numeral(problem, ending[1])
    if found is None and len(text.split()) <= 12 and numbers.two_numbers(text):
        return options.CONFLICT
    return found


def _number(problem: Problem, reply: Reply) -> Verdict:
    """Exact equality of values; `meta["precision"]` (decimal places), where the data set has one, rounds both."""
    gold = numbers.read_number(problem.gold)
    if gold is None:
        return Verdict("error", reply.content, f"the gold {problem.gold!r} is not a number")
    given = _stated_number(problem, reply)
    if given is None or given == options.CONFLICT:
        return _compare(given, "", reply)
    parsed = numbers.read_number(given)
    assert parsed is not None
    value, wanted = parsed[0], gold[0]
    places = problem.meta.get("precision")
    if places is not None:
        value, wanted = round(value, int(places)), round(wanted, int(places))
    return Verdict("correct" if value == wanted else "wrong", given, numbers.shown(value))


@lru_cache(maxsize=256)
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], float]:
    scorer: Callable[[str, Mapping[str, Any]], float] = reasoning_gym.get_score_answer_fn(name)
    return scorer


def _gym(problem: Problem, reply: Reply) -> Verdict:
    """reasoning-gym's own scorer, on the answer alone; only full marks count."""
    text = extraction.unboxed(reply.content)
    declared = [] if reply.tagged else extraction.declarations(text)
    given = declared[0] if declared else text
    try:
        score = float(_scorer(str(problem.meta["name"]))(given, problem.meta["entry"]))
    except Exception as error:  # a scorer by others may raise anything on odd text; the verdict says so
        return Verdict("error", given, f"{type(error).__name__}: {error}"[:200])
    return Verdict("correct" if score >= _FULL_MARKS else "wrong", given, given)


_JUDGES: dict[str, Callable[[Problem, Reply], Verdict]] = {
    "choice": _choice,
    "yesno": _yes_no,
    "integer": _number,
    "number": _number,
    "text": _text,
    "gym": _gym,
}
