"""Whether memory stays flat."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resident_bytes() -> int:
    """This process's resident memory; 0 where /proc does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


@contextmanager
def assert_memory_is_flat(most: int = 128 << 20) -> Iterator[None]:
    """Fails where the resident memory grows by more than `most` bytes."""
    gc.collect()
    before = resident_bytes()
    yield
    gc.collect()
    grown = resident_bytes() - before
    assert grown < most, f"memory grew by {grown >> 20} MB"
