"""The engine interface: requests in, completions out. Engines know nothing of training or grading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from xreasoner.completion import Completion

Message = dict[str, Any]
"""A chat message: {"role": …, "content": [{"type": "image"} | {"type": "text", "text": …}, …]}."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Budgets are in tokens.

    temperature: 0 means greedy. top_p 1 and top_k 0 mean no cut (training rollouts must use these).
    thinking_budget: tokens until the engine closes the thought (`exit_text`) and goes on to the answer.
    answer_budget: tokens after the thought was closed (by the model or the engine) until `truncated`. A reply
        that never opens a thought is counted against thinking_budget + answer_budget and is not forced out.
    exit_text: what the engine appends at the thinking budget.
    exit_on_repeats: also where the thought repeats itself (`trace.repeats`).
    stop: strings that end the reply; they are left out of its text.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    thinking_budget: int = 4000
    answer_budget: int = 256
    exit_text: str = " </think> <answer>"
    seed: int = 0
    logprobs: bool = False
    exit_on_repeats: bool = False
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how many samples of it. Its n samples share one prefill of text and pictures."""

    messages: Sequence[Message]
    images: Sequence[Image] = ()
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)


class Engine(Protocol):
    """Anything that completes requests."""

    name: str

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Complete every request.

        Returns one list of n completions per request, in the order of the requests. `on_done(index,
        completions)` is called as soon as a request's n completions are all there, in any order.
        """
        ...
