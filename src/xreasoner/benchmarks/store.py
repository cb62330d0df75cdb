"""The results of an evaluation: JSONL that is only ever appended to, and pictures named by their content."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL.Image import Image

from xreasoner.engines.base import Message, Sampling
from xreasoner.errors import DataError, XReasonerError

Row = dict[str, Any]
Condition = Literal["seen", "blind", "swapped"]
"""What became of an item's pictures: shown, withheld, or another item's shown in their place."""
PLACE = ("stage", "bench", "id", "prompt", "sample")
"""The fields that, with the condition, say which cell of the table a row fills; the later of two holds."""


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def sampling_key(sampling: Sampling) -> str:
    """A hash of all that decides the sampled text. Greedy decoding has no seed, and measuring no `exit_on_end`."""
    settings = {name: value for name, value in asdict(sampling).items() if name not in ("logprobs", "exit_on_end")}
    return _short_hash(settings if sampling.temperature else {**settings, "seed": 0})


def sample_seed(seed: int, item: str, sample: int) -> int:
    """The seed of one sample of one item, below 2³¹. It does not depend on how many samples there are."""
    return int(_short_hash([seed, item, sample]), 16) % 2**31


def prompt_hash(messages: Sequence[Message]) -> str:
    """A hash of what the model is asked: the texts, and where the pictures stand."""
    return _short_hash(list(messages))


def picture_hash(picture: Image) -> str:
    """A hash of mode, size and pixels."""
    content = f"{picture.mode} {picture.size} ".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def result_key(
    *, model: str, bench: str, item: str, prompt: str, pictures: Sequence[str], sampling: str, sample: int
) -> str:
    """The name of one sample: all that decides its text. The grader is no part of it.

    model: the checkpoint's fingerprint. prompt, sampling: hashes (`prompt_hash`, `sampling_key`). pictures: theirs, and
    what they are resized to.
    """
    return _short_hash([model, bench, item, prompt, list(pictures), sampling, sample])


def _complete_length(data: bytes) -> int:
    """How many bytes hold whole lines; what follows was cut by a kill."""
    return data.rfind(b"\n") + 1


def read_rows(path: Path) -> list[Row]:
    """All whole lines of a results file, in order; a cut last line is left out.

    Raises `DataError` for any other line that is no JSON object. A file that does not exist has no rows.
    """
    return _parsed(path.read_bytes(), path, 1) if path.exists() else []


def _parsed(data: bytes, path: Path, first: int) -> list[Row]:
    """The rows of the whole lines of some bytes; first: the number of their first line."""
    rows: list[Row] = []
    for number, line in enumerate(data[: _complete_length(data)].splitlines(), start=first):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); delete that line, the others are kept, and run again"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def condition_of(row: Row) -> Condition:
    """A row's condition; rows of before there were three say `blind` instead."""
    found: Condition = row.get("condition") or ("blind" if row.get("blind") else "seen")
    return found


def cluster_of(row: Row) -> str:
    """The name of what was drawn independently, items of one problem or about one image together.

    Rows written before clusters were stored are clustered by their images, those of the embedded world by their ids.
    """
    cluster = row.get("cluster")
    if cluster is None and not row["bench"].startswith("tiny-"):
        cluster = "+".join(row.get("picture_hashes") or ())
    return str(cluster or row["id"])


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row for each place (stage, benchmark, item, condition, prompt, sample): the last one written."""
    return list({(condition_of(row), *(row.get(name) for name in PLACE)): row for row in rows}.values())


SYNC_SECONDS = 2


class ResultStore:
    """One results file. Several processes may add to it; what a kill cut off at its end is dropped by the next."""

    def __init__(self, path: Path) -> None:
        """path: the JSONL file; it and its folder are made when the first rows come."""
        self.path = path
        self._rows: dict[str, Row] = {}
        self._read = self._lines = 0
        self._synced = 0.0
        if path.exists():
            with path.open("rb") as file:
                self._catch_up(file)

    def done(self) -> set[str]:
        """The keys of the rows that are there."""
        return set(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def rows(self, keys: Iterable[str]) -> list[Row]:
        """The rows of these keys, in their order. Raises `KeyError` for a key that is not there."""
        return [self._rows[key] for key in keys]

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows (each with its "key") in one go. Rows whose key is there already are skipped.

        Raises `XReasonerError` where the disk refuses; what was written before stays.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._catch_up(file)
                file.truncate(self._read)
                new = {str(row["key"]): row for row in rows if row["key"] not in self._rows}
                lines = b"".join(_line(row) for row in new.values())
                file.write(lines)
                file.flush()
                # a kill loses nothing that was written; a power cut may lose two seconds
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as error:
            raise XReasonerError(
                f"cannot write {self.path}: {error.strerror}; make room and run the same command again, "
                f"the {len(self._rows)} results that are there are kept"
            ) from error
        self._rows.update(new)
        self._read += len(lines)
        self._lines += len(new)

    def _catch_up(self, file: BinaryIO) -> None:
        """Read the whole lines that came since the last look; the earlier of two rows with one key holds."""
        file.seek(self._read)
        data = file.read()
        rows = _parsed(data, self.path, self._lines + 1)
        for row in rows:
            if "key" in row:
                self._rows.setdefault(str(row["key"]), row)
        self._read += _complete_length(data)
        self._lines += len(rows)


def _line(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row).encode() + b"\n"


def save_picture(picture: Image, out: Path, hashed: str | None = None) -> str:
    """Write a picture as out/images/<sha16>.png, unless it is there, and return "images/<sha16>.png".

    The name is a hash of mode, size and pixels (hashed: it is known), so equal pictures are one file.
    """
    name = f"images/{hashed or picture_hash(picture)}.png"
    path = out / name
    if not path.exists():
        buffer = io.BytesIO()
        # by run lengths: as small as by zlib's own choice, in a third of the time
        picture.save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
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
