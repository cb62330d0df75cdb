"""Where training text comes from: problems for RL, problems with a worked response for SFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from xreasoner.problem import Problem

Style = Literal["chain", "direct"]


@dataclass(frozen=True, slots=True)
class Example:
    """A problem and the response to learn: `<think> … </think> <answer>…</answer>`, or the answer alone.

    prompt: the prompt's name; the stage's own when empty.
    """

    problem: Problem
    response: str
    prompt: str = ""


class Source(Protocol):
    """A named stream of text problems, deterministic by seed."""

    def problems(self, n: int, seed: int) -> list[Problem]:
        """n problems."""
        ...

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        """n problems, each with a response in the given style."""
        ...
