"""Comparing mathematical answers in a pool of worker processes that can be killed.

A worker is `math_worker.py` in a process of its own, fed by a pipe. The limit is CPU time, kept by the kernel; a case
that passes it costs its own second, and the worker is replaced. No signal is used in this process, so threads may ask.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import IO

from xreasoner.grading import math_worker

LIMIT = 1.0
"""Seconds of CPU time for one comparison."""
_PATIENCE = 20.0
"""Seconds on the clock after which a worker is given up, whatever it has computed (a machine that swaps)."""
_START = 120.0
TIMEOUT = "timeout"
"""What `Pool.compare` says of a case that passed the limit."""


class _Worker:
    """One process; `ask` gives its answer, or None where it died or took too long."""

    def __init__(self, limit: float) -> None:
        program = [sys.executable, "-P", str(Path(math_worker.__file__)), str(limit)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, start_new_session=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in: IO[bytes] = self.process.stdin
        self._out: IO[bytes] = self.process.stdout
        self._ready = False
        self.hangs = False
        """No answer came in time, and the process had not ended either."""

    def ask(self, gold: str, given: str) -> str | None:
        try:
            if not self._ready:
                self._ready = self._line(_START) == b"ready\n"
            self._in.write(json.dumps([gold, given]).encode() + b"\n")
            self._in.flush()
            line = self._line(_PATIENCE)
        except OSError:
            return None
        return str(json.loads(line)) if line else None

    def _line(self, seconds: float) -> bytes:
        poll = select.poll()
        poll.register(self._out, select.POLLIN | select.POLLHUP)
        self.hangs = not poll.poll(seconds * 1000)
        return b"" if self.hangs else self._out.readline()

    def end(self, wait: float = 0) -> int | None:
        """Kill the process, if it does not end within `wait` seconds. Returns how it ended by itself, else None."""
        try:
            ended = self.process.wait(wait)
        except subprocess.TimeoutExpired:
            ended = None
        self.process.kill()
        self.process.wait()
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):  # what was not yet written has nobody to read it
                stream.close()
        return ended


class Pool:
    """Workers that are started when they are first needed. `compare` may be called from any thread.

    size: processes; limit: seconds of CPU time for one case.
    """

    def __init__(self, size: int = 2, limit: float = LIMIT) -> None:
        self.limit = limit
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self.size = size

    def compare(self, gold: str, given: str) -> str:
        """ "equal", "different", "unparsed", `TIMEOUT`, or "memory" or "failed: …" where the worker could not say."""
        worker = self._idle.get()
        try:
            for _ in range(2):  # a worker may have died while it was idle
                worker = worker or _Worker(self.limit)
                found = worker.ask(gold, given)
                if found is not None:
                    return found
                ended = worker.end(wait=0 if worker.hangs else 5)
                worker = None
                if ended in (None, -signal.SIGPROF):
                    return TIMEOUT
            return f"failed: the worker ended with {ended}"
        except BaseException:  # interrupted between question and answer: the next one would read this answer
            if worker is not None:
                worker.end()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the workers. A pool that is used again starts new ones."""
        for worker in [self._idle.get() for _ in range(self.size)]:
            if worker is not None:
                worker.end()
            self._idle.put(None)


_lock = threading.Lock()
_pools: dict[int, Pool] = {}


def pool() -> Pool:
    """This process's pool; a forked child gets its own."""
    with _lock:
        found = _pools.get(os.getpid())
        if found is None:
            found = _pools[os.getpid()] = Pool(size=max(1, min(os.cpu_count() or 1, 8)))
            atexit.register(_close, os.getpid(), found)
        return found


def _close(owner: int, found: Pool) -> None:
    if os.getpid() == owner:
        found.close()


@lru_cache(maxsize=16384)
def _settled(gold: str, given: str) -> str | None:
    """What needs no worker: the same writing, or two plain numbers."""
    gold, given = math_worker.normal(gold), math_worker.normal(given)
    if math_worker._squeezed(gold) == math_worker._squeezed(given):
        return "equal"
    a, b = math_worker.simple_number(gold), math_worker.simple_number(given)
    return None if a is None or b is None else "equal" if a == b else "different"


_known: dict[tuple[str, str], str] = {}


def same(gold: str, given: str) -> str:
    """Is the given answer the gold? See `Pool.compare`. Answers are remembered: a group of rollouts repeats itself."""
    found = _settled(gold, given) or _known.get((gold, given))
    if found is None:
        found = pool().compare(gold, given)
        if len(_known) > 16384:
            _known.clear()
        _known[gold, given] = found
    return found
