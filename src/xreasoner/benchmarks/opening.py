"""From a benchmark's name to its problems: declared ones (table.py), reasoning-gym's families, registered functions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from xreasoner.benchmarks.item_images import decoded, is_there
from xreasoner.benchmarks.items import Item
from xreasoner.benchmarks.table import TABLE, Benchmark
from xreasoner.data.dataset_files import Folder, LoadedRows, from_hub, in_folder
from xreasoner.data.readers import ErrorLog
from xreasoner.errors import DataError, UserError
from xreasoner.problem import Modality, Problem
from xreasoner.registry import BENCHMARKS, nearest, resolve

GYM = "gym:"
GENERATED = 500
"""Items of a benchmark that has no end, where nobody says how many."""


def names() -> list[str]:
    """Every benchmark but reasoning-gym's families, which are `gym:FAMILY`."""
    return [*TABLE, *BENCHMARKS]


def families() -> list[str]:
    """reasoning-gym's families that are problems for themselves (not the mixture of others)."""
    from reasoning_gym.factory import DATASETS

    return sorted(name for name in DATASETS if name != "composite")


def check_name(name: str) -> None:
    """Raises `UserError` with the near names for a benchmark that nobody knows."""
    if name in TABLE or name in BENCHMARKS:
        return
    if name.startswith(GYM):
        found = families()
        if name.removeprefix(GYM) not in found:
            raise UserError(f"unknown benchmark {name!r}; {nearest(name, [GYM + family for family in found])}")
        return
    raise UserError(f"unknown benchmark {name!r}; {nearest(name, [*names(), GYM + 'FAMILY'])}")


def open_benchmark(name: str, n: int | None, seed: int, data: Path | None = None) -> Sequence[Problem]:
    """n problems of a benchmark, or all of it; which ones follows from the seed, and more items hold the fewer.

    data: a folder with the data sets' files, in place of the hub. Raises `UserError` for an unknown name, `DataError`
    for data that is not there or not as declared.
    """
    check_name(name)
    if name in TABLE:
        return load(TABLE[name], n, seed, data)
    if name.startswith(GYM):
        return gym_family(name.removeprefix(GYM), n or GENERATED, seed)
    found: Sequence[Problem] = resolve(BENCHMARKS, "benchmark", name)(n or GENERATED, seed)
    return found


def default_prompt_of(name: str) -> str:
    """The paper's prompt for a benchmark."""
    return TABLE[name].prompt if name in TABLE else "paper-train" if name.startswith(GYM) else "paper-mc"


class Problems(Sequence[Problem]):
    """The chosen items of a declared benchmark; pictures are read when an item is asked for."""

    def __init__(self, entry: Benchmark, rows: LoadedRows, folder: Folder, places: Sequence[tuple[int, str]]) -> None:
        self.entry, self.rows, self.folder, self.places = entry, rows, folder, places

    @property
    def modality(self) -> Modality:
        return self.entry.modality

    @property
    def revision(self) -> str:
        """The hub's commit from which the data came; "" for a local copy, whose commit nobody can tell."""
        root = self.folder.root
        return root.name if root.parent.name == "snapshots" else ""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Problems: ...
    def __getitem__(self, index: int | slice) -> Problem | Problems:
        if isinstance(index, slice):
            return Problems(self.entry, self.rows, self.folder, self.places[index])
        row, name = self.places[index]
        item = self.entry.make(self.rows[row], name)
        return Problem(
            id=name,
            question=item.question,
            gold=item.gold,
            answer_type=item.kind,
            options=item.options,
            images=tuple(decoded(picture, self.folder, f"{self.entry.name}/{name}") for picture in item.pictures),
            domain=self.entry.domain,
            modality=self.entry.modality,
            source=self.entry.hub or self.entry.name,
            family=item.family,
            cluster=item.cluster,
            meta=item.meta,
        )


def load(entry: Benchmark, n: int | None, seed: int, data: Path | None = None) -> Problems:
    """A declared benchmark: found, checked whole (whatever n is), and n of its items chosen."""
    folder, files = _found(entry, data)
    rows = folder.rows(files)
    rows.check([*entry.columns, *entry.where, *entry.tallies])
    kept = _kept(entry, rows)
    for column, wanted in entry.tallies.items():
        values = rows.column(column)
        _compare(entry, f"column {column!r}", Counter(str(values[place]) for place in kept), wanted)
    _check_count(entry, len(kept))
    places = list(zip(kept, _ids(entry, rows, kept), strict=True))
    golds, log = Counter[str](), ErrorLog()
    for row, name in places:
        with log.collect():
            golds[_checked(entry, rows, folder, row, name).gold] += 1
    log.raise_any()
    if entry.golds:
        _compare(entry, "golds", golds, entry.golds)
    return Problems(entry, rows, folder, _chosen(places, n, seed))


def _found(entry: Benchmark, data: Path | None) -> tuple[Folder, list[str]]:
    """The folder and its files of rows. Raises `DataError` that says what to do."""
    if data is not None:
        return in_folder(data, entry.hub, entry.name, entry.files, entry.join)
    if not entry.hub:
        raise DataError(f"{entry.name}: {entry.gate}, and give --data DIR")
    folder = Folder(from_hub(entry.hub, entry.revision, entry.patterns, entry.gate))
    files = folder.matching(entry.files, entry.join)
    if not files:
        expected = " or ".join(entry.files)
        raise DataError(f"{entry.hub} at {entry.revision} has no file {expected}; give --data DIR with a copy that has")
    return folder, files


def _kept(entry: Benchmark, rows: LoadedRows) -> list[int]:
    """Numbers of the rows that the entry's filter keeps."""
    kept = list(range(len(rows)))
    for column, values in entry.where.items():
        found = rows.column(column)
        kept = [place for place in kept if found[place] in values]
    return kept


def _check_count(entry: Benchmark, found: int) -> None:
    wanted = (entry.count,) if isinstance(entry.count, int) else entry.count
    if wanted is not None and found not in wanted:
        kept = f" where {', '.join(f'{k} is {v}' for k, v in entry.where.items())}" if entry.where else ""
        raise DataError(
            f"{entry.name}: found {found} items{kept}, expected {' or '.join(map(str, wanted))} "
            f"(split {entry.split} of {entry.hub}); the data set has changed or the copy is not whole"
        )


def _compare(entry: Benchmark, what: str, found: Mapping[Any, int], wanted: Mapping[Any, int]) -> None:
    """Raises `DataError` naming the values that differ. Values are compared as text: CSV knows no numbers."""
    have, want = ({str(key): n for key, n in counts.items()} for counts in (found, wanted))
    differing = {key: (have.get(key, 0), want[key]) for key in want if have.get(key, 0) != want[key]}
    if differing:
        shown = ", ".join(f"{key}: {a} and not {b}" for key, (a, b) in list(differing.items())[:6])
        raise DataError(
            f"{entry.name}: {what} differ from the declared: {shown}; this is another edition of {entry.hub}"
        )


def _ids(entry: Benchmark, rows: LoadedRows, kept: Sequence[int]) -> list[str]:
    """A name for each item: its id where the data set has one that is no other's, else its row's number."""
    try:
        column = rows.column(entry.id) if entry.id else []
    except KeyError:
        column = []
    if not column or any(value in (None, "") for value in column):
        return [str(place) for place in kept]
    found = Counter(str(column[place]) for place in kept)
    return [str(column[k]) if found[str(column[k])] == 1 else f"{column[k]}-{k}" for k in kept]


def _checked(entry: Benchmark, rows: LoadedRows, folder: Folder, row: int, name: str) -> Item:
    """The item of a row. Raises `DataError` with its place, for what its function cannot read or a missing image."""
    where = f"{rows.where(row)}: {entry.name}: item {name}"
    try:
        item = entry.make(rows[row], name)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{where}: {reason}") from None
    if not isinstance(item.question, str) or not item.question.strip():
        raise DataError(f"{where}: the question is {item.question!r:.100}; expected text")
    missing = next((each for each in item.pictures if not is_there(each, folder)), item)
    if missing is not item:
        raise DataError(
            f"{where}: its image {str(missing)[:120]!r} is not below {folder.root}"
            + (f"; expected it there or in {', '.join(entry.pictures)}" if entry.pictures else "")
        )
    return item


def _chosen(places: Sequence[tuple[int, str]], n: int | None, seed: int) -> list[tuple[int, str]]:
    """n places by a hash of seed and name, in the data set's order; a smaller n's are among a larger's."""
    if n is None or n >= len(places):
        return list(places)
    return sorted(sorted(places, key=lambda place: _hash(f"{seed}/{place[1]}"))[:n])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def gym_family(family: str, n: int, seed: int) -> list[Problem]:
    """n problems of a family of reasoning-gym with its own settings, judged by its own scorer."""
    import reasoning_gym

    entries = reasoning_gym.create_dataset(family, size=n, seed=seed)
    return [_gym_problem(family, entry, f"{family}-{seed}-{k}") for k, entry in enumerate(entries)]


def _gym_problem(family: str, entry: Mapping[str, Any], name: str) -> Problem:
    return Problem(
        id=name,
        question=str(entry["question"]).strip(),
        gold=str(entry["answer"]),
        answer_type="gym",
        source="reasoning-gym",
        family=family,
        meta={"name": family, "entry": entry},
    )
