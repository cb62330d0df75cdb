"""`Completion`: one sampled trace and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xreasoner.trace import split

Exit = Literal["natural", "forced", "truncated", "aborted", "refused"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote after the prompt.

    text: the decoded tokens, special tokens left out, forced text included.
    token_ids: all tokens after the prompt, the end-of-turn token included when it was sampled; length T.
    logprobs: log-probability of each token under the sampling model at temperature 1, length T
        (0.0 for forced tokens), or () when they were not asked for.
    forced: True where the engine, not the policy, chose the token (the forced exit's text); length T.
    thought, answer: the two sides of the trace as `trace.split` sees them; answer is "" when there is none.
    exit: `natural` (the model ended by itself within its budgets), `forced` (the engine closed the thought),
        `truncated` (the answer budget ran out too), `aborted` (somebody cancelled it),
        `refused` (a server's content filter ended it).
    repeats: the thought ended in a loop (`trace.repeats`).
    version: training steps that the weights had had, where they are being trained.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    forced: tuple[bool, ...]
    thought: str
    answer: str
    exit: Exit
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    repeats: bool = False
    version: int = 0

    @property
    def content(self) -> str:
        """All that was written outside of the thought, without the tags: the answer, and a solution around it."""
        return split(self.text).content
