"""The files of a data set, from the hub or from a folder: rows out of Parquet, JSONL, JSON, CSV and TSV, and pictures.

Both ways end in one folder that is laid out as the hub's repository is, so one reader serves them.
"""

from __future__ import annotations

import base64
import csv
import fnmatch
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from xreasoner.errors import DataError, MediaError
from xreasoner.media import Guard, picture

Row = dict[str, Any]
SUFFIXES = ("parquet", "jsonl", "json", "csv", "tsv")
_BASE64 = re.compile(r"(?:data:[^,]{,64},)?[A-Za-z0-9+/]{64,}={,2}")
_GUARD = Guard(max_bytes=64 * 2**20, max_pixels=128_000_000, max_total_pixels=512_000_000)


class Folder:
    """A data set's files, those inside its ZIP archives included (`images.zip!figures/1.jpg`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _archives(self) -> dict[str, zipfile.ZipFile]:
        try:
            return {path.name: zipfile.ZipFile(path) for path in sorted(self.root.glob("*.zip"))}
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.root}: an archive cannot be read ({error}); fetch it again") from None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every file below the folder, and then those of the archives in it."""
        found = [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*")) if path.is_file()]
        inside = [
            f"{name}!{member}" for name, archive in self._archives.items() for member in sorted(archive.namelist())
        ]
        return (*found, *(name for name in inside if not name.endswith("/")))

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.replace("!", "/").rpartition("/")[2], []).append(name)
        return found

    def matching(self, patterns: Iterable[str], join: bool = False) -> list[str]:
        """The files of the first pattern that any file matches, or of all patterns; an archive may have own folders."""
        found = [[name for name in self.names if _fits(name, pattern)] for pattern in patterns]
        if join:
            return [name for part in found for name in part]
        return next((part for part in found if part), [])

    def named(self, name: str) -> str | None:
        """The file that a row means by a name: the one whose path ends with it."""
        wanted = name.replace("\\", "/").lstrip("./")
        same = self._by_last.get(wanted.rpartition("/")[2], [])
        return next((each for each in same if f"/{each.replace('!', '/')}".endswith(f"/{wanted}")), None)

    def read(self, name: str) -> bytes:
        archive, inside, member = name.partition("!")
        return self._archives[archive].read(member) if inside else (self.root / name).read_bytes()

    def rows(self, names: Sequence[str]) -> Rows:
        return Rows([self._table(name) for name in names], [str(self.root / name) for name in names])

    def _table(self, name: str) -> Any:
        where = self.root / name
        try:
            if name.endswith(".parquet"):
                from pyarrow import parquet

                return parquet.read_table(io.BytesIO(self.read(name)) if "!" in name else where)
            return list(_text_rows(name, self.read(name).decode("utf-8-sig")))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{where}: cannot be read ({error}); fetch it again") from None


def _fits(name: str, pattern: str) -> bool:
    inside = name.partition("!")[2]
    return fnmatch.fnmatch(name, pattern) or bool(inside and fnmatch.fnmatch(f"/{inside}", f"*/{pattern}"))


def _text_rows(name: str, text: str) -> Iterator[Row]:
    if name.endswith(".jsonl"):
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    elif name.endswith(".json"):
        found = json.loads(text)
        lists = [found] if isinstance(found, list) else [each for each in found.values() if isinstance(each, list)]
        if len(lists) != 1:
            raise ValueError("expected a list of rows")
        yield from lists[0]
    else:
        csv.field_size_limit(2**30)  # pictures in base64
        yield from csv.DictReader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ",")


class Rows(Sequence[Row]):
    """The rows of one or several files; those of Parquet are made into objects when they are asked for."""

    def __init__(self, tables: Sequence[Any], names: Sequence[str]) -> None:
        self.tables, self.names = tables, names
        self._places = [(table, k) for table in tables for k in range(len(table))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        table, k = self._places[index]
        return dict(table[k]) if isinstance(table, list) else table.slice(k, 1).to_pylist()[0]

    def check(self, columns: Iterable[str]) -> None:
        """Raises `DataError` for a column that a file, or a line of it, does not have."""
        for table, name in zip(self.tables, self.names, strict=True):
            there = [set(row) for row in table] if isinstance(table, list) else [set(table.column_names)]
            for column in columns:
                line = next((number for number, names in enumerate(there, 1) if column not in names), None)
                if line is not None:
                    place = f"row {line}" if isinstance(table, list) else "the file"
                    known = ", ".join(sorted(there[line - 1]))
                    raise DataError(f"{name}: {place} has no column {column!r}; found: {known}")

    def column(self, name: str) -> list[Any]:
        return [
            value
            for table in self.tables
            for value in ([row[name] for row in table] if isinstance(table, list) else table.column(name).to_pylist())
        ]


def picture_bytes(reference: Any, folder: Folder) -> bytes:
    """The encoded picture that a row holds or names. Raises `DataError` where there is none."""
    if isinstance(reference, Mapping):  # how `datasets` keeps pictures in Parquet
        if reference.get("bytes") is not None:
            return bytes(reference["bytes"])
        reference = reference.get("path")
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str) or not reference:
        raise DataError(f"found {reference!r} in the place of a picture")
    name = folder.named(reference)
    if name is not None:
        return folder.read(name)
    if _BASE64.fullmatch(reference):
        return base64.b64decode(reference.partition(",")[2] or reference)
    raise DataError(f"the picture {reference[:200]!r} is not below {folder.root}")


def is_there(reference: Any, folder: Folder) -> bool:
    """Whether the picture can be had, without reading its file."""
    path = reference.get("path") if isinstance(reference, Mapping) and reference.get("bytes") is None else reference
    if isinstance(path, str) and not _BASE64.fullmatch(path):
        return folder.named(path) is not None
    return path is not None


def decoded(reference: Any, folder: Folder, item: str) -> Image.Image:
    """An RGB picture, through the media guard. Raises `DataError` naming the item."""
    try:
        return picture(picture_bytes(reference, folder), _GUARD, name=f"of {item}")
    except (DataError, MediaError) as error:
        raise DataError(f"item {item}: {error}") from None


def from_hub(hub: str, revision: str, patterns: Sequence[str], gate: str) -> Path:
    """The hub's files that match, in its cache. Raises `DataError` in one line where they cannot be had."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # offline, refused, gone, or whatever else its client meets
        said = (str(error).strip().splitlines() or [""])[0][:160]
        raise DataError(
            f"{hub} cannot be had from the hub ({type(error).__name__}: {said}); "
            f"{gate + '; then ' if gate else ''}run again with a network, or give --data DIR with a copy in DIR/{hub}"
        ) from None


def in_folder(data: Path, hub: str, name: str, patterns: Sequence[str], join: bool) -> tuple[Folder, list[str]]:
    """The folder of a data set below `data`, and its files of rows: as on the hub, or one file by the benchmark's name.

    Raises `DataError` that says where they were looked for.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder; expected one with {hub or name} in it (docs/benchmarks.md)")
    own = [f"{name}.{suffix}" for suffix in SUFFIXES]
    short = hub.rpartition("/")[2]
    for root in dict.fromkeys(data / part for part in (hub, short, name) if part):
        if root.is_dir():
            folder = Folder(root)
            found = folder.matching(patterns, join) or folder.matching(own)
            if found:
                return folder, found
    single = next((each for each in own if (data / each).is_file()), None)
    if single:
        return Folder(data), [single]
    expected = [f"{data / (hub or name)}/{pattern}" for pattern in patterns[:2]] + [f"{data / name}.jsonl"]
    raise DataError(f"{name}: none of its files is below {data}; expected {' or '.join(expected)}")
