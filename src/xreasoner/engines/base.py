"""The engine interface: requests in, completions out. Engines know nothing of training or grading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL.Image import Image

from xreasoner.completion import Completion
from xreasoner.engines.info import EngineInfo
from xreasoner.errors import UserError

Message = dict[str, Any]
"""A chat message: {"role": …, "content": [{"type": "image"} | {"type": "text", "text": …}, …]}."""


GREEDY = 1e-5
"""Below this temperature the likeliest token is taken: divided by less, float32's logits overflow."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Budgets are in tokens.

    temperature: 0 means greedy, and so does what is next to it (`GREEDY`). top_p 1 and top_k 0 mean no cut (training
        rollouts must use these).
    thinking_budget: tokens until the engine closes the thought (`exit_text`) and continues with the answer.
    answer_budget: tokens after a forced exit until `truncated`. A reply that closes its thought by itself, or that
        has none, has one total: thinking_budget + answer_budget.
    exit_text: what the engine appends at the thinking budget.
    exit_on_repeats: also where the thought repeats itself (`trace.repeats`).
    exit_on_end: also where the model ends its turn inside the thought, in place of that end. Training and measuring
        leave it off: there such a reply has no answer.
    stop: strings that end the answer; they are left out of its text. In the thought they are text.
    stop_in_thought: they end the thought too, which is closed behind them by `exit_text` (a forced exit).
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
    exit_on_end: bool = False
    stop: tuple[str, ...] = ()
    stop_in_thought: bool = False


Preprocessing = Literal["processor", "qwen-vl-utils"]
"""How images are resized: by the model's image processor alone, or first by qwen-vl-utils and then by the processor, as
in the model card's Transformers snippet."""
PREPROCESSING: tuple[Preprocessing, ...] = ("processor", "qwen-vl-utils")


def sized(least: int | None, most: int | None, default: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """The bounds of pictures that were asked for, else the default's, which gives way: `max_pixels` alone, below the
    default's least, lowers that too. Raises `UserError` for bounds that cross.
    """
    if least is None:
        least = default[0] if default[0] is None or most is None else min(default[0], most)
    if most is None:
        most = default[1] if default[1] is None or least is None else max(default[1], least)
    if least is not None and most is not None and least > most:
        raise UserError(f"min_pixels is {least} and max_pixels {most}; expected the other way round")
    return least, most


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how many samples of it. Its n samples share one prefill of text and pictures.

    min_pixels, max_pixels: width times height that pictures are resized to lie between; None: the model's own.
    """

    messages: Sequence[Message]
    images: Sequence[Image] = ()
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    min_pixels: int | None = None
    max_pixels: int | None = None
    preprocessing: Preprocessing = "processor"


class Ticket(Protocol):
    """A request that was handed to an engine. done: set when all n completions are there, or an error is."""

    done: threading.Event

    @property
    def completions(self) -> list[Completion]:
        """The n completions in order. Raises what went wrong, if something did."""
        ...

    def cancel(self) -> None:
        """Its samples end as `aborted` with what they have, and their slots are free."""
        ...


class Engine(Protocol):
    """Anything that completes requests."""

    name: str

    @property
    def info(self) -> EngineInfo:
        """What is known of the engine's model."""
        ...

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Complete every request.

        `on_done(index, completions)` is called as soon as a request's n completions are all there, in any order. A
        request that fails ends no other.

        Returns:
            One list of n completions per request, in the order of the requests.

        Raises:
            RequestsError: when all have ended, if some failed; it names them.
            Exception: the first request's own error, if all failed in the same way.
        """
        ...

    def submit(
        self,
        request: Request,
        on_done: Callable[[list[Completion]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Ticket:
        """Hand a request over. on_text(sample, text) is called with each sample's text as it is written, on_done with
        the n completions; both by a thread of the engine or by the one that drives it. Raises `UserError` for a bad
        request."""
        ...

    def wait(self, tickets: Sequence[Any]) -> None:
        """Return when these tickets are done, well or not; drives the engine where it does not run by itself."""
        ...

    def step(self) -> bool:
        """One token for every row that runs; False when there is nothing to do, and always where the engine runs by
        itself."""
        ...

    def score(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        """The natural log-probability of each continuation after the prompt and `given`, the reply so far.

        At temperature 1, whatever the request's sampling is, and without an end of turn behind it.
        """
        ...
