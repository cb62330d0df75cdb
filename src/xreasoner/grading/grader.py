"""The one grader: from a problem and a reply to a verdict. Used by RL, by evaluation and by re-scoring alike.

Where two readings are possible, the stricter one holds: an empty, refused, cut-off or shuffled reply scores 0, a
reply that names two answers is a conflict, and no number is rounded (but where the data set says how). docs/grading.md
states the conventions, with an example each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from xreasoner.grading import extraction, mathematics, numbers, options, quantities, restatements, units, words
from xreasoner.grading.extraction import Reply
from xreasoner.problem import Problem
from xreasoner.verdict import Outcome, Verdict

TIMED_OUT = f"mathematics: more than {mathematics.LIMIT:g} s of CPU time"
"""The note of a verdict that took too long."""
_FULL_MARKS = 1 - 1e-9
_TWICE = re.compile(r"\s*(?:,?\s*\bi\.e\.,?|,?\s*\bthat\s+is,?|,?\s*\bor\s+equivalently\b,?|=|\s\()\s*")
_ROUNDED = re.compile(r"\s*(?:≈|\\approx).*$")
_PERCENT_BEHIND = re.compile(r"(\\boxed\s*\{[^{}]*)\}\s*(?:%|percent\b|pct\b)")
_PROSE = re.compile(
    r"(?:(?:therefore|thus|hence|so|then)\b,?\s*)?(?:(?:we|i)\s+(?:find|get|have|obtain|conclude|see)\s+(?:that\s+)?)?"
    r"(\S.*?)(?:\s+is\s+(?:the|our|my)\s+(?:final\s+)?(?:solution|answer|result))?[\s.]*",
    re.IGNORECASE,
)
_LED_IN = re.compile(
    r".*(?:\b(?:get|have|obtain|find|is|are|gives|yields|therefore|thus|hence|answer|result)[\s,:]*|:\s*)",
    re.IGNORECASE,
)
_END = r"([-+]?[€£¥$]?\s?\d[\d,.]*(?:\s+\d+\s*/\s*\d+|/\d+)?(?:\s*%)?(?:\s?[^\W\d_]{1,12})??)"
_LAST_VERB = re.compile(
    r"\b(?:is|equals|are|beträgt|ist|est|sont|es|son|è|é|sono|são|равн[ао]?|равен|составляет|wynosi|är)\s+(\S[^=]*?)[\s.]*$"
)
_RANGE = re.compile(
    rf"\b(?:between|zwischen|entre|tra|fra|między|tussen|между|بين)\s+{_END}\s+(?:and|und|et|y|e|i|en|и|و)\s+{_END}(?![\w.]*\d)"
    rf"|\b(?:from|von|de|desde|da|dal|od|от|van)\s+{_END}\s+(?:to|through|until|till|up\s+to|bis|à|a|até|hasta|do|до|tot)\s+{_END}(?![\w.]*\d)"
    rf"|(?:介于|在)?\s*{_END}\s*[和与與と]\s*{_END}(?:之[间間]|の間)"
    rf"|(?<![A-Za-z\d.-]){_END}\s*(?:to|through|bis|[-–—~～〜至到]|から|에서)\s*{_END}(?![\w.]*\d)",
    re.IGNORECASE,
)
_NOT_WITHIN = re.compile(
    r"\b(?:outside|out\s+of|beyond|(?:more|less|fewer|greater|other)\s+than|above|below|over|under|at\s+(?:least|most)"
    r"|except|exclud\w+|until|before|after|not|no|never|не|ne|nicht|no|pas)\b|不|[一-龥]?外|ない|아니",
    re.IGNORECASE,
)
_FIGURES = re.compile(r"\d[\d.,/ ]*")
_LIST_JOINT = re.compile(r"\s*(?:[,;]|\band\b)\s*")


def judge(problem: Problem, text: str, exit: str = "natural") -> Verdict:
    """Judge a reply (the text after the prompt) to a problem.

    exit: how the completion ended (`completion.Exit`). A reply that was cut off before it closed an answer is
    `truncated`, whatever else it holds (`refused` where a content filter cut it off); one that ended by itself is read
    for what it says. Only `latex` asks the pool
    of workers (`mathematics`); all other kinds are judged in this process.
    """
    reply = extraction.read_reply(text, cut=exit in ("truncated", "aborted", "refused"))
    if exit == "refused" and not (reply.reached and reply.content):
        return Verdict("refused", reply.content)
    if not reply.reached:
        return Verdict("truncated", reply.content)
    if not reply.content:
        return Verdict("unparsed")
    verdict = JUDGES[problem.answer_type](problem, reply)
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
    """The label decides; where the text behind it is another option's, the verdict's note says so."""
    labels = options.style_of(problem.gold, problem.options)
    choices = options.prepare(problem.options, labels)
    gold = options.gold_labels(problem.gold, choices)
    if not gold:
        return _counted_choice(problem, reply, labels)
    if len(gold) > 1:  # the gold is a text that several options share: its text alone is an answer
        choices = options.merged(choices, gold)
    label, behind = options.chosen(reply, choices)
    if label is None or label == options.CONFLICT:
        return _compare(label, "", reply)
    other = options.contradiction(label, behind, choices) if behind else ""
    note = f"conflict: the label {label} decides, but the text behind it is {other[:80]!r}" if other else ""
    return Verdict("correct" if label in gold else "wrong", reply.content, label, note)


def _counted_choice(problem: Problem, reply: Reply, labels: tuple[str, ...]) -> Verdict:
    """A gold that is a bare number may count from 0 or from 1; only a reply that counts too can be compared."""
    named = problem.gold.strip(" ().[]:")
    expected = f"one of {', '.join(labels)}, or an option's text" if labels else "options"
    error = Verdict("error", reply.content, "", f"gold: found {problem.gold!r}, expected {expected}")
    if not named.isdecimal() or not (0 <= int(named) <= len(labels)):
        return error
    first = 0 if named == "0" else 1
    counted = options.prepare(("",) * len(labels), tuple(str(n + first) for n in range(len(labels))))
    label, _ = options.chosen(reply, counted)
    if label is None:
        note = f"gold: {problem.gold!r} may count from 0 or from 1; give the label or the option's text"
        return Verdict("error", reply.content, "", note)
    return _compare(label, named, reply)


def _yes_no(problem: Problem, reply: Reply) -> Verdict:
    gold = words.plain_word(extraction.normalise(problem.gold))
    if gold not in ("yes", "no", "maybe"):  # a closed question of SLAKE may ask "left or right?"
        return _text(problem, reply)
    found = words.yes_or_no(reply)
    if found is None and restatements.denies(reply.content, problem.question):
        found = "no"
    return _compare(found, gold, reply)


def _text(problem: Problem, reply: Reply) -> Verdict:
    golds = [words.comparable(extraction.clean(gold)) for gold in words.accepted(problem.gold)]
    if reply.content.rstrip().endswith("?"):
        return Verdict("unparsed", reply.content)
    said = [reply.content, *words.free_text(reply)]
    given = next((each for each in said if words.comparable(each) in golds), None)
    if given is not None:
        return Verdict("correct", given, words.comparable(given))
    if all(numbers.parse_number(gold) is not None for gold in golds):
        verdicts = [_number_is(gold, problem, reply) for gold in golds]
        return next((verdict for verdict in verdicts if verdict.correct), verdicts[0])
    amounts = [found for gold in golds if (found := _amount(gold)) is not None]
    given = next((each for each in said if amounts and _amount(words.comparable(each)) in amounts), None)
    if given is not None:
        return Verdict("correct", given, words.comparable(given))
    given = said[1] if len(said) > 1 else ""
    return Verdict("wrong" if given else "unparsed", given or reply.content, words.comparable(given))


def _amount(text: str) -> tuple[Fraction, str] | None:
    """The value and the unit of a short text that is both ("1 1/2 cups"), else None."""
    found = quantities.read_quantity(text) if text[:1].isdigit() else None
    return found if found is not None and found[1].isalpha() and numbers.is_unit(found[1]) else None


def _gold_number(text: str) -> Fraction | None:
    found = numbers.read_number(numbers.without_percent(extraction.unboxed(extraction.clean(text))))
    return found[0] if found is not None and numbers.is_unit(found[1]) else None


def _number(problem: Problem, reply: Reply) -> Verdict:
    """Exact equality of values; `meta["precision"]` (decimal places), where the data set has one, rounds both."""
    return _number_is(problem.gold, problem, reply)


def _number_is(gold: str, problem: Problem, reply: Reply) -> Verdict:
    wanted = _gold_number(gold)
    if wanted is None:
        return Verdict("error", reply.content, "", f"gold: found {gold!r}, expected a number")
    golds = [wanted]
    if numbers.without_percent(gold) != gold:
        plain = numbers.without_percent(reply.content)
        exact = problem.meta.get("precision") is None
        golds += [wanted / 100] if exact and plain == reply.content else []  # 0.5 for 50 %, but not 0.5 %
        reply = Reply(plain, reply.tagged, reply.reached)  # 50 % against 50 %, both without the sign
    given = numbers.stated_number(reply)
    if given is None or given == options.CONFLICT:
        return _compare(given, "", reply)
    parsed = numbers.read_number(given)
    assert parsed is not None
    places = problem.meta.get("precision")
    if places is None:
        right = parsed[0] in golds
    else:
        right = numbers.rounded(parsed[0], int(places)) in [numbers.rounded(each, int(places)) for each in golds]
    return Verdict("correct" if right else "wrong", given, numbers.shown(parsed[0]))


def _candidates(reply: Reply) -> list[str]:
    """What may be the answer of a reply: the last strong declaration (and its first sentence), else all of a tagged or
    one-line reply; nothing where it was taken back."""
    text = extraction.unboxed(reply.content)
    for declaration in extraction.declarations(text):
        if declaration.strong:
            if extraction.retracted(text, declaration.start):
                return []
            content = extraction.bare(declaration.content)
            return [content] if declaration.boxed else [content, re.split(r"\.\s|\s+because\b", content, maxsplit=1)[0]]
    if not reply.tagged and "\n" in text:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        alone = _LED_IN.fullmatch(lines[-2]) and not extraction.negates(lines[-2]) and not lines[-1].endswith("?")
        return [lines[-1]] if alone else []
    weak = extraction.declarations(text)
    ending = _LAST_VERB.search(text)
    found = [text, extraction.bare(text), *([weak[0].content] if weak else [])]
    if ending and not extraction.denied(text, ending.start(), ending.end()):
        found.append(ending[1])
    prose = _PROSE.fullmatch(text)
    return [*found, prose[1]] if prose and prose[1] not in found else found


def _said_twice(text: str) -> list[str]:
    """The forms of an answer that is given in several ("5 kg (5000 g)", "5/8, i.e. 0.625", "1/2 = 0.5"); a rounded
    value behind ≈ is left out. All of them must be right."""
    return [part.rstrip(") ") if "(" not in part else part for part in _TWICE.split(_ROUNDED.sub("", text)) if part]


def _quantity(problem: Problem, reply: Reply) -> Verdict:
    """A number with its unit: the same after conversion. A reply with no unit is wrong where the gold has one."""
    gold = quantities.read_quantity(extraction.unboxed(extraction.clean(problem.gold)))
    if gold is None:
        return Verdict("error", reply.content, "", f"gold: found {problem.gold!r}, expected a number with a unit")
    if not gold[1]:
        return _number(problem, reply)
    places = problem.meta.get("precision")

    def converted(text: str) -> Fraction | None:
        found = quantities.read_quantity(text)
        return None if found is None else units.in_units_of(*found, gold[1])

    def right(value: Fraction) -> bool:
        if places is None:
            return value == gold[0]
        return numbers.rounded(value, int(places)) == numbers.rounded(gold[0], int(places))

    for text in _candidates(reply):
        if quantities.read_quantity(text) is None:
            continue
        if numbers.numeral(text) == options.CONFLICT:
            return Verdict("conflict", reply.content)
        value = converted(text)
        values = [value] if value is not None else [converted(part) for part in _said_twice(text)]
        if values and values[0] is not None and None not in values:
            outcome: Outcome = "correct" if all(right(each) for each in values if each is not None) else "wrong"
            return Verdict(outcome, text, f"{numbers.shown(values[0])} {gold[1]}")
    said = next((text for text in _candidates(reply) if quantities.read_quantity(text)), None)
    return Verdict("wrong", said, said) if said else Verdict("unparsed", reply.content)


def _latex(problem: Problem, reply: Reply) -> Verdict:
    """Mathematical equality. What cannot be read is unparsed, what takes too long an error: neither is "wrong"."""
    gold = extraction.unboxed(extraction.clean(problem.gold.replace("\x0crac", "\\frac")))
    if "%" in gold:  # a sign behind the box belongs to the number
        reply = Reply(_PERCENT_BEHIND.sub(r"\1%}", reply.content), reply.tagged, reply.reached)
    outcome, given = "unparsed", ""
    for given in _candidates(reply):
        outcome = mathematics.same(gold, given)
        exact = _ROUNDED.sub("", given).strip()
        if outcome in ("unparsed", "different") and exact not in ("", given):
            outcome = mathematics.same(gold, exact)
        parts = _said_twice(given)
        if outcome in ("unparsed", "different") and parts and parts != [given]:
            outcome = "equal" if all(mathematics.same(gold, part) == "equal" for part in parts) else outcome
        if outcome not in ("unparsed", "different"):
            break
    if outcome == "equal":
        return Verdict("correct", given, given)
    if outcome in ("different", "unparsed"):
        given = next(iter(_candidates(reply)), reply.content)
        return Verdict("wrong" if outcome == "different" else "unparsed", given, given)
    return Verdict("error", given, "", TIMED_OUT if outcome == mathematics.TIMEOUT else f"mathematics: {outcome}")


def _listed(text: str) -> list[str]:
    text = text.strip().rstrip(".")
    if text[:1] in "[({" and text[-1:] in "])}":
        text = text[1:-1]
    return [part.strip().strip("\"'") for part in _LIST_JOINT.split(text) if part.strip()]


def _rises(text: str) -> bool:
    ends = [Fraction(each) for each in re.findall(r"\d+(?:\.\d+)?", text)]
    return len(ends) != 2 or ends[0] < ends[1]


def _range(text: str) -> str | None:
    """ "3, 5" for the one range that a short reply gives ("between 3 and 5", "from 3 cm to 5 cm", "3–5"), else None."""
    found = list(_RANGE.finditer(text[-500:]))
    if (
        len(found) != 1
        or _NOT_WITHIN.search(text[-500:], 0, found[0].start())
        or extraction.denied(text[-500:], found[0].start(), found[0].end())
    ):
        return None
    if re.search(r"[\d\s][-–—~～〜]", found[0][0]) and not _rises(found[0][0]):
        return None  # "5-3" is a difference
    low, high = next(pair for pair in zip(*[iter(found[0].groups())] * 2, strict=True) if pair[0])
    ends = [numbers.numeral(end) for end in (low, high)]
    others = len(_FIGURES.findall(text)) - len(_FIGURES.findall(found[0][0]))
    if None in ends or options.CONFLICT in ends or others:
        return None
    return ", ".join(each.replace(",", "") for each in ends if each)


def _list(problem: Problem, reply: Reply) -> Verdict:
    """The same members in the same order: numbers by value (or the data set's precision), words as short text."""
    wanted = _listed(extraction.clean(problem.gold))
    places = problem.meta.get("precision")

    def member(text: str) -> object:
        value = numbers.parse_number(text)
        if value is None:
            return words.comparable(text)
        return value if places is None else numbers.rounded(value, int(places))

    candidates = [each for each in _candidates(reply) if each]
    pair = _range(reply.content) if len(wanted) == 2 and reply.content[-1:] != "?" else None
    for text in [*candidates, *([pair] if pair else [])]:
        if [member(part) for part in _listed(text)] == [member(part) for part in wanted]:
            return Verdict("correct", text, ", ".join(_listed(text)))
    return Verdict("wrong", candidates[0], candidates[0]) if candidates else Verdict("unparsed", reply.content)


@lru_cache(maxsize=256)
def _scorer(name: str) -> Callable[[str, Mapping[str, Any]], float]:
    import reasoning_gym

    scorer: Callable[[str, Mapping[str, Any]], float] = reasoning_gym.get_score_answer_fn(name)
    return scorer


def _gym(problem: Problem, reply: Reply) -> Verdict:
    """reasoning-gym's own scorer, on the answer alone; only full marks count."""
    text = extraction.unboxed(reply.content)
    declared = [] if reply.tagged else [each for each in extraction.declarations(text) if each.strong]
    given = declared[0].content if declared else text
    try:
        score = float(_scorer(str(problem.meta["name"]))(given, problem.meta["entry"]))
    except Exception as error:  # a scorer by others may raise anything on odd text; the verdict says so
        return Verdict("error", given, "", f"{type(error).__name__}: {error}"[:200])
    return Verdict("correct" if score >= _FULL_MARKS else "wrong", given, given)


JUDGES: dict[str, Callable[[Problem, Reply], Verdict]] = {
    "choice": _choice,
    "yesno": _yes_no,
    "integer": _number,
    "number": _number,
    "quantity": _quantity,
    "latex": _latex,
    "list": _list,
    "text": _text,
    "gym": _gym,
}
