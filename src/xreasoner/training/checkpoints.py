"""Numbered checkpoints: written aside, hashed, renamed; a damaged one is named and the one before it used.

A checkpoint is a folder `step-000012`: the tensors in PyTorch's distributed format, which any number of ranks can
read, `rank-K.pt` with each rank's generators and what else the stage keeps, and `sha256.json`, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from xreasoner.training import parallel

PROOF = "sha256.json"


def save(folder: Path, step: int, tensors: dict[str, Tensor], rest: dict[str, Any], kept: int = 2) -> Path:
    """Save a step: tensors (whole, or sharded over the ranks) and the rest, which may be anything. All ranks call.

    Nothing saved before is touched until the new one is whole. Raises `OSError` for a full disk.
    """
    path, aside = folder / f"step-{step:06d}", folder / ".partial"
    if parallel.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    parallel.barrier()
    try:
        with _alone():
            save_tensors(tensors, storage_writer=FileSystemWriter(aside), no_dist=parallel.size() == 1)
    except CheckpointException as error:
        raise _refusal(next(iter(error.failures.values()))[0]) from None
    with (aside / f"rank-{parallel.rank()}.pt").open("wb") as file:
        torch.save({**rest, "step": step, "rng": _rng_state()}, file)
        file.flush()
        os.fsync(file.fileno())
    parallel.barrier()
    if parallel.rank() == 0:
        proof = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
        (aside / PROOF).write_text(json.dumps(proof, indent=1))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        for old in _numbered(folder)[:-kept]:
            _remove(old)
    parallel.barrier()
    return path


def load(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """Fill the tensors in place from the newest whole checkpoint; returns the rest, or None where there is none.

    Restores no generator: see `restore_rng`. All ranks call; there may be more or fewer than there were.
    """
    path = parallel.told(_newest(folder) if parallel.rank() == 0 else None)
    if path is None:
        return None
    with _alone():
        load_tensors(tensors, storage_reader=FileSystemReader(path), no_dist=parallel.size() == 1)
    own = path / f"rank-{parallel.rank()}.pt"
    rest: dict[str, Any] = torch.load(own if own.exists() else path / "rank-0.pt", weights_only=False)
    return rest


def _refusal(error: BaseException) -> BaseException:
    """The disk's own refusal behind an error of the writer's, or that error."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__cause__ or behind.__context__
    return behind or error


@contextmanager
def _alone() -> Iterator[None]:
    """PyTorch warns that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def clear(folder: Path) -> None:
    """Remove a finished stage's checkpoints."""
    for path in _numbered(folder):
        _remove(path)
    shutil.rmtree(folder / ".partial", ignore_errors=True)


def _newest(folder: Path) -> Path | None:
    found = _numbered(folder)
    while found:
        path = found.pop()
        damaged = _damage(path)
        if damaged is None:
            return path
        instead = "the one before it is used" if found else "there is none before it, so the stage begins anew"
        warnings.warn(f"checkpoint {path} is damaged ({damaged}); {instead}", stacklevel=2)
    return None


def _damage(path: Path) -> str | None:
    """The first file that is missing or is not what was written, or None."""
    try:
        proof = json.loads((path / PROOF).read_text())
        wrong = [name for name, digest in proof.items() if _sha256(path / name) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{wrong[0]}: its sha256 differs" if wrong else None


def _remove(path: Path) -> None:
    """First its proof, so that what a kill leaves behind is no checkpoint."""
    (path / PROOF).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6}", path.name))


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
