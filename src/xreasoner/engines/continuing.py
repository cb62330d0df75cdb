"""What engines that run by themselves have in common: a loop in a thread, and the two budgets by continued requests.

Such an engine (a server, vLLM) can only be asked for so many tokens after a prompt and the beginning of a reply. The
first pass asks for the thinking budget; where the thought is still open then, the exit text is added and a second pass
goes on from there, for the answer budget. Cached keys and values of the first pass are the engine's to use again.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import re
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from PIL.Image import Image, Resampling

from xreasoner.completion import Completion, Exit
from xreasoner.engines.base import Message, Request, Sampling
from xreasoner.engines.failures import check_logprobs, results, stopped
from xreasoner.errors import EngineError, UserError
from xreasoner.trace import CLOSE, OPEN, repeats, split

T = TypeVar("T")
Finish = Literal["stop", "length"] | Exit
"""How a pass ended: by itself, at its number of tokens, or as the whole reply did where a server keeps both budgets."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What an engine sends at a time: text and its tokens. ids and logprobs are () where the engine does not say.

    finish: with the last piece; total, thought: tokens of the whole pass and of its thought, where the engine says.
    """

    text: str
    tokens: int = 0
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finish | None = None
    total: int | None = None
    thought: int | None = None


@dataclass(slots=True)
class Draft:
    """One sample on its way. Lists have an entry a token, forced ones included, where the engine says what they are."""

    request: Request
    sample: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    units: list[int | str] = field(default_factory=list)
    sampled: int = 0
    thought_tokens: int = 0
    prompt_tokens: int = 0
    was_forced: bool = False
    broke_off: bool = False
    """The turn ended inside the thought."""
    ids_known: bool = True
    reasoning: bool = False
    """The server tells the thought apart from the answer by itself."""
    followed: bool = False
    """Somebody reads the text while it is written, so none of it can be taken back."""

    @property
    def sampling(self) -> Sampling:
        return self.request.sampling

    @property
    def opened(self) -> bool:
        return self.text.lstrip().startswith(OPEN)

    @property
    def closed(self) -> bool:
        return CLOSE in self.text

    @property
    def must_close(self) -> bool:
        return self.opened and not self.closed

    @property
    def may_end(self) -> bool:
        """Whether the end of the turn is that of the reply. (Which of both a stop string was, servers do not say.)"""
        return not (self.must_close and self.sampling.exit_on_end) or bool(self.sampling.stop)

    def copy(self) -> Draft:
        return replace(self, ids=[*self.ids], logprobs=[*self.logprobs], forced=[*self.forced], units=[*self.units])

    def room(self) -> int:
        """Tokens until a budget ends."""
        thinking, answer = self.sampling.thinking_budget, self.sampling.answer_budget
        if self.closed:
            return answer - (self.sampled - self.thought_tokens)
        if self.opened or (not self.text and thinking):
            return thinking - self.sampled
        return thinking + answer - self.sampled

    def add(self, piece: Piece) -> None:
        before = self.closed
        self.text += piece.text
        self.sampled += piece.tokens
        if not before:
            self.thought_tokens = self.sampled
            self.units += piece.ids or ([piece.text] if piece.text else [])
        self.ids_known &= len(piece.ids) == piece.tokens
        self.ids += piece.ids
        self.logprobs += piece.logprobs
        self.forced += [False] * len(piece.ids)

    def force(self, ids: Sequence[int] | None) -> str:
        """Close the thought; ids: the exit text's tokens, None where they are not known. Returns what was added."""
        text = self.sampling.exit_text
        self.text += text
        self.was_forced = True
        self.ids_known &= ids is not None
        self.ids += ids or ()
        self.logprobs += [0.0] * len(ids or ())
        self.forced += [True] * len(ids or ())
        return text

    def take_back_end(self) -> None:
        """The end of the turn is no part of a reply that goes on."""
        self.broke_off = True
        if self.ids and self.ids_known:
            for row in (self.ids, self.logprobs, self.forced):
                del row[-1:]
            self.sampled -= 1
            self.thought_tokens -= 1

    def loops(self) -> bool:
        wanted = self.sampling.exit_on_repeats and self.must_close and len(self.units) % 32 == 0
        return wanted and repeats(self.units)

    def completion(self, exit: Exit) -> Completion:
        trace = split(self.text)
        thought_tokens = self.thought_tokens if self.opened or self.closed else 0
        known = self.ids_known
        return Completion(
            text=self.text,
            token_ids=tuple(self.ids) if known else (),
            logprobs=tuple(self.logprobs) if self.sampling.logprobs else (),
            forced=tuple(self.forced) if known else (),
            thought=trace.thought,
            answer=trace.answer if exit in ("natural", "forced") or trace.closed else "",
            exit=exit,
            prompt_tokens=self.prompt_tokens,
            thought_tokens=thought_tokens,
            answer_tokens=self.sampled + sum(self.forced) * known - thought_tokens,
            repeats=repeats(self.units),
        )


class RunningTicket:
    """See `engines.base.Ticket`."""

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[list[Completion]], None] | None,
        on_text: Callable[[int, str], None] | None,
        on_end: Callable[[], object] | None = None,
    ) -> None:
        self.request, self.on_done, self.on_text, self._on_end = request, on_done, on_text, on_end
        self.done = threading.Event()
        self._ending = threading.Lock()
        self.error: BaseException | None = None
        self.cancelled = False
        self.samples: list[Completion] = []
        self._loop = loop
        self.tasks: list[asyncio.Task[Completion]] = []

    @property
    def completions(self) -> list[Completion]:
        if self.error is not None:
            raise self.error
        return self.samples

    def end(self) -> None:
        """Let go whoever waits, once."""
        with self._ending:
            if self.done.is_set():
                return
            self.done.set()
        if self._on_end is not None:
            self._on_end()

    def fail(self, error: BaseException) -> None:
        """End with an error, where it has not ended."""
        if not self.done.is_set():
            self.error = stopped(error)
            self.end()

    def cancel(self) -> None:
        self.cancelled = True
        if not self.done.is_set():
            with suppress(RuntimeError):  # the loop has ended, and so has this
                self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()


class ContinuingEngine:
    """Budgets, tickets and the loop. An engine adds `_passed` (one pass) and, where it can, `_exit_ids`.

    Its thread ends with `close`, or with the program.
    """

    name = "continuing"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._unfinished: set[RunningTicket] = set()
        """Requests that have not ended: none of them may wait for a loop that has stopped."""
        self._thread = threading.Thread(target=self._run, name=f"{self.name} engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        """The loop, until it is stopped, or by what is no `Exception`; whoever still waits then learns of it."""
        reason: BaseException = RuntimeError("the engine was closed")
        try:
            self._loop.run_forever()
        except BaseException as error:
            reason = error
        finally:
            for ticket in list(self._unfinished):
                ticket.fail(reason)

    def _start(self, ticket: RunningTicket) -> None:
        """Have the loop answer a request. Raises `EngineError` where it has ended."""
        if not self._thread.is_alive() or self._loop.is_closed():
            raise EngineError("the engine was closed; open it again")
        self._unfinished.add(ticket)
        answering = asyncio.run_coroutine_threadsafe(self._answer(ticket), self._loop)
        # one that is cancelled before it begins ends nothing itself
        answering.add_done_callback(lambda _: ticket.fail(RuntimeError("the engine was closed")))
        if not self._thread.is_alive():  # it ended meanwhile
            ticket.fail(EngineError("the engine was closed; open it again"))

    def _passed(self, draft: Draft, tokens: int) -> AsyncGenerator[Piece, None]:
        """Go on after the prompt and `draft.text` for at most so many tokens; the last piece has `finish`."""
        raise NotImplementedError

    def _exit_ids(self, draft: Draft) -> Sequence[int] | None:
        return None

    async def _pass(self, draft: Draft, tokens: int, tell: Callable[[str], None]) -> Finish:
        """One pass, written into the draft."""
        begin = draft.sampled
        async with aclosing(self._passed(draft, tokens)) as pieces:
            async for piece in pieces:
                check_logprobs(piece.logprobs, f"after {draft.sampled} tokens of sample {draft.sample}")
                draft.add(piece)
                if piece.text:
                    tell(piece.text)
                if piece.finish is not None:
                    return piece.finish
                if draft.sampled - begin < tokens and (draft.room() <= 0 or draft.loops()):
                    return "length"
        raise RuntimeError("a pass ended without a word how")

    async def _finish(self, draft: Draft, tell: Callable[[str], None]) -> Exit:
        """All passes of one sample."""
        ended = False
        while True:
            room = draft.room()
            if draft.must_close and (ended or room <= 0 or draft.loops()):
                tell(draft.force(self._exit_ids(draft)))
                continue
            if room <= 0:
                return "truncated"
            finish = await self._pass(draft, room, tell)
            ended = finish == "stop"
            if finish == "stop":
                if draft.may_end:
                    return "forced" if draft.was_forced else "natural"
                draft.take_back_end()
            elif finish != "length":
                return finish

    async def _sample(self, ticket: RunningTicket, sample: int) -> Completion:
        told = ticket.on_text
        draft = Draft(ticket.request, sample, followed=told is not None)
        try:
            exit = await self._finish(draft, (lambda text: told(sample, text)) if told else (lambda text: None))
        except asyncio.CancelledError:
            if not ticket.cancelled:
                raise
            exit = "aborted"
        return draft.completion(exit)

    async def _answer(self, ticket: RunningTicket) -> None:
        try:
            if ticket.cancelled:
                ticket.samples = [Draft(ticket.request, k).completion("aborted") for k in range(ticket.request.n)]
            else:
                ticket.tasks = [asyncio.ensure_future(self._sample(ticket, k)) for k in range(ticket.request.n)]
                ticket.samples = list(await asyncio.gather(*ticket.tasks))
            if ticket.on_done is not None:
                ticket.on_done(ticket.samples)
        except BaseException as error:
            ticket.error = error if isinstance(error, Exception) else RuntimeError("the engine was closed")
            ticket.stop()
        finally:
            self._unfinished.discard(ticket)
            ticket.end()

    def submit(
        self,
        request: Request,
        on_done: Callable[[list[Completion]], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> RunningTicket:
        """See `engines.base.Engine`. on_end: called when the request has ended, well or not."""
        self._check(request)
        ticket = RunningTicket(request, self._loop, on_done, on_text, on_end)
        self._start(ticket)
        return ticket

    def _check(self, request: Request) -> None:
        if CLOSE not in request.sampling.exit_text:
            raise UserError(f"exit_text {request.sampling.exit_text!r} does not hold {CLOSE}; expected it to")
        places = sum(part.get("type") == "image" for message in request.messages for part in parts(message))
        if places != len(request.images):
            raise UserError(f"the messages have {places} places for pictures, {len(request.images)} were given")
        least, most = request.min_pixels or 1, request.max_pixels or 1 << 60
        if not 1 <= least <= most or most < CELL:
            raise UserError(
                f"min_pixels {request.min_pixels} and max_pixels {request.max_pixels}; expected 1 <= min_pixels <= "
                f"max_pixels, and max_pixels of at least {CELL}, which is one token"
            )

    def generate(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """See `engines.base.Engine`."""
        settled: queue.Queue[int] = queue.Queue()
        outcomes: list[RunningTicket | Exception] = []
        for k, request in enumerate(requests):
            try:
                outcomes.append(self.submit(request, None, None, partial(settled.put, k)))
            except Exception as error:
                outcomes.append(error)
        tickets = {k: ticket for k, ticket in enumerate(outcomes) if isinstance(ticket, RunningTicket)}
        try:
            for _ in tickets:
                k = settled.get()
                if on_done is not None and tickets[k].error is None:
                    try:
                        on_done(k, tickets[k].completions)
                    except Exception as error:
                        outcomes[k] = error
        except BaseException:
            for ticket in tickets.values():
                ticket.cancel()
            raise
        return results(outcomes)

    def wait(self, tickets: Sequence[Any]) -> None:
        """See `engines.base.Engine`."""
        for ticket in tickets:
            ticket.done.wait()

    def step(self) -> bool:
        """The engine runs by itself."""
        return False

    def _now(self, work: Any) -> Any:
        """The result of a coroutine, run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End what runs, and the thread. Done at the program's end where it was not done before."""
        atexit.unregister(self.close)
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def parts(message: Message) -> list[dict[str, Any]]:
    """A message's content as a list of parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


_SPECIAL = re.compile(r"<\|(\w+)\|>")


def plain(text: str) -> str:
    """Text in which no special token of Qwen's spelling stands: a server must not take it for a picture or a turn."""
    return _SPECIAL.sub("<¦\\1¦>", text)


def seed_of(sampling: Sampling, sample: int, begun: int = 0) -> int:
    """A seed below 2**31 for one pass of one sample: neighbouring seeds share no sample, and passes no noise."""
    return int(np.random.SeedSequence([sampling.seed, sample, begun]).generate_state(1)[0] >> 1)


CELL = 28 * 28
"""Pixels of one token of Qwen2.5-VL's."""


def resized(image: Image, request: Request) -> Image:
    """The picture within the request's pixels, as Qwen's own processor resizes it.

    Servers ignore `max_pixels`, so it is done before the picture is sent. A side is a multiple of 28.
    """
    if request.min_pixels is None and request.max_pixels is None:
        return image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # seconds to import

    least = request.min_pixels or 56 * 56
    height, width = smart_resize(image.height, image.width, 28, least, request.max_pixels or 16384 * 28 * 28)
    return image if (width, height) == image.size else image.resize((width, height), Resampling.BICUBIC)
