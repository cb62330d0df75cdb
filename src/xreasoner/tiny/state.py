"""Saving and logging while the base is made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write aside, then rename."""
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)


def record(out: Path, row: dict[str, Any]) -> None:
    """One line in the log and on the screen."""
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
