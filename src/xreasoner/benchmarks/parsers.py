"""How much of a score is the parser's: the same replies under our grader, a strict one, and the published rules.

The rules of MMMU, MMMU-Pro, MMLU-Pro, MathVista and GSM8K are written anew from their descriptions, faults included,
and read the whole reply as their own scripts do. Where a script guesses (a random option, the nearest string), the
credit is the guess's expectation and is reported apart. None of them judges anything else in this project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xreasoner.benchmarks import statistics
from xreasoner.benchmarks.store import Row, cluster_of
from xreasoner.grading.words import accepted
from xreasoner.problem import LABELS

OURS = "ours"
CHOICE = frozenset({"choice"})
NUMBER = frozenset({"integer", "number"})
FREE = NUMBER | {"text", "yesno", "latex", "list", "quantity"}
"""All but gym: those have scorers of their own and no single gold."""


@dataclass(frozen=True, slots=True)
class Case:
    """One reply as a rule sees it. gold: the label of the right option where there are options, else the answer.

    precision: decimal places of a float's gold, where the data set has them.
    """

    text: str
    gold: str
    options: tuple[str, ...] = ()
    answer_type: str = "text"
    precision: int | None = None

    @property
    def labels(self) -> str:
        return LABELS[: len(self.options)]


@dataclass(frozen=True, slots=True)
class Credit:
    """What a rule gives a reply: 0 to 1, fractional where a guess is right by chance. guessed: nothing was read."""

    value: float
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A published rule. kinds: the answer types it was made for. fallback: what it does where it reads nothing."""

    name: str
    kinds: frozenset[str]
    read: Callable[[Case], Credit]
    fallback: str


def _by_chance(case: Case) -> Credit:
    return Credit(1 / len(case.options), guessed=True)


def _picked(case: Case, label: str) -> Credit:
    return Credit(float(label == case.gold))


def strict(case: Case) -> Credit:
    """Nothing but a closed answer tag behind the thought that holds exactly the gold: for an option its label, or the
    label and the text as the prompt prints them ("B: No").
    """
    found = re.fullmatch(r".*<answer>([^<]*)</answer>\s*", case.text.rpartition("</think>")[2], re.DOTALL)
    right = {case.gold}
    if case.options and case.gold in case.labels:
        right.add(f"{case.gold}: {case.options[case.labels.index(case.gold)]}")
    return Credit(float(found is not None and found[1].strip() in right))


_ENDS = ",.!?;:'"


def _last(text: str, places: Mapping[str, str]) -> str:
    """The label whose form stands last in the text."""
    return max(places, key=lambda label: text.rfind(places[label]))


def _mmmu_options(case: Case, spaced: str) -> Credit:
    """ "(X)", else a bare label in the form `spaced`, else an option's text in a reply of more than 5 words, else any
    option at random; of several the one that stands last.
    """
    text = f" {case.text.strip(_ENDS)} "
    for form in ("({})", spaced):
        found = [label for label in case.labels if form.format(label) in text]
        if found:
            where = "({})" if form == "({})" else " {} "
            return _picked(case, _last(text, {label: where.format(label) for label in found}))
    named = dict(zip(case.labels, (option.lower() for option in case.options), strict=True))
    lower = text.lower()
    found = [label for label in case.labels if named[label] in lower] if len(text.split()) > 5 else []
    return _picked(case, _last(lower, {label: named[label] for label in found})) if found else _by_chance(case)


def mmmu(case: Case) -> Credit:
    """MMMU's main evaluation: options as above; open answers by containment of the gold."""
    return _mmmu_options(case, " {} ") if case.options else _mmmu_open(case)


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def _key_parts(text: str) -> list[str]:
    """The shortest part behind an indicator word in each line; the whole reply where there is none."""
    lines = re.split(r"\.\s(?=[A-Z])|\n", text.strip().strip(".").lower())
    found = []
    for index, line in enumerate(lines):
        words = (*_INDICATORS, "=") if index == len(lines) - 1 else _INDICATORS
        parts = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = min(parts, key=len, default="")
        if shortest.strip() not in {"", ":", ",", ".", "!", "?", ";", "'"}:
            found.append(shortest)
    return found or [text]


def _normalised(text: str) -> list[str | float]:
    """A number rounded to 2 places; else the lower-case string, a single letter only with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _mmmu_open(case: Case) -> Credit:
    golds = [value for gold in accepted(case.gold) for value in _normalised(gold)]
    found: list[str | float] = []
    for part in _key_parts(case.text):
        found += _normalised(part)
        for pattern in _NUMBERS:
            found += [value for match in re.findall(pattern, part) for value in _normalised(match)]
    inside = any(
        isinstance(gold, str) and gold in str(value) for value in found if isinstance(value, str) for gold in golds
    )
    return Credit(float(inside or any(value in golds for value in found if not isinstance(value, str))))


def mmmu_pro(case: Case) -> Credit:
    """MMMU-Pro: the one option letter that occurs anywhere behind the last "Answer:", else MMMU's rule, where a bare
    label needs a space on its right only.
    """
    _, said, behind = case.text.rpartition("Answer:")
    found = [label for label in case.labels if label in behind] if said else []
    return _picked(case, found[0]) if len(found) == 1 else _mmmu_options(case, "{} ")


def mmlu_pro(case: Case) -> Credit:
    """MMLU-Pro: "answer is (X)", else "Answer: X", else the last lone capital A–J, else a random option."""
    first = re.search(r"answer is \(?([A-J])\)?", case.text) or re.search(r".*[aA]nswer:\s*([A-J])", case.text)
    if first:
        return _picked(case, first[1])
    last = re.search(r"\b[A-J]\b(?!.*\b[A-J]\b)", case.text, re.DOTALL)
    return _picked(case, last[0]) if last else _by_chance(case)


def _said(text: str) -> str:
    """What stands for the language model's extraction, which MathVista's script asks for: the answer tag's content."""
    behind = text.rpartition("</think>")[2]
    found = re.search(r"<answer>(.*?)(?:</answer>|$)", behind, re.DOTALL)
    return (found[1] if found else behind).strip()


@lru_cache(maxsize=4096)
def _distance(a: str, b: str) -> int:
    """Levenshtein's."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def mathvista(case: Case) -> Credit:
    """MathVista, with the answer tag in place of its extraction by a language model: "(X)" or a letter names an
    option, anything else the nearest option by edit distance; integers are cut off, floats rounded, then strings
    are compared.
    """
    said = _said(case.text)
    if case.options:
        letter = re.search(r"\(([a-zA-Z])\)", said)
        label = (letter[1] if letter else said).upper()
        if len(label) == 1 and label in case.labels:
            return _picked(case, label)
        nearest = min(case.labels, key=lambda label: _distance(said, case.options[LABELS.index(label)]))
        return Credit(float(nearest == case.gold), guessed=said not in case.options)
    return Credit(float(_mathvista_value(case, said) == _mathvista_value(case, case.gold)))


def _mathvista_value(case: Case, said: str) -> str | None:
    try:
        if case.answer_type == "integer":
            return str(int(float(said)))
        if case.answer_type == "number" and case.precision is not None:
            return str(round(float(said), case.precision))
    except (ValueError, OverflowError):
        return None
    return said or None


def gsm8k(case: Case) -> Credit:
    """GSM8K: the number behind "#### ", commas dropped, equal as a string; no match is invalid."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", case.text)
    return Credit(float(found is not None and found[1].replace(",", "") == case.gold.replace(",", "")))


def gsm8k_flexible(case: Case) -> Credit:
    """lm-eval's flexible reading of GSM8K: the last number in the reply, "$", "," and a final "." dropped."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", case.text)
    if not found:
        return Credit(0.0)
    last = next(part for part in found[-1] if part)
    return Credit(float(re.sub(r"[,$]|\.$", "", last) == re.sub(r"[,$]|\.$", "", case.gold)))


RULES = (
    Rule("strict", CHOICE | FREE, strict, "nothing"),
    Rule("MMMU", CHOICE | FREE, mmmu, "a random option"),
    Rule("MMMU-Pro", CHOICE, mmmu_pro, "a random option"),
    Rule("MMLU-Pro", CHOICE, mmlu_pro, "a random option"),
    Rule("MathVista", CHOICE | NUMBER | {"text"}, mathvista, "the nearest option"),
    Rule("GSM8K", NUMBER, gsm8k, "nothing"),
    Rule("GSM8K, flexible", NUMBER, gsm8k_flexible, "nothing"),
)


def case_of(row: Row) -> Case:
    """What the rules see of a stored row."""
    places = (row.get("meta") or {}).get("precision")
    return Case(row["response"], row["gold"], tuple(row["options"]), row["answer_type"], places)


def spread(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same replies under each rule, for each kind of answer: {"kind" ("choice" | "number" | "text"), "n", "error"
    (half of our score's 95 % interval), "spread", "rules": [{"rule", "score", "guessed" (share where it guessed),
    "read" (score without the guesses), "empty" (the score of empty replies)}]}.

    spread: highest − lowest score among the rules that credit any reply; one that waits for words which the prompt
    never asked for reads nothing, and says nothing of the others.
    """
    found = []
    for kind, types in (("choice", CHOICE), ("number", NUMBER), ("text", FREE - NUMBER)):
        members = [row for row in rows if row["answer_type"] in types]
        if members:
            estimate = statistics.accuracy(
                [row["correct"] for row in members], [(r["bench"], cluster_of(r)) for r in members]
            )
            ours = {"rule": OURS, "score": estimate.value, "guessed": 0.0, "read": estimate.value, "empty": 0.0}
            rules = [ours, *(_scored(rule, members) for rule in RULES if types & rule.kinds)]
            scores = [entry["score"] for entry in rules if entry["score"]] or [0.0]
            entry = {"kind": kind, "n": len(members), "error": (estimate.high - estimate.low) / 2}
            found.append({**entry, "spread": max(scores) - min(scores), "rules": rules})
    return found


def _scored(rule: Rule, rows: Sequence[Row]) -> dict[str, Any]:
    cases = [case_of(row) for row in rows if row["answer_type"] in rule.kinds]
    credits = [rule.read(case) for case in cases]
    empty = [rule.read(Case("", c.gold, c.options, c.answer_type, c.precision)).value for c in cases]
    return {
        "rule": rule.name,
        "score": sum(credit.value for credit in credits) / len(cases),
        "guessed": sum(credit.guessed for credit in credits) / len(cases),
        "read": sum(credit.value for credit in credits if not credit.guessed) / len(cases),
        "empty": sum(empty) / len(cases),
    }
