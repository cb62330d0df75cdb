"""The desk between the routes and the engine: it loads the model, drives it, and lets so many requests in at a time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from xreasoner.completion import Completion
from xreasoner.decisions import Decision, decide
from xreasoner.engines.base import Request, Ticket
from xreasoner.errors import EngineError, reason
from xreasoner.reasoner import Reasoner
from xreasoner.serving.metrics import Metrics

log = logging.getLogger("xreasoner.serving")


class BusyError(Exception):
    """Too many requests are being read, waiting or running."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all requests together, may ask for."""

    max_body: int = 32 * 2**20
    """Maximum bytes of a request's body."""
    max_bodies: int = 256 * 2**20
    """Maximum bytes of all bodies being read at a time."""
    body_seconds: float = 30.0
    """Seconds within which a body must arrive."""
    max_running: int = 256
    """Maximum running requests."""
    max_queue: int = 256
    """Maximum queued requests."""
    max_samples: int = 16
    """Maximum `n` of one request."""
    max_tokens: int = 32_768
    """Maximum tokens of thought and answer of one sample."""
    max_pixels: int = 1_048_576
    """Maximum `min_pixels` and `max_pixels` of one request: what an image may be enlarged to."""


PIECE_SECONDS = 0.04
"""Between two pieces of a stream. A piece for each token would take the engine's thread more time than its tokens."""

Text = tuple[int, str, int]
"""(sample, a piece of its text, from so many tokens)."""


class Desk:
    """One model behind one service.

    `start` loads it in a thread of the desk's own, which then drives the engine; `ready` and `error` say how that went.
    """

    def __init__(self, opened: Callable[[], Reasoner], limits: Limits, metrics: Metrics) -> None:
        self._opened, self.limits, self.metrics = opened, limits, metrics
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="xreasoner-engine", daemon=True)
        self._places = asyncio.Semaphore(limits.max_running)
        self._here = self._arriving = self._bytes = 0
        self.readers = ThreadPoolExecutor(16, "xreasoner-reading")
        """Threads that read pictures: a host that is slow keeps none of those that answer."""
        self.on_loaded: Callable[[], None] = lambda: None

    @property
    def reasoner(self) -> Reasoner:
        assert self.ready.is_set()
        return self._reasoner

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the engine go; what runs is cancelled."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=10)
        self.readers.shutdown(wait=False, cancel_futures=True)
        if self.ready.is_set():
            self._reasoner.close()

    def _run(self) -> None:
        try:
            self._reasoner = self._opened()
            self.ready.set()
        except BaseException as error:
            self.error = error
        self.on_loaded()
        while self.error is None and not self._stop.is_set():
            try:
                busy = self._reasoner.engine.step()
            except Exception:  # those who wait are told by their tickets
                log.exception("the engine failed in a step")
                busy = True
            except BaseException as error:  # nobody drives the engine any more
                log.exception("the engine was stopped")
                self.error = error
                break
            if not busy:
                self._wake.wait(0.5)
                self._wake.clear()

    @contextmanager
    def arrival(self) -> Iterator[Callable[[int], None]]:
        """A request that is being read, counted with those that are here; gives what its bytes are told to.

        Both raise `BusyError` where there are too many already.
        """
        if self._here + self._arriving >= self.limits.max_running + self.limits.max_queue:
            raise BusyError
        self._arriving += 1
        held = 0

        def count(size: int) -> None:
            nonlocal held
            held += size
            self._bytes += size
            if self._bytes > max(self.limits.max_bodies, self.limits.max_body):
                raise BusyError

        try:
            yield count
        finally:
            self._arriving -= 1
            self._bytes -= held

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place at the engine, waited for in the queue. Raises `BusyError` where that is full."""
        if self._here >= self.limits.max_running + self.limits.max_queue:
            raise BusyError
        self._here += 1
        self.metrics.waiting.inc()
        seated = False
        try:
            async with self._places:
                seated = True
                self.metrics.waiting.dec()
                self.metrics.running.inc()
                try:
                    yield
                finally:
                    self.metrics.running.dec()
        finally:
            self._here -= 1
            if not seated:
                self.metrics.waiting.dec()

    async def run(self, request: Request, streamed: bool) -> AsyncGenerator[Text | list[Completion], None]:
        """The texts of a request as they are written (where streamed), and its completions at the end.

        Leaving it cancels the request. Raises what the engine raises.
        """
        loop, begun, first = asyncio.get_running_loop(), time.monotonic(), True
        texts: deque[Text] = deque()
        woken = asyncio.Event()

        whole = threading.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        def finish(_: list[Completion]) -> None:
            whole.set()
            wake()

        def tell(sample: int, text: str) -> None:
            texts.append((sample, text, 1))
            if len(texts) == 1:
                wake()

        submit = self.reasoner.engine.submit
        submitted = asyncio.ensure_future(asyncio.to_thread(submit, request, finish, tell if streamed else None))
        try:
            ticket = await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the client went away while its pictures were computed
            submitted.add_done_callback(_cancelled)
            raise
        self._wake.set()
        try:
            while texts or not (ticket.done.is_set() or whole.is_set()):
                with suppress(TimeoutError):  # a ticket that failed wakes nobody
                    await asyncio.wait_for(woken.wait(), 0.5)
                woken.clear()
                if self.error is not None and not ticket.done.is_set():
                    raise EngineError(f"the engine has stopped ({reason(self.error)})")
                for event in _joined(texts):
                    if first:
                        self.metrics.first.observe(time.monotonic() - begun)
                        first = False
                    yield event
                if streamed and not (ticket.done.is_set() or whole.is_set()):
                    await asyncio.sleep(PIECE_SECONDS)
            completions = ticket.completions
            self.metrics.count(completions, time.monotonic() - begun)
            yield completions
        finally:
            if not (ticket.done.is_set() or whole.is_set()):
                ticket.cancel()
                self._wake.set()
                self.metrics.exits.labels("aborted").inc(request.n)

    async def decide(self, request: Request, completion: Completion, options: tuple[str, ...]) -> Decision:
        return await asyncio.to_thread(decide, self.reasoner.engine, request, completion, options)


def _joined(texts: deque[Text]) -> list[Text]:
    """What has come, taken away, in one piece for each sample."""
    found: dict[int, tuple[str, int]] = {}
    while texts:
        sample, text, tokens = texts.popleft()
        before, count = found.get(sample, ("", 0))
        found[sample] = (before + text, count + tokens)
    return [(sample, text, tokens) for sample, (text, tokens) in found.items()]


def _cancelled(submitted: asyncio.Future[Ticket]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
