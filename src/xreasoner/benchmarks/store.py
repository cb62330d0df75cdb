"""The results of an evaluation: JSONL that is only ever appended to, and pictures named by their content."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from xreasoner.engines.base import Sampling
from xreasoner.errors import DataError, XReasonerError

Row = dict[str, Any]
Condition = Literal["seen", "blind", "swapped"]
"""What became of an item's pictures: shown, withheld, or another item's shown in their place."""
PLACE = ("stage", "bench", "id", "prompt", "sample")
"""The fields that, with the condition, say which cell of the table a row fills; the later of two holds."""


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def sampling_key(sampling: Sampling) -> str:
    """A hash of all that decides the sampled text."""
    return _short_hash({name: value for name, value in asdict(sampling).items() if name != "logprobs"})


def result_key(
    *, stage: str, model: str, bench: str, item: str, condition: str, prompt: str, sampling: str, seed: int, sample: int
) -> str:
    """The name of one judged completion: all that decides it. model: the checkpoint's fingerprint."""
    return _short_hash([stage, model, bench, item, condition, prompt, sampling, seed, sample])


def _complete_length(data: bytes) -> int:
    """How many bytes hold whole lines; what follows was cut by a kill."""
    return data.rfind(b"\n") + 1


def read_rows(path: Path) -> list[Row]:
    """All whole lines of a results file, in order; a cut last line is left out.

    Raises `DataError` for any other line that is no JSON object. A file that does not exist has no rows.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    rows: list[Row] = []
    for number, line in enumerate(data[: _complete_length(data)].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name}, line {number}: not JSON ({error}); delete it and run again") from error
        if not isinstance(row, dict):
            raise DataError(f"{path.name}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def condition_of(row: Row) -> Condition:
    """A row's condition; rows of before there were three say `blind` instead."""
    found: Condition = row.get("condition") or ("blind" if row.get("blind") else "seen")
    return found


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row for each place (stage, benchmark, item, condition, prompt, sample): the last one written."""
    return list({(condition_of(row), *(row.get(name) for name in PLACE)): row for row in rows}.values())


class ResultStore:
    """One results file. Opening it drops what a kill cut off at its end."""

    def __init__(self, path: Path) -> None:
        """path: the JSONL file; it and its folder are made when the first rows come."""
        self.path = path
        self._rows = {str(row["key"]): row for row in read_rows(path) if "key" in row}

    def done(self) -> set[str]:
        """The keys of the rows that are there."""
        return set(self._rows)

    def rows(self, keys: Iterable[str]) -> list[Row]:
        """The rows of these keys, in their order. Raises `KeyError` for a key that is not there."""
        return [self._rows[key] for key in keys]

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows (each with its "key") in one go. Rows whose key is there already are skipped.

        Raises `XReasonerError` where the disk refuses; what was written before stays.
        """
        new = {str(row["key"]): row for row in rows if row["key"] not in self._rows}
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new.values())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_cut_line()
            with self.path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise XReasonerError(
                f"cannot write {self.path}: {error.strerror}; make room and run the same command again, "
                f"the {len(self._rows)} results that are there are kept"
            ) from error
        self._rows.update(new)

    def _drop_cut_line(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(_complete_length(file.read()))


def save_picture(picture: Image, out: Path) -> str:
    """Write a picture as out/images/<sha16>.png, unless it is there, and return "images/<sha16>.png".

    The name is a hash of mode, size and pixels, so equal pictures are one file.
    """
    content = f"{picture.mode} {picture.size} ".encode() + picture.tobytes()
    name = f"images/{hashlib.sha256(content).hexdigest()[:16]}.png"
    path = out / name
    if not path.exists():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(buffer.getvalue())
            aside.replace(path)
        except OSError as error:
            raise XReasonerError(
                f"cannot write {path}: {error.strerror}; make room and run the command again"
            ) from error
    return name
