"""`Verdict`: what grading said about one completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["correct", "wrong", "truncated", "unparsed", "refused", "conflict", "error"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, the answer as it stood in the reply, the answer as it was compared, and a note.

    correct: equal to the gold. wrong: an answer was found and differs. truncated: the trace never reached an
    answer. unparsed: no answer of the expected kind was found. refused: the model declined. conflict: two
    different answers to a single-answer problem. error: the grader itself failed (never counted as correct).
    note: why it failed, or what a reader should know (a label and the text behind it disagree); else "".
    """

    outcome: Outcome
    extracted: str = ""
    normalised: str = ""
    note: str = ""

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"
