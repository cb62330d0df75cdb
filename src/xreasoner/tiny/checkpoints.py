"""Where the shipped checkpoints lie: `tiny-base` and `tiny`."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def base_folder() -> Path:
    return _HERE / "base"


def reasoner_folder() -> Path:
    return _HERE / "reasoner"
