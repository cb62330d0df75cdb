"""How sure a model is of each option: its probability after the thought, at the place where the answer is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xreasoner.completion import Completion, Exit
from xreasoner.engines.base import Engine, Request
from xreasoner.errors import UserError
from xreasoner.problem import LABELS
from xreasoner.trace import ANSWER_CLOSE, ANSWER_OPEN, CLOSE, OPEN


@dataclass(frozen=True, slots=True)
class Decision:
    """What a model thinks of the options.

    probabilities: of each option, in order; they add up to 1.
    mass: the probability that the answer is one of the options at all, before they were made to add up to 1.
    exit: how the thought ended that the decision rests on.
    """

    probabilities: tuple[float, ...]
    mass: float
    exit: Exit


def reply_so_far(completion: Completion, exit_text: str) -> str:
    """The reply up to and including `<answer>`, which is added where the model did not write it.

    A thought that did not end is ended with `exit_text`. Of a reply without a thought and without the tag nothing is
    kept: it is an answer already.
    """
    thought, closed, rest = completion.text.rpartition(CLOSE)
    if not closed:
        thought, rest = "", completion.text
    before, tag, _ = rest.rpartition(ANSWER_OPEN)
    if closed or (tag and not rest.lstrip().startswith(OPEN)):
        return thought + closed + (before + tag if tag else " " + ANSWER_OPEN)
    if not rest.lstrip().startswith(OPEN):
        return ANSWER_OPEN
    return rest + exit_text if exit_text.rstrip().endswith(ANSWER_OPEN) else rest + exit_text + " " + ANSWER_OPEN


def ways(options: Sequence[str]) -> list[list[str]]:
    """How each option may be written after `<answer>`; no two of them can come about together.

    "B: text" and "B. text" whatever follows; "B" or "text" alone up to the closing tag; each with a space before it
    or without. An option's text alone is left out where another option is written like that.
    """
    pairs = list(zip(LABELS, options, strict=False))
    taken = [label for label, _ in pairs] + list(options)
    found = []
    for label, text in pairs:
        forms = [f"{label}: {text}", f"{label}. {text}", label + ANSWER_CLOSE]
        if taken.count(text) == 1:
            forms.append(text + ANSWER_CLOSE)
        found.append([space + form for form in forms for space in ("", " ")])
    return found


def decide(engine: Engine, request: Request, completion: Completion, options: Sequence[str]) -> Decision:
    """The probability of each option after the thought of a completion of this request.

    Raises `UserError` for fewer than two options, an empty one, or more than have a label, and `NonFiniteError` for
    probabilities that are no numbers.
    """
    if not 2 <= len(options) <= len(LABELS) or not all(option.strip() for option in options):
        raise UserError(f"options {list(options)!r}; expected 2 to {len(LABELS)} texts, none of them empty")
    from xreasoner.engines.failures import check_logprobs  # imports torch, which a mistake in a question should not

    groups = ways([option.strip() for option in options])
    given = reply_so_far(completion, request.sampling.exit_text)
    scores = iter(engine.score(request, given, [way for group in groups for way in group]))
    found = [[next(scores) for _ in group] for group in groups]
    for option, logs in zip(options, found, strict=True):
        check_logprobs(logs, f"of the option {option!r}")
    logs = [_log_sum(group) for group in found]
    total = _log_sum(logs)
    if total == -math.inf:
        raise UserError("the model gives none of the options any probability; expected options that it can write")
    return Decision(tuple(math.exp(log - total) for log in logs), min(1.0, math.exp(total)), completion.exit)


def _log_sum(logs: Sequence[float]) -> float:
    most = max(logs)
    return most if most == -math.inf else most + math.log(sum(math.exp(log - most) for log in logs))
