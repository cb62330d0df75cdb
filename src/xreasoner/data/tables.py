"""Rows of a data set from a file, a folder or the hub, each with the place where it stands.

A hub data set is fetched as the files that its card names and then read as a folder, so both behave alike and a wrong
field is named with file and line. JSONL, JSON (a list), CSV and Parquet are read a piece at a time.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from xreasoner.errors import DataError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
_SPLITS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval",
}
"""By what words a file's name tells its split (the hub's own convention)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands ("train.jsonl:12", "train.parquet: row 12", both counted from 1) and its fields."""

    where: str
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Where it stands, without folders: "train.jsonl-12"."""
        return Path(self.where).name.replace(": ", "-").replace(":", "-").replace(" ", "-")

    @property
    def file(self) -> str:
        """The file's name without its ending."""
        return Path(self.where.rsplit(":", 1)[0]).stem

    def wrong(self, field: str, found: Any, expected: str) -> DataError:
        """The error that names this row's field."""
        if field not in self.values and field.split(".")[0] not in self.values:
            return DataError(
                f"{self.where}: field {field!r} is missing; found {', '.join(self.values)}; expected {expected}"
            )
        return DataError(f"{self.where}: field {field!r}: found {found!r:.200}, expected {expected}")

    def text(self, field: str) -> str:
        """A text that is not empty (a number counts as its text). `a.b` reads inside a mapping."""
        value: Any = self.values
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
            raise self.wrong(field, value, "text")
        return str(value)

    def optional(self, field: str) -> str:
        """A text, or "" where the field is missing or null."""
        return "" if self.values.get(field) in (None, "") else self.text(field)

    def choice(self, field: str, known: Sequence[str]) -> str:
        """One of the known texts."""
        found = self.text(field)
        if found not in known:
            raise self.wrong(field, found, f"one of {', '.join(known)}")
        return found


@dataclass(frozen=True, slots=True)
class Table:
    """The files of one split.

    where: a file, a folder or a hub id. config: the hub's configuration (a folder's subfolder of that name). split:
    "train", "validation", "test" or any other that the card names. revision: a hub data set's commit or branch.
    """

    where: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def check(self) -> None:
        """Raise `DataError` where nothing can stand behind the name."""
        path = Path(self.where)
        hub = self.where.count("/") == 1 and not self.where.startswith((".", "/", "~")) and path.suffix not in KINDS
        if not path.exists() and not hub:
            raise DataError(f"{self.where}: no such file or folder; expected data as {', '.join(KINDS)}, or a hub id")

    def files(self) -> list[Path]:
        """The split's files in order. Raises `DataError` where there is none."""
        self.check()
        path = Path(self.where)
        if path.is_file():
            return [path]
        folder = path if path.is_dir() else fetch(self.where, self.config, self.revision)
        found = _named_by_card(folder, self.config, self.split) or _named_by_split(folder, self.config, self.split)
        if not found:
            wanted = self.split if self.config is None else f"{self.config}/{self.split}"
            raise DataError(f"{self.where}: no data files for {wanted!r}; expected {', '.join(KINDS)} under {folder}")
        return found

    def rows(self) -> Iterator[Row]:
        """Every row in the files' order."""
        for path in self.files():
            yield from read(path)

    def sample(self, n: int, seed: int) -> list[Row]:
        """At most n rows, in the files' order; of more rows n of the seed's own choice. Two passes, n rows held.

        What is learnt in another order is shuffled later, and a curriculum keeps this one.
        """
        total = sum(count(path) for path in self.files())
        if total == 0:
            raise DataError(f"{self.where}: is empty; expected rows")
        order = list(range(total))
        Random(f"jsonl/{seed}").shuffle(order)
        chosen = set(order[:n])
        return [row for index, row in enumerate(self.rows()) if index in chosen]


def fetch(name: str, config: str | None = None, revision: str | None = None) -> Path:
    """A hub data set's folder: the card, and the data files of one configuration where the card parts them."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    patterns = [f"*{kind}" for kind in KINDS]
    try:
        with contextlib.suppress(RemoteEntryNotFoundError):  # a data set without a card
            card = Path(hf_hub_download(name, "README.md", repo_type="dataset", revision=revision))
            patterns = [pattern for files in _splits(card, config).values() for pattern in files] or patterns
        wanted = [*patterns, "README.md"]
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data set {name!r} cannot be fetched: {reason}; expected a folder, a file, or a hub id that can be "
            f"reached (`hf download --repo-type dataset {name} --local-dir DIR` on a machine that can)"
        ) from None


def _configs(card: Path) -> dict[str, dict[str, list[str]]]:
    """{configuration: {split: patterns}} of a data card's front matter, {} where it has none."""
    if not card.is_file():
        return {}
    matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    try:
        head = yaml.safe_load(matter[1]) if matter else {}
    except yaml.YAMLError:
        return {}
    found: dict[str, dict[str, list[str]]] = {}
    for part in (head or {}).get("configs") or []:
        files = part.get("data_files") or []
        entries = files if isinstance(files, list) else [files]
        splits = found.setdefault(str(part.get("config_name", "default")), {})
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
            splits.setdefault(str(entry.get("split", "train")), []).extend(map(str, paths))
    return found


def _splits(card: Path, config: str | None) -> dict[str, list[str]]:
    """{split: patterns} of a configuration; of the default one, or else the first, when None."""
    configs = _configs(card)
    return configs.get(config or "default") or (next(iter(configs.values()), {}) if config is None else {})


def _named_by_card(folder: Path, config: str | None, split: str) -> list[Path]:
    chosen = _splits(folder / "README.md", config).get(split, [])
    return sorted({path for pattern in chosen for path in folder.glob(pattern) if path.suffix in KINDS})


def _named_by_split(folder: Path, config: str | None, split: str) -> list[Path]:
    """Files whose names hold the split's word; all of them where no file names any split."""
    if config not in (None, "default"):
        folder = folder / str(config)
    elif (folder / "data").is_dir():
        folder = folder / "data"
    paths = sorted(path for path in folder.rglob("*") if path.suffix in KINDS and path.is_file())

    def names(path: Path, words: str) -> bool:
        return re.search(rf"(?<![a-z])({words})(?![a-z])", path.stem.lower()) is not None

    if any(names(path, words) for path in paths for words in _SPLITS.values()):
        return [path for path in paths if names(path, _SPLITS.get(split, re.escape(split)))]
    return paths if split == "train" else []


def read(path: Path) -> Iterator[Row]:
    """The rows of one file. Raises `DataError` with file and line for what cannot be read."""
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".csv":
        return _csv(path)
    return _json(path) if path.suffix == ".json" else _jsonl(path)


def count(path: Path) -> int:
    """How many rows a file has, without holding them."""
    if path.suffix == ".parquet":
        return int(_parquet_file(path).metadata.num_rows)
    if path.suffix in (".csv", ".json"):
        return sum(1 for _ in read(path))
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:  # bytes are cut at \n alone; text would also be cut at U+2028 inside a string
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row(f"{path}:{number}", _object(f"{path}:{number}", _parsed(f"{path}:{number}", line)))


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or of pairs (Orz); an object a line is taken too."""
    data = path.read_bytes()
    if data.lstrip()[:1] != b"[":
        yield from _jsonl(path)
        return
    for number, item in enumerate(_parsed(str(path), data), 1):
        yield Row(f"{path}: item {number}", _object(f"{path}: item {number}", item))


def _parsed(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}; expected JSON") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{where}: its JSON is nested too deep to be read; expected an object of texts") from None


def _object(where: str, value: Any) -> dict[str, Any]:
    """A row's fields; those of a list are named "0", "1", … as the hub's viewer does."""
    if isinstance(value, list):
        return {str(k): item for k, item in enumerate(value)}
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {type(value).__name__}, expected an object")
    return value


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{reader.line_num}: found another number of columns than the header's")
                yield Row(f"{path}:{reader.line_num}", row)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}; expected CSV") from None
    except csv.Error as error:
        raise DataError(f"{path}: not CSV: {error}") from None


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not Parquet, or cut short: {str(error).splitlines()[0]}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=256):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's own refusal, not the file's contents
            raise
        raise DataError(f"{path}: damaged Parquet after row {number}: {str(error).splitlines()[0]}") from None
