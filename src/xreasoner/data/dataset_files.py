"""Which files make up a data set: one file, a folder (by card, by `datasets`' own records, or by names), or a hub id.

Hidden and editor files, and records that are no data, are never rows. A hub data set is fetched as the files that its
card names and then read as a folder, so both behave alike.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, overload

import yaml

from xreasoner.data.readers import (
    COMPRESSIONS,
    FORMATS,
    BadRow,
    ErrorLog,
    Row,
    count_rows,
    format_of,
    read_records,
)
from xreasoner.errors import DataError

SUFFIXES = (*FORMATS, *(f"{kind}{packed}" for kind in (".jsonl", ".json", ".csv", ".tsv") for packed in COMPRESSIONS))
_SPLITS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval",
}
"""By what words a file's name tells its split (the hub's own convention)."""
_RECORDS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "croissant.json",
    "dataset-metadata.json",
}
"""Files that describe a data set and hold no rows."""


def is_hidden(relative: str) -> bool:
    """Whether a path below a data folder is hidden: `.x`, `_x`, `x~`, a cache of `datasets`, or below such a folder."""
    parts = relative.split("/")
    return any(part.startswith((".", "_")) or part.endswith("~") for part in parts) or fnmatch.fnmatch(
        parts[-1], "cache-*.arrow"
    )


def is_data(relative: str) -> bool:
    """Whether a file below a data folder holds rows."""
    return format_of(relative) is not None and not is_hidden(relative) and Path(relative).name not in _RECORDS


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order; links are followed, and a loop of them only once."""
    seen: set[str] = set()
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [path for path in (Path(root, name) for name in files) if path.is_file()]
    inside = os.path.realpath(folder) + os.sep
    for path in sorted(found):
        # A link to a file of the same folder would give its rows twice.
        if path.is_symlink() and os.path.realpath(path).startswith(inside):
            continue
        yield path


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
        """Raise `DataError` if the name can be neither a file, a folder nor a hub id."""
        path = Path(self.where)
        hub = self.where.count("/") == 1 and not self.where.startswith((".", "/", "~")) and not format_of(self.where)
        if not path.exists() and not hub:
            raise DataError(f"{self.where}: no such file or folder; expected data as {', '.join(FORMATS)}, or a hub id")

    def files(self) -> list[Path]:
        """The split's files in order. Raises `DataError` where there is none."""
        self.check()
        path = Path(self.where)
        if path.exists() and not path.is_dir():
            return [path]
        folder = path if path.is_dir() else fetch(self.where, self.config, self.revision)
        files = (
            _saved_to_disk(folder, self.split)
            or _named_by_card(folder, self.config, self.split)
            or _named_by_split(folder, self.config, self.split)
        )
        if not files:
            wanted = self.split if self.config is None else f"{self.config}/{self.split}"
            hidden = [p.name for p in walk(folder) if format_of(p.name) and is_hidden(p.relative_to(folder).as_posix())]
            ignored = f" (hidden, so ignored: {', '.join(hidden[:5])})" if hidden else ""
            raise DataError(
                f"{self.where}: no data files for {wanted!r}; expected {', '.join(FORMATS)} under {folder}{ignored}"
            )
        _check_once(files)
        return files

    def records(self) -> Iterator[Row | BadRow]:
        """Every row in the files' order, those that cannot be read included."""
        for path in self.files():
            yield from read_records(path, split=self.split)

    def rows(self) -> Iterator[Row]:
        """Every row in the files' order. Raises `DataError` with all bad rows after the last good one."""
        log = ErrorLog()
        yield from log.good(self.records())
        log.raise_any()

    def sample(self, n: int, seed: int, log: ErrorLog | None = None) -> list[Row]:
        """At most n rows, in the files' order; of more rows n of the seed's own choice. Two passes, n rows held.

        The order of training is shuffled later, and a curriculum keeps this one. log: takes the bad rows; without it,
        they are raised.
        """
        total = sum(count_rows(path) for path in self.files())
        rows, seen, errors = self._choose(n, seed, total)
        if seen != total:
            rows, seen, errors = self._choose(n, seed, seen)
        if seen == 0:
            raise DataError(f"{self.where}: is empty; expected rows")
        if log is None:
            errors.raise_any()
        else:
            log.extend(errors)
        return rows

    def _choose(self, n: int, seed: int, total: int) -> tuple[list[Row], int, ErrorLog]:
        """(the rows chosen of so many, how many there are, the bad ones)."""
        order = list(range(total))
        Random(f"jsonl/{seed}").shuffle(order)
        chosen, rows, seen, errors = set(order[:n]), list[Row](), 0, ErrorLog()
        for record in self.records():
            if isinstance(record, BadRow):
                errors.add(record.error, record)
            elif seen in chosen:
                rows.append(record)
            seen += 1
        return rows, seen, errors


def _check_once(files: Sequence[Path]) -> None:
    """Raise `DataError` for one data set in two formats side by side, whose rows would be read twice."""
    seen: dict[Path, Path] = {}
    for path in files:
        stem = path.with_name(path.name.split(".")[0] if path.suffix.lower() in COMPRESSIONS else path.stem)
        if stem in seen:
            raise DataError(
                f"{seen[stem]} and {path.name}: one name in two formats, so that rows would be read twice; "
                "give one file as the path, or move the other away"
            )
        seen[stem] = path


def fetch(name: str, config: str | None = None, revision: str | None = None) -> Path:
    """A hub data set's folder: the card, and the data files of one configuration where the card names them."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    patterns = [f"*{kind}" for kind in SUFFIXES]
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


def _saved_to_disk(folder: Path, split: str) -> list[Path]:
    """The files of a folder that `datasets` wrote (`save_to_disk`), [] for any other folder. Raises `DataError`."""
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or split not in splits:
            raise DataError(f"{folder}: has no split {split!r}; its dataset_dict.json has {splits}; set split")
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file():
        return []
    described = _described(state)
    if described.get("_indices_data_files"):
        raise DataError(f"{state}: selects rows by an index file; save it with flatten_indices().save_to_disk(...)")
    entries = described.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    missing = [name for name in names if not isinstance(name, str) or not (folder / name).is_file()]
    if not names or missing:
        raise DataError(f"{state}: names {missing or 'no files'}, which {folder} does not have; copy the whole folder")
    return [folder / str(name) for name in names]


def _described(path: Path) -> dict[str, Any]:
    for record in read_records(path):
        if isinstance(record, BadRow):
            raise record.error
        return dict(record.values)
    raise DataError(f"{path}: is empty; expected what save_to_disk writes")


def _configs(card: Path) -> dict[str, dict[str, list[str]]]:
    """{configuration: {split: patterns}} of a data card's front matter, {} where it has none."""
    if not card.is_file():
        return {}
    matter = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text("utf-8", "replace").lstrip("\ufeff"), flags=re.DOTALL)
    try:
        head = yaml.safe_load(matter[1]) if matter else {}
    except yaml.YAMLError:
        return {}
    configs: dict[str, dict[str, list[str]]] = {}
    parts = head.get("configs") if isinstance(head, dict) else None
    for part in parts if isinstance(parts, list) else []:
        files = part.get("data_files") or [] if isinstance(part, dict) else []
        entries = files if isinstance(files, list) else [files]
        splits = configs.setdefault(str(part.get("config_name", "default")), {}) if isinstance(part, dict) else {}
        for entry in entries:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = entry.get("path") or []
            splits.setdefault(str(entry.get("split", "train")), []).extend(
                map(str, paths if isinstance(paths, list) else [paths])
            )
    return configs


def _splits(card: Path, config: str | None) -> dict[str, list[str]]:
    """{split: patterns} of a configuration; of the default one, or else the first, when None."""
    configs = _configs(card)
    return configs.get(config or "default") or (next(iter(configs.values()), {}) if config is None else {})


def _named_by_card(folder: Path, config: str | None, split: str) -> list[Path]:
    patterns = _splits(folder / "README.md", config).get(split, [])
    matching = {path for pattern in patterns if not pattern.startswith(("/", "..")) for path in folder.glob(pattern)}
    return sorted(path for path in matching if is_data(path.relative_to(folder).as_posix()) and path.is_file())


def _named_by_split(folder: Path, config: str | None, split: str) -> list[Path]:
    """Files whose names hold the split's word; all of them where no file names any split."""
    if config not in (None, "default"):
        folder = folder / str(config)
    elif (folder / "data").is_dir():
        folder = folder / "data"
    paths = [path for path in walk(folder) if is_data(path.relative_to(folder).as_posix())]

    def names(path: Path, words: str) -> bool:
        return re.search(rf"(?<![a-z])({words})(?![a-z])", path.stem.lower()) is not None

    if any(names(path, words) for path in paths for words in _SPLITS.values()):
        return [path for path in paths if names(path, _SPLITS.get(split, re.escape(split.lower())))]
    return paths if split == "train" else []


# --- folders with archives, as benchmarks come -----------------------------------------------------------------------


class Folder:
    """A data set's files, those inside its ZIP archives included (`images.zip!figures/1.jpg`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _archives(self) -> dict[str, zipfile.ZipFile]:
        archives: dict[str, zipfile.ZipFile] = {}
        for path in sorted(self.root.glob("*.zip")):
            if is_hidden(path.name):
                continue
            try:
                archives[path.name] = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{path}: this archive cannot be read ({error}); fetch it again") from None
        return archives

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every file below the folder, and then those of the archives in it."""
        plain = [path.relative_to(self.root).as_posix() for path in walk(self.root)]
        inside = [
            f"{name}!{member}" for name, archive in self._archives.items() for member in sorted(archive.namelist())
        ]
        return (*plain, *(name for name in inside if not name.endswith("/")))

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.names:
            names.setdefault(name.replace("!", "/").rpartition("/")[2], []).append(name)
        return names

    def matching(self, patterns: Iterable[str], join: bool = False) -> list[str]:
        """The files of the first pattern that any file matches, or of all patterns; an archive may have own folders."""
        shown = [name for name in self.names if not is_hidden(name.replace("!", "/"))]
        parts = [[name for name in shown if _fits(name, pattern)] for pattern in patterns]
        if join:
            return [name for part in parts for name in part]
        return next((part for part in parts if part), [])

    def named(self, name: str) -> str | None:
        """The file that a row means by a name: the one whose path ends with it."""
        wanted = name.replace("\\", "/").lstrip("./")
        same = self._by_last.get(wanted.rpartition("/")[2], [])
        return next((each for each in same if f"/{each.replace('!', '/')}".endswith(f"/{wanted}")), None)

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises `DataError` for a member that its archive cannot give."""
        archive, inside, member = name.partition("!")
        try:
            return self._archives[archive].read(member) if inside else (self.root / name).read_bytes()
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{self.root / name}: cannot be read ({error}); fetch it again") from None

    def rows(self, names: Sequence[str]) -> LoadedRows:
        """The rows of several files. Raises `DataError` with all rows that cannot be read."""
        log = ErrorLog()
        tables = [self._table(name, log) for name in names]
        log.raise_any()
        return LoadedRows(tables, [str(self.root / name) for name in names])

    def _table(self, name: str, log: ErrorLog) -> Any:
        where = self.root / name
        data = self.read(name) if "!" in name else None
        if format_of(name) == "parquet":  # kept in columns: images are many
            import pyarrow
            from pyarrow import parquet

            try:
                return parquet.read_table(where if data is None else pyarrow.BufferReader(data))
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                log.add(f"{where}: cannot be read ({str(error).splitlines()[0]}); fetch it again")
                return []
        rows: list[Row] = []
        for record in read_records(where, data):
            if isinstance(record, Row):
                rows.append(record)
            else:
                log.add(f"{record.where}: cannot be read ({record.reason}); fetch it again", record)
        if not rows and not log.count:
            log.add(f"{where}: is empty; expected rows")
        return rows


def _fits(name: str, pattern: str) -> bool:
    inside = name.partition("!")[2]
    return fnmatch.fnmatch(name, pattern) or bool(inside and fnmatch.fnmatch(f"/{inside}", f"*/{pattern}"))


class LoadedRows(Sequence[dict[str, Any]]):
    """The rows of one or several files; those of Parquet are made into objects when they are asked for."""

    def __init__(self, tables: Sequence[Any], names: Sequence[str]) -> None:
        self.tables, self.names = tables, names
        self._places = [(t, k) for t, table in enumerate(tables) for k in range(len(table))]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        t, k = self._places[index]
        table = self.tables[t]
        return dict(table[k].values) if isinstance(table, list) else table.slice(k, 1).to_pylist()[0]

    def where(self, index: int) -> str:
        """A row's file and line, or its number in Parquet."""
        t, k = self._places[index]
        return str(self.tables[t][k].where) if isinstance(self.tables[t], list) else f"{self.names[t]}: row {k + 1}"

    def check(self, columns: Iterable[str]) -> None:
        """Raises `DataError` for every column that a file, or a line of it, does not have."""
        log = ErrorLog()
        wanted = list(dict.fromkeys(columns))
        for table, name in zip(self.tables, self.names, strict=True):
            if isinstance(table, list):
                for row in table:
                    self._check_row(row, wanted, log)
                continue
            missing = [column for column in wanted if column not in table.column_names]
            if missing:
                names = ", ".join(sorted(table.column_names))
                log.add(f"{name}: the file has no column {', '.join(map(repr, missing))}; found: {names}")
        log.raise_any()

    def _check_row(self, row: Row, wanted: Sequence[str], log: ErrorLog) -> None:
        missing = [column for column in wanted if column not in row.values]
        if missing:
            names = ", ".join(sorted(row.values))
            log.add(f"{row.where}: row has no column {', '.join(map(repr, missing))}; found: {names}")

    def column(self, name: str) -> list[Any]:
        """Every row's value of a column, None where a row has none."""
        return [
            value
            for table in self.tables
            for value in (
                [row.values.get(name) for row in table] if isinstance(table, list) else table.column(name).to_pylist()
            )
        ]


def from_hub(hub: str, revision: str, patterns: Sequence[str], gate: str) -> Path:
    """The hub's files that match, in its cache. Raises `DataError` in one line where they cannot be had."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # offline, refused, gone, or whatever else its client meets
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise DataError(
            f"{hub} cannot be had from the hub ({type(error).__name__}: {reason}); "
            f"{gate + '; then ' if gate else ''}run again with a network, or give --data DIR with a copy in DIR/{hub}"
        ) from None


def in_folder(data: Path, hub: str, name: str, patterns: Sequence[str], join: bool) -> tuple[Folder, list[str]]:
    """The folder of a data set below `data`, and its files of rows: as on the hub, or one file by the benchmark's name.

    Raises `DataError` that says where they were looked for.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder; expected one with {hub or name} in it (docs/benchmarks.md)")
    own = [f"{name}{suffix}" for suffix in SUFFIXES]
    short = hub.rpartition("/")[2]
    for root in dict.fromkeys(data / part for part in (hub, short, name) if part):
        if root.is_dir():
            folder = Folder(root)
            files = folder.matching(patterns, join) or folder.matching(own)
            if files:
                return folder, files
    single = next((each for each in own if (data / each).is_file()), None)
    if single:
        return Folder(data), [single]
    expected = [f"{data / (hub or name)}/{pattern}" for pattern in patterns[:2]] + [f"{data / name}.jsonl"]
    raise DataError(f"{name}: none of its files is below {data}; expected {' or '.join(expected)}")
