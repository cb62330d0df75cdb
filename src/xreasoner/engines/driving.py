"""Many requests through an engine, some at a time, whether it runs by itself or is driven."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

from xreasoner.completion import Completion
from xreasoner.engines.base import Engine, Request, Ticket

K = TypeVar("K")

WINDOW = 256
"""Requests that are with the engine at a time."""
LOOK = 32
"""Steps between two looks for requests that failed."""


def finished(
    engine: Engine, requests: Iterator[tuple[K, Request]], window: int = WINDOW
) -> Iterator[tuple[K, list[Completion] | Exception]]:
    """(key, completions) of each request as it is done, or (key, what went wrong). Leaving the loop cancels them."""
    ready: queue.Queue[int] = queue.Queue()
    running: dict[int, tuple[K, Ticket]] = {}
    number, more = 0, True
    try:
        while more or running:
            while more and len(running) < window:
                item = next(requests, None)
                if item is None:
                    more = False
                    break
                key, request = item
                number += 1
                try:
                    ticket = engine.submit(request, lambda _, number=number: ready.put(number))  # type: ignore[misc]
                except Exception as error:
                    yield key, error
                    continue
                running[number] = (key, ticket)
            for done in _wait(engine, ready, running):
                key, ticket = running.pop(done)
                yield key, _outcome(ticket)
    finally:
        for _, ticket in running.values():
            ticket.cancel()
        while engine.step() and running:
            running = {number: pair for number, pair in running.items() if not pair[1].done.is_set()}


def _outcome(ticket: Ticket) -> list[Completion] | Exception:
    try:
        return ticket.completions
    except Exception as error:
        return error


def _wait(engine: Engine, ready: queue.Queue[int], running: dict[int, tuple[K, Ticket]]) -> list[int]:
    """Numbers of those that are done; drives the engine, or waits, until there is one."""
    for step in itertools.count(1):
        if not running or not ready.empty():
            break
        busy = engine.step()
        if busy and step % LOOK:
            continue
        if not busy:
            with suppress(queue.Empty):
                ready.put(ready.get(timeout=0.05))
        # a request that failed says so by its ticket alone
        failed = [number for number, (_, ticket) in running.items() if ticket.done.is_set()]
        if failed and ready.empty():
            return failed
    return [ready.get() for _ in range(ready.qsize())]
