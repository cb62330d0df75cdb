"""How long a fuzz test runs, and the loop that all of them share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def fuzz_seconds() -> float:
    """Seconds that each fuzz test may take: `XREASONER_FUZZ_SECONDS`, by default 5."""
    return float(os.environ.get("XREASONER_FUZZ_SECONDS", "5"))


def fuzz(entry: Callable[[T], None], inputs: SearchStrategy[T], slowest: float = 1.0, share: float = 1.0) -> int:
    """Call `entry` with drawn inputs until the time is up; returns how many it took.

    Args:
        entry: raises nothing for any input.
        inputs: what to draw from.
        slowest: seconds of CPU time that one call may take.
        share: the part of `fuzz_seconds` that this call takes.

    Raises:
        AssertionError: with the smallest input found that raises or takes longer.
    """
    end = time.monotonic() + share * fuzz_seconds()
    calls = 0
    found: list[AssertionError] = []

    @settings(
        max_examples=10_000_000,
        deadline=None,
        database=None,
        derandomize="CI" in os.environ,  # a change is judged by its own faults; `make fuzz` looks for new ones
        phases=(Phase.generate, Phase.target, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(data: T) -> None:
        nonlocal calls
        if time.monotonic() > end:
            raise _TimeUpError
        calls += 1
        try:
            _call(entry, data, slowest)
        except Exception as error:
            found.append(AssertionError(f"{_shown(data)}: {type(error).__name__}: {error}"))
            raise

    try:
        one()
    except _TimeUpError:
        if found:  # while it was being made smaller
            raise found[-1] from None
    return calls


def _shown(data: Any) -> str:
    return repr(data[:500] if isinstance(data, bytes) else data)[:2000]


def _call(entry: Callable[[T], None], data: T, slowest: float) -> None:
    start = time.process_time()
    entry(data)
    spent = time.process_time() - start
    assert spent < slowest, f"{spent:.2f} s of CPU time"


class _TimeUpError(BaseException):
    """Ends a run; no `Exception`, so that it is not taken for a finding."""
