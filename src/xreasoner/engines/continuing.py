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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from PIL.Image import Image

from xreasoner.completion import Completion, Exit
from xreasoner.engines.base import Message, Request, Sampling
from xreasoner.engines.failures import check_logprobs, results, stopped
from xreasoner.engines.info import EngineInfo
from xreasoner.engines.reply_budget import ReplyBudget
from xreasoner.errors import EngineError, UserError
from xreasoner.images.resize import first_resized, resized_within
from xreasoner.trace import CLOSE

T = TypeVar("T")
PATCH_SIZE = 28
"""Side in pixels of Qwen2.5-VL's image token, for a model of which nothing is known."""
Finish = Literal["stop", "length"] | Exit
"""How a pass ended: by itself, at its number of tokens, or as the whole reply did where a server keeps both budgets."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What an engine sends at a time: text and its tokens. ids and logprobs are () where the engine does not say.

    texts: the text of each token, where the engine says. finish: with the last piece; total, thought: tokens of the
    whole pass and of its thought, where the engine says.
    """

    text: str
    tokens: int = 0
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    finish: Finish | None = None
    total: int | None = None
    thought: int | None = None


@dataclass(slots=True)
class Draft:
    """One sample that is being written.

    prompt_ids: the prompt's tokens, where the engine says. reasoning: the server tells the thought apart from the
    answer by itself. followed: the text is read while it is written, so none of it can be taken back.
    """

    request: Request
    sample: int
    budget: ReplyBudget
    prompt_tokens: int = 0
    prompt_ids: tuple[int, ...] = ()
    reasoning: bool = False
    followed: bool = False

    @property
    def sampling(self) -> Sampling:
        return self.request.sampling

    @property
    def text(self) -> str:
        return self.budget.text

    def copy(self) -> Draft:
        return replace(self, budget=self.budget.copy())

    def add(self, piece: Piece) -> None:
        self.budget.add_chunk(piece.text, piece.tokens, piece.ids, piece.logprobs, piece.texts)

    def tell(self, tell: Callable[[str], None]) -> None:
        """Hand on the text that is settled, if it is read."""
        if self.followed and (new := self.budget.new_text()):
            tell(new)


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
        """Continue after the prompt and the draft for at most so many tokens; the last piece has `finish`."""
        raise NotImplementedError

    async def _exit_tokens(self, draft: Draft) -> Sequence[tuple[int, str]] | None:
        """Id and text of each of the exit text's tokens; None where the engine cannot say."""
        return None

    def _begun(self, request: Request, sample: int, followed: bool = False) -> Draft:
        """A sample of which nothing is written yet."""
        return Draft(request, sample, ReplyBudget(request.sampling), followed=followed)

    async def _pass(self, draft: Draft, tokens: int, tell: Callable[[str], None]) -> Finish:
        """One pass, written into the draft."""
        begin, budget = draft.budget.sampled, draft.budget
        async with aclosing(self._passed(draft, tokens)) as pieces:
            async for piece in pieces:
                check_logprobs(piece.logprobs, f"after {draft.budget.sampled} tokens of sample {draft.sample}")
                draft.add(piece)
                draft.tell(tell)
                if budget.dropped:
                    return "length"
                if piece.finish is not None:
                    return piece.finish
                if budget.interrupts(begin + tokens):
                    return "length"  # the engine would continue
        raise RuntimeError("a pass ended without a word how")

    async def _finish(self, draft: Draft, tell: Callable[[str], None]) -> Exit:
        """All passes of one sample. (A pass that fails on the way may put another budget into the draft.)"""
        while draft.budget.ended is None:
            if draft.budget.exit_due:
                draft.budget.force_text(await self._exit_tokens(draft))
                draft.tell(tell)
                continue
            finish = await self._pass(draft, draft.budget.pass_room(), tell)
            if draft.budget.ended is not None or draft.budget.exit_due:
                continue
            if finish == "stop":
                draft.budget.end_turn(counted=True)
            elif finish == "length":
                draft.budget.check_budgets()
            else:
                return finish
        draft.tell(tell)
        return draft.budget.ended

    async def _sample(self, ticket: RunningTicket, sample: int) -> Completion:
        told = ticket.on_text
        draft = self._begun(ticket.request, sample, followed=told is not None)
        try:
            exit = await self._finish(draft, (lambda text: told(sample, text)) if told else _untold)
        except asyncio.CancelledError:
            if not ticket.cancelled:
                raise
            exit = "aborted"
        return draft.budget.completion(exit, draft.prompt_tokens)

    async def _answer(self, ticket: RunningTicket) -> None:
        try:
            if ticket.cancelled:
                ticket.samples = [
                    self._begun(ticket.request, k).budget.completion("aborted", 0) for k in range(ticket.request.n)
                ]
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
            raise UserError(f"the messages have {places} places for images, {len(request.images)} were given")
        least, most, token = request.min_pixels or 1, request.max_pixels or 1 << 60, self._patch_size() ** 2
        if not 1 <= least <= most or most < token:
            raise UserError(
                f"min_pixels {request.min_pixels} and max_pixels {request.max_pixels}; expected 1 <= min_pixels <= "
                f"max_pixels, and max_pixels of at least {token}, which is one token"
            )

    @property
    def info(self) -> EngineInfo:
        """See `engines.base.Engine`."""
        return EngineInfo()

    def _patch_size(self) -> int:
        """Side of an image token in pixels."""
        return self.info.patch_size or PATCH_SIZE

    def _resized(self, image: Image, request: Request) -> Image:
        """The image as the request's preprocessing and pixels have it: servers ignore both, so it is done before."""
        image, side = image.convert("RGB"), self._patch_size()
        if request.preprocessing == "qwen-vl-utils":
            image = first_resized(image, side)
        if request.min_pixels is None and request.max_pixels is None:
            return image
        return resized_within(image, request.min_pixels, request.max_pixels, side)

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


def _untold(_: str) -> None:
    """Nobody reads the text while it is written."""


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
