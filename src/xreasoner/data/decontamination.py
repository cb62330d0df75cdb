"""Which training rows share a run of words with a benchmark's items, and the training set without them.

The training set is read once, a row at a time; only the benchmarks' n-grams are held. So the time is linear in the
words of both, and the memory in those of the benchmarks alone.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from xreasoner.data.dataset_files import Table
from xreasoner.data.readers import ErrorLog, Row, json_line
from xreasoner.errors import DataError, UserError
from xreasoner.problem import Problem

SHORTEST = 5
"""An item shorter than an n-gram is looked for whole, if it has at least so many words."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Hit:
    """One shared run of words: which benchmark's item, and the words."""

    bench: str
    item: str
    words: str


@dataclass(slots=True)
class Index:
    """The benchmarks' n-grams.

    grams: {words in a row: (benchmark, item)}, the first item where several have them. lengths: of the keys in words,
    n and those of the short items. items: how many each benchmark has; skipped: those too short to look for.
    """

    n: int
    grams: dict[str, tuple[str, str]] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    items: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, bench: str, problem: Problem) -> None:
        """A benchmark's item: its question and options."""
        found = words("\n".join((problem.question, *problem.options)))
        self.items[bench] += 1
        if len(found) < SHORTEST:
            self.skipped[bench] += 1
            return
        size = min(self.n, len(found))
        self.lengths.add(size)
        for gram in grams(found, size):
            self.grams.setdefault(gram, (bench, problem.id))

    def hits(self, text: str) -> list[Hit]:
        """The items that share words with a text, each once, with the first run that they share."""
        found = words(text)
        seen: dict[tuple[str, str], str] = {}
        for size in sorted(self.lengths):
            for gram in grams(found, size):
                if gram in self.grams:
                    seen.setdefault(self.grams[gram], gram)
        return [Hit(*key, gram) for key, gram in seen.items()]


def words(text: str) -> list[str]:
    """The text's words, letters and digits alone: compatibility forms folded (NFKC), lower case."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(found: Sequence[str], size: int) -> Iterator[str]:
    """Every run of so many words."""
    return (" ".join(found[k : k + size]) for k in range(len(found) - size + 1))


def strings(value: Any) -> Iterator[str]:
    """Every text inside a row's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from strings(part)


def decontaminate(
    table: Table,
    benches: Mapping[str, Iterable[Problem]],
    out: Path,
    n: int = 13,
    fields: Sequence[str] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Write clean.jsonl, hits.jsonl and report.json into a folder; returns the report.

    A row is dropped when any of its texts (those of `fields`, where given) shares n words in a row with an item.
    clean.jsonl has the rows that stay, in order and in the schema that they came in, so the same source reads it.
    Nothing is there under its name before it is whole. Raises `UserError` for a folder that is not empty, `DataError`
    with all rows that cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(path.suffix != ".partial" for path in out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another --out, or remove it")
    index = Index(n)
    for bench, problems in benches.items():
        for problem in problems:
            index.add(bench, problem)
    out.mkdir(parents=True, exist_ok=True)
    names = ("clean.jsonl", "hits.jsonl")
    with ExitStack() as stack:
        clean, hit = (stack.enter_context((out / f"{name}.partial").open("w", encoding="utf-8")) for name in names)
        report = _sift(table, index, fields, clean, hit, progress)
    for name in names:
        os.replace(out / f"{name}.partial", out / name)
    aside = out / "report.json.partial"
    aside.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    os.replace(aside, out / "report.json")
    return report


def _check_fields(row: Row, fields: Sequence[str]) -> None:
    for name in fields:
        if name not in row.values:
            raise row.wrong(name, None, "a field of the row (--field)")


def _sift(
    table: Table, index: Index, fields: Sequence[str], clean: TextIO, hit: TextIO, progress: Callable[[int], None]
) -> dict[str, Any]:
    total, dropped = 0, 0
    rows, items = Counter[str](), {bench: set[str]() for bench in index.items}
    log = ErrorLog()
    for row in log.good(table.records()):
        total += 1
        with log.collect(row):
            _check_fields(row, fields)
        if log.count:  # the rest is read for its problems alone
            continue
        chosen = [row.values[name] for name in fields] if fields else row.values
        found = list({(h.bench, h.item): h for text in strings(chosen) for h in index.hits(text)}.values())
        dropped += bool(found)
        rows.update({h.bench for h in found})
        for h in found:
            items[h.bench].add(h.item)
            line = {"row": row.where, "bench": h.bench, "item": h.item, "words": h.words}
            hit.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not found:
            clean.write(json_line(row.values) + "\n")
        progress(total)
    log.raise_any()
    if total == 0:
        raise DataError(f"{table.where}: is empty; expected rows")
    benches = {
        bench: {"items": count, "too_short": index.skipped[bench], "items_hit": len(items[bench]), "rows": rows[bench]}
        for bench, count in index.items.items()
    }
    return {"data": table.where, "n": index.n, "rows": total, "dropped": dropped, "benches": benches}
