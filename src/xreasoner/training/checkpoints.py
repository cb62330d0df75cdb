"""Numbered checkpoints, written aside and renamed, with a hash; a damaged one is named and the one before it used."""

from __future__ import annotations

import hashlib
import os
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Save the state of a step. Nothing saved before is touched until the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path, aside = folder / f"step-{step:06d}.pt", folder / ".partial"
    with aside.open("wb") as file:
        torch.save({**state, "step": step, "rng": _rng_state()}, file)
        file.flush()
        os.fsync(file.fileno())
    proof = path.with_suffix(".sha256")
    proof.with_suffix(".partial").write_text(_sha256(aside))
    os.replace(proof.with_suffix(".partial"), proof)
    os.replace(aside, path)
    for old in _numbered(folder)[:-KEPT]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint's state, or None. Restores no generator: see `restore_rng`."""
    for path in reversed(_numbered(folder)):
        proof = path.with_suffix(".sha256")
        if proof.is_file() and proof.read_text() == _sha256(path):
            state: dict[str, Any] = torch.load(path, weights_only=False, map_location="cpu")
            return state
        warnings.warn(f"checkpoint {path} is damaged (its sha256 differs); the one before it is used", stacklevel=2)
    return None


def clear(folder: Path) -> None:
    """Remove a finished stage's checkpoints."""
    for path in _numbered(folder):
        path.unlink()
        path.with_suffix(".sha256").unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{6}\.pt", path.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: dict[str, Any]) -> None:
    """Put every generator back to where the checkpoint left it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
