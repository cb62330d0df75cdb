"""The data reader: rows of JSONL, JSON, CSV, TSV, Parquet and Arrow files, compressed or not, each with its place.

Training data, benchmarks, `grade`, `batch` and `data` all read through `read_records`, so a file means the same to each
of them. What a file holds decides how it is read: the name's suffix, and the first bytes where they say more (gzip,
bzip2, xz, zstd, Parquet, Arrow, a byte-order mark). Text is UTF-8, or UTF-16 or UTF-32 with or without a mark.

A row that cannot be read is a `BadRow` and does not end the reading, so that a caller can report all of them at once
(`ErrorLog`). Nothing is repaired and nothing is dropped: NaN and infinite numbers, half of a surrogate pair, a key that
occurs twice and an integer too long for Python are refused with file and line.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, cast

from xreasoner.errors import DataError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
MAX_REPORTED = 20
"""Problems of one input that are printed; the rest are counted."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT_ITEM = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_NO_NUMBER = {"", "nan", "<na>"}
"""How a CSV file writes that a value is missing; a JSON or Parquet file has null."""
WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "questions", "problems", "samples")
"""Fields that hold a JSON file's rows when it is one object."""


def format_of(name: str) -> Format | None:
    """The format that a file's name announces (`train.jsonl.gz` is jsonl), None for any other name."""
    path = Path(name)
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    return FORMATS.get(suffix.lower())


@dataclass(slots=True)
class _Place:
    """Where a row is. number: of the line, the list's item or the columnar file's row, from 1. line: an item's line."""

    path: str
    number: int
    unit: Literal["line", "item", "row", "file"] = "line"
    line: int = 0

    @property
    def where(self) -> str:
        """The place for a message: "train.jsonl:12", "train.json:40: item 3", "train.parquet: row 12"."""
        if self.unit == "line":
            return f"{self.path}:{self.number}"
        if self.unit == "item":
            return f"{self.path}:{self.line}: item {self.number}"
        return f"{self.path}: row {self.number}" if self.unit == "row" else self.path


@dataclass(slots=True)
class BadRow(_Place):
    """A row that cannot be read. reason: what was found and what was expected."""

    reason: str = ""

    @property
    def error(self) -> DataError:
        return DataError(f"{self.where}: {self.reason}")


@dataclass(slots=True)
class Row(_Place):
    """One row: its place and its fields."""

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The place without folders, as an id: "train.jsonl-12"."""
        unit = "" if self.unit == "line" else f"{self.unit}-"
        return f"{Path(self.path).name}-{unit}{self.number}".replace(":", "-").replace(" ", "-")

    @property
    def file(self) -> str:
        """The file's name without its suffixes."""
        path = Path(self.path)
        return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem

    def wrong(self, name: str, value: Any, expected: str) -> DataError:
        """The error that names this row's field."""
        if name not in self.values and name.split(".")[0] not in self.values:
            present = ", ".join(map(str, self.values)) or "no fields"
            return DataError(f"{self.where}: field {name!r} is missing; found {present:.300}; expected {expected}")
        return DataError(f"{self.where}: field {name!r}: found {value!r:.200}, expected {expected}")

    def has(self, name: str) -> bool:
        """Whether the field says anything: not missing, null, blank, an empty list, or a CSV file's NaN."""
        value = self.values.get(name)
        if isinstance(value, str):
            return not (self._is_csv and value.strip().lower() in _NO_NUMBER) and bool(value.strip())
        return value is not None and value != [] and value != {}

    @property
    def _is_csv(self) -> bool:
        return format_of(self.path) in ("csv", "tsv")

    def text(self, name: str) -> str:
        """A text that is not blank, unchanged; a finite number counts as its text. `a.b` reads inside a mapping.

        Raises `DataError` for anything else, NaN included.
        """
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            hint = " (cast the column to text)" if isinstance(value, bytes) else ""
            raise self.wrong(name, value, f"text{hint}")
        if not isinstance(value, str) and not math.isfinite(value):
            raise self.wrong(name, value, "text or a finite number")
        if isinstance(value, str) and (not value.strip() or (self._is_csv and value.strip().lower() in _NO_NUMBER)):
            raise self.wrong(name, value, "text")
        return str(value)

    def optional(self, name: str) -> str:
        """A text, or "" where the field is missing, null or blank."""
        value = self.values.get(name)
        return "" if value is None or (isinstance(value, str) and not value.strip()) else self.text(name)

    def choice(self, name: str, known: Sequence[str]) -> str:
        """One of the known texts."""
        value = self.text(name)
        if value not in known:
            raise self.wrong(name, value, f"one of {', '.join(known)}")
        return value


def json_line(values: Mapping[str, Any]) -> str:
    """A row as a line of JSON that `read_records` reads again: null for the NaN of a columnar file."""
    try:
        return json.dumps(values, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(values), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ErrorLog:
    """The problems of one input in the order of its rows: the first `MAX_REPORTED` in words, the rest as a count."""

    def __init__(self) -> None:
        self.count = 0
        self._messages: list[tuple[int, int, str]] = []
        self._files: dict[str, int] = {}

    def add(self, error: Exception | str, place: _Place | None = None) -> None:
        """Record one problem, of a row if it has one."""
        self.count += 1
        file = self._files.setdefault(place.path if place else "", len(self._files))
        if len(self._messages) < 2 * MAX_REPORTED:  # what is found in a second pass may come before
            self._messages.append((file, place.number if place else self.count, str(error)))

    def extend(self, other: ErrorLog) -> None:
        """Record what another log has, which comes first in an empty one."""
        if self.count == 0:
            self.count, self._messages, self._files = other.count, other._messages, other._files

    @contextmanager
    def collect(self, place: _Place | None = None) -> Iterator[None]:
        """Record what is wrong with a row, raised inside as `ValueError`, and continue after the block."""
        try:
            yield
        except DataError as error:
            self.add(error, place)
        except ValueError as error:  # what a type refuses, such as a problem without a question
            if place is None:
                raise
            self.add(f"{place.where}: {error}", place)

    def good(self, records: Iterable[Row | BadRow]) -> Iterator[Row]:
        """The rows that could be read; the others are recorded."""
        for record in records:
            if isinstance(record, Row):
                yield record
            else:
                self.add(record.error, record)

    def raise_any(self) -> None:
        """Raise one `DataError` with a line for each problem, if there was any."""
        if self.count:
            lines = [message for _, _, message in sorted(self._messages, key=lambda each: each[:2])[:MAX_REPORTED]]
            more = self.count - len(lines)
            raise DataError("\n".join([*lines, *([f"and {more:,} more problems"] if more else [])]))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order. Raises `DataError` with all of its bad rows after the last good one."""
    log = ErrorLog()
    yield from log.good(read_records(path))
    log.raise_any()


def read_records(path: Path, data: bytes | None = None, split: str | None = None) -> Iterator[Row | BadRow]:
    """Every row of one file, in order, streaming where the format allows (all but JSON lists and UTF-16).

    Args:
        path: The file; only its name is used when `data` is given.
        data: The file's bytes, for a member of an archive.
        split: Which rows of a JSON object that holds several lists by their splits' names.
    """
    name = str(path)
    record: Row | BadRow | None = None
    try:
        with path.open("rb") if data is None else io.BytesIO(data) as raw:
            stream, head = _decompressed(raw)
            for record in _reader_of(name, head)(stream, name, split):
                yield record
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in _DEVICE_ERRORS:  # the disk's refusal, not the file's contents
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0]
        line = (record.line or record.number) + 1 if record else 1
        yield BadRow(name, line, "line", reason=f"cannot be read: {reason}; expected a whole file")


_DEVICE_ERRORS = (5, 12, 23, 24)
"""EIO, ENOMEM, ENFILE, EMFILE: the machine fails, and the file may be sound."""


def count_rows(path: Path) -> int:
    """How many rows a file has, without holding them; lines that cannot be read count too.

    Too few for JSON lines that end with a carriage return alone.
    """
    try:
        with path.open("rb") as raw:
            stream, head = _decompressed(raw)
            reader = _reader_of(str(path), head)
            if reader is _jsonl and not _is_document(head):
                return sum(1 for line in _utf8(stream, head) if not line.isspace())
            if reader is _parquet:
                import pyarrow.parquet

                return int(pyarrow.parquet.ParquetFile(_source(stream)).metadata.num_rows)
    except Exception as error:  # said by `read_records`, with its place
        if isinstance(error, OSError) and error.errno in _DEVICE_ERRORS:
            raise
    return sum(1 for _ in read_records(path))


# --- bytes ---------------------------------------------------------------------------------------------------------


def _decompressed(raw: IO[bytes]) -> tuple[IO[bytes], bytes]:
    """The stream's contents and their first bytes. A pipe will do: nothing is sought."""
    stream = _buffered(raw)
    head = stream.peek(8)[:8]
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "gzip":
        stream = _buffered(gzip.GzipFile(fileobj=stream))
    elif kind == "bzip2":
        stream = _buffered(bz2.BZ2File(stream))
    elif kind == "xz":
        stream = _buffered(lzma.LZMAFile(stream))  # noqa: SIM115 (closed with the file below it)
    elif kind == "zstd":
        import pyarrow

        stream = _buffered(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))
    return cast(IO[bytes], stream), _head(stream)


def _buffered(stream: Any) -> io.BufferedReader:
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, 2**16)


def _head(stream: Any) -> bytes:
    """The first bytes, which stay to be read."""
    return cast(bytes, stream.peek(4096)[:4096])


def _reader_of(name: str, head: bytes) -> Callable[[IO[bytes], str, str | None], Iterator[Row | BadRow]]:
    """How a file is read, by its first bytes or else its name; JSON lines when neither says."""
    if head.startswith(b"PAR1"):
        return _parquet
    if head.startswith(b"ARROW1"):
        return _arrow
    if head.startswith(b"PK\x03\x04"):
        return _archive
    kind = format_of(name)
    if kind is None and Path(name).suffix.lower() in (".xlsx", ".xls", ".pkl", ".pt", ".npy", ".npz", ".db"):
        return _archive
    return {"csv": _csv, "tsv": _csv, "parquet": _parquet, "arrow": _arrow, "json": _json}.get(kind or "", _jsonl)


def _archive(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    expected = ", ".join(FORMATS)
    yield BadRow(name, 1, "file", reason=f"an archive or a program's own file; expected {expected} (unpack it)")


def _utf8(stream: IO[bytes], head: bytes) -> IO[bytes]:
    """The text as UTF-8 without a byte-order mark. UTF-16 and UTF-32 are converted whole.

    Raises `UnicodeDecodeError` for what is neither.
    """
    encoding = json.detect_encoding(head) if head[:4].strip(b"\0") else "utf-8"
    if encoding == "utf-8-sig":
        stream.read(3)
    elif encoding != "utf-8":
        return io.BytesIO(stream.read().decode(encoding).removeprefix("\ufeff").encode())
    return stream


def _rest(stream: IO[bytes]) -> bytes:
    """All that is left to read; of a plain file at once, without another copy of it."""
    raw = getattr(stream, "raw", None)
    if isinstance(raw, io.FileIO) and raw.seekable():
        raw.seek(stream.tell())
        return raw.readall()
    return stream.read()


def _parts(line: bytes) -> list[bytes]:
    r"""The lines in what was cut at \n: those of old systems end with \r. Never cut at a separator such as U+2028."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return line.split(b"\r") if b"\r" in line else [line]


def _decoded(data: bytes, what: str) -> str:
    """UTF-8 text. Raises `ValueError` that says which byte is wrong."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}; expected {what} in UTF-8") from None


# --- JSON ----------------------------------------------------------------------------------------------------------


class _SyntaxError(ValueError):
    """JSON that is wrong in its syntax. line: counted from 1 in the text that was read."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class _Refused:
    """What takes the place of a number that is refused, until its field is known."""

    reason: str


class _Json:
    """A JSON decoder that refuses what JSON does not have, and what a text cannot hold.

    An issue that leaves the syntax whole (NaN, a key twice) is kept until the value ends, so the rest can be read.
    """

    def __init__(self) -> None:
        hooks: dict[str, Any] = {
            "object_pairs_hook": self._object,
            "parse_constant": self._constant,
            "parse_float": self._float,
        }
        decoder = json.JSONDecoder(**hooks)
        self.scan_once: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
        self._scan = decoder.raw_decode
        self._scan_slowly = json.JSONDecoder(**hooks, parse_int=self._int).raw_decode
        self.issues: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for k, name in enumerate(names) if name in names[:k])
            self.issues.append(f"field {twice!r:.80} occurs twice; expected each name once")
        return values

    def _refused(self, reason: str) -> _Refused:
        self.issues.append(reason)
        return _Refused(reason)

    def _constant(self, name: str) -> _Refused:
        return self._refused(f"found {name}, which JSON does not have; expected a finite number, or null")

    def _float(self, text: str) -> float | _Refused:
        value = float(text)
        if math.isinf(value):
            return self._refused(f"found {text:.40}, which is too large; expected a finite number, or text")
        return value

    def _int(self, text: str) -> int | _Refused:
        if len(text) > 4000:
            digits = len(text.lstrip("-"))
            return self._refused(f"found an integer of {digits:,} digits; expected at most 4,000, or text")
        return int(text)

    def value(self, text: str, at: int = 0) -> tuple[Any, int, str]:
        """(the value at a position, its end, why it is refused or ""). Raises `ValueError` for wrong syntax."""
        self.issues.clear()
        try:
            value, end = self._scan(text, at)
        except json.JSONDecodeError as error:
            raise _SyntaxError(_syntax(error), error.lineno) from None
        except RecursionError:
            raise ValueError("its JSON is nested too deep to be read; expected an object of texts") from None
        except ValueError:  # Python's limit on an integer's digits
            self.issues.clear()
            value, end = self._scan_slowly(text, at)
        # Within this value alone: a list of many items is one text.
        if self.issues or _has_halves(text, at, end):
            self.issues[:0] = _refused_values(value)
        return value, end, self.issues[0] if self.issues else ""

    def line(self, data: bytes) -> tuple[Any, str]:
        """(one line's value, why it is refused or "")."""
        try:
            text = _decoded(data, "JSON").strip(" \t\r\n")
            value, end, issue = self.value(text.removeprefix("\ufeff"))
        except ValueError as error:
            return None, str(error)
        if end != len(text.removeprefix("\ufeff")):
            return None, f"not JSON: more follows the first value, at column {end + 1}; expected one value on a line"
        return value, issue


def _syntax(error: json.JSONDecodeError) -> str:
    before = error.doc[: error.pos].rstrip()
    hint = ""
    if "\0" in error.doc[error.pos : error.pos + 2]:
        hint = " (a NUL byte: the file is binary, or was cut short by a crash)"
    elif before.endswith(",") and error.doc[error.pos : error.pos + 1] in ("]", "}"):
        hint = " (a comma before the closing bracket)"
    elif error.doc[error.pos : error.pos + 1] == "'":
        hint = " (JSON has double quotes; write it with json.dumps)"
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}"


def _refused_values(value: Any, name: str = "") -> list[str]:
    """The first field that holds a refused number, or half of a surrogate pair, which is no text."""
    where = f"field {name!r:.80}: " if name else ""
    if isinstance(value, _Refused):
        return [where + value.reason]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(value[error.start]):04x}"
            return [f"{where}found {code}, half of a surrogate pair; expected whole characters"]
        return []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        dotted = f"{name}.{key}" if name else str(key)
        in_name = _refused_values(key) if isinstance(key, str) else []
        issues = [f"a field's name: {issue}" for issue in in_name] or _refused_values(part, dotted)
        if issues:
            return issues
    return []


def _record(place: tuple[str, int, Any, int], value: Any, issue: str) -> Row | BadRow:
    """A row's fields; those of a list are named "0", "1", … as the hub's viewer does."""
    path, number, unit, line = place
    if issue:
        return BadRow(path, number, unit, line, issue)
    if isinstance(value, dict):
        return Row(path, number, unit, line, value)
    if isinstance(value, list):
        return Row(path, number, unit, line, {str(k): item for k, item in enumerate(value)})
    return BadRow(path, number, unit, line, f"found {type(value).__name__}, expected an object")


def _is_document(head: bytes) -> bool:
    """Whether a file of JSON lines begins as one value over many lines, and not as a line that is cut short."""
    lines = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").lstrip().splitlines()[:3]]
    first, second, third = (*lines, b"", b"", b"")[:3]
    if first == b"{":
        return second.startswith(b'"')
    if first == b"[":
        is_item = second.startswith((b"{", b"["))
        return is_item and (second == b"{" or second.endswith(b",") or third in (b"]", b""))
    return first.startswith(b"[{") and first.endswith(b"},")


def _jsonl(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    head = _head(stream)
    if _is_document(head):
        yield from _json(stream, name, split)
        return
    try:
        text = _utf8(stream, head)
    except UnicodeDecodeError as error:
        yield BadRow(name, 1, reason=f"not UTF-8 or {error.encoding}: {error.reason}; expected JSON in UTF-8")
        return
    decoder = _Json()
    scan_once, issues = decoder.scan_once, decoder.issues
    number = 0
    for line in text:
        # The common line takes the shortest way; whatever is wrong or rare is read again by `line`, which says what.
        try:
            shown = line.decode()
            value, end = scan_once(shown, 0)
            is_common = (
                (end == len(shown) or (end + 1 == len(shown) and shown[end] == "\n"))
                and type(value) is dict
                and not issues
                and not (b"\\u" in line and ("\\ud" in shown or "\\uD" in shown))
            )
        except (ValueError, StopIteration, RecursionError):
            is_common = False
        if is_common:
            number += 1
            yield Row(name, number, "line", 0, value)
            continue
        for part in _parts(line):
            number += 1
            if part.strip():
                yield _record((name, number, "line", 0), *decoder.line(part))


def _json(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    """A list of objects, or of pairs (Orz); an object that holds such a list; or an object on each line."""
    head = _head(stream)
    try:
        data = _rest(_utf8(stream, head))
    except UnicodeDecodeError as error:
        yield BadRow(name, 1, reason=f"not UTF-8 or {error.encoding}: {error.reason}; expected JSON in UTF-8")
        return
    first = data.lstrip()[:1]
    if first not in (b"[", b"{") or (first == b"{" and _starts_with_a_row(data)):
        yield from _jsonl(cast(IO[bytes], _buffered(io.BytesIO(data))), name, split)
        return
    try:
        text = _decoded(data, "JSON")
    except ValueError as error:
        line = data[: _bad_byte(data)].count(b"\n") + 1
        yield BadRow(name, line, reason=str(error))
        return
    at = _skip(text, 0)
    if text[at] == "{":
        start, reason = _wrapped(text, at, split)
        if reason:
            yield BadRow(name, text.count("\n", 0, start) + 1, reason=reason)
            return
        if start < 0:  # one object over several lines is one row
            try:
                value, _, issue = _Json().value(text, at)
            except ValueError as error:
                yield BadRow(name, error.line if isinstance(error, _SyntaxError) else 1, reason=str(error))
                return
            yield _record((name, 1, "item", text.count("\n", 0, at) + 1), value, issue)
            return
        yield from _items(text, start, name, nested=True, may_have_halves=_may_have_halves(data))
        return
    yield from _items(text, at, name, may_have_halves=_may_have_halves(data))


def _bad_byte(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _starts_with_a_row(data: bytes) -> bool:
    """Whether the first line is an object and more lines follow: JSON lines under the name .json."""
    first, _, rest = data.lstrip().replace(b"\r", b"\n").partition(b"\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return first.rstrip().endswith(b"}") and rest.lstrip()[:1] == b"{"
    return True


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _items(text: str, at: int, name: str, nested: bool = False, may_have_halves: bool = True) -> Iterator[Row | BadRow]:
    """The list's items one at a time, each with its line.

    Args:
        text: The whole file.
        at: The position of the list's opening bracket.
        name: The file's name.
        nested: Whether the list may be followed by something, as inside an object.
        may_have_halves: Whether half of a surrogate pair may be escaped somewhere; False saves the search in each item.
    """
    decoder, number, line, seen = _Json(), 0, text.count("\n", 0, at) + 1, at
    scan_once, issues, next_item = decoder.scan_once, decoder.issues, _NEXT_ITEM.match
    has_lines, between = "\n" in text, ","
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]" or number:
        if has_lines:
            line, seen = line + text.count("\n", seen, at), at
        number += 1
        # The common item takes the shortest way; whatever is wrong or rare is read again by `value`, which says what.
        try:
            value, end = scan_once(text, at)
            is_common = type(value) is dict and not issues and not (may_have_halves and _has_halves(text, at, end))
        except (ValueError, StopIteration, RecursionError):
            is_common = False
        if is_common:
            yield Row(name, number, "item", line, value)
            at = end + len(between)
            if text.startswith(between, end) and text[at : at + 1] == "{":  # as between the two items before
                continue
            following = next_item(text, end)
            if following:
                between, at = following[0], following.end()
                continue
            at = end
        else:
            try:
                value, at, issue = decoder.value(text, at)
            except ValueError as error:
                yield BadRow(name, number, "item", error.line if isinstance(error, _SyntaxError) else line, str(error))
                return
            yield _record((name, number, "item", line), value, issue)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            line += text.count("\n", seen, at)
            found = repr(text[at : at + 1]) if at < len(text) else "the file's end"
            yield BadRow(name, number + 1, "item", line, f"not JSON: found {found}, expected a comma or the list's end")
            return
        at = _skip(text, at + 1)
    rest = _skip(text, at + 1)
    if not nested and rest < len(text):
        line += text.count("\n", seen, rest)
        yield BadRow(name, number + 1, "item", line, "not JSON: more follows the list; expected one list")


def _has_halves(text: str, at: int, end: int) -> bool:
    """Whether a part of a surrogate pair is escaped in a part of the text."""
    return text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0


def _may_have_halves(data: bytes) -> bool:
    """The same for a whole file, in a fraction of the time that two searches take."""
    if len(data) < 2**20:
        return b"\\ud" in data or b"\\uD" in data
    import numpy as np

    size = 2**18  # stays in the processor's cache
    for start in range(0, len(data), size):
        part = np.frombuffer(data, np.uint8, min(size + 2, len(data) - start), start)
        at = np.flatnonzero(part[:-2] == ord("\\"))
        if ((part[at + 1] == ord("u")) & (part[at + 2] | 0x20 == ord("d"))).any():
            return True
    return False


def _wrapped(text: str, at: int, split: str | None) -> tuple[int, str]:
    """(the position of the rows' list inside an object, ""), (-1, "") where the object is a row, or (…, the reason)."""
    decoder, starts, fields = _Json(), dict[str, int](), dict[str, Any]()
    start = at
    try:
        at = _skip(text, at + 1)
        while text[at : at + 1] == '"':
            name, at, _ = decoder.value(text, at)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                break
            start = at = _skip(text, at + 1)
            value, end, _ = decoder.value(text, at)
            fields[name] = value
            if isinstance(value, list) and all(isinstance(item, dict | list) for item in value):
                starts[name] = at
            at = _skip(text, end)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
    except ValueError as error:
        return (_line_start(text, error.line) if isinstance(error, _SyntaxError) else start), str(error)
    if text[at : at + 1] != "}":
        return at, "not JSON: the object does not end; expected one object, or one list of objects"
    if _skip(text, at + 1) < len(text):
        return at, "not JSON: more follows the object; expected an object on each line, or one list"
    return _rows_of(fields, starts, split)


def _line_start(text: str, line: int) -> int:
    at = 0
    for _ in range(line - 1):
        at = text.index("\n", at) + 1
    return at


def _rows_of(fields: Mapping[str, Any], starts: Mapping[str, int], split: str | None) -> tuple[int, str]:
    splits = [name for name in starts if name.lower() in ("train", "validation", "valid", "dev", "test")]
    lists = [name for name in starts if name in WRAPPERS] or splits
    if len(lists) > 1 and split in lists:
        lists = [str(split)]
    if len(lists) > 1:
        return 0, f"holds several lists ({', '.join(lists)}); expected one, or one by the split's name"
    if not lists:
        return -1, ""
    others = [name for name in fields if name not in (lists[0], *splits) and isinstance(fields[name], dict | list)]
    if others or "system" in fields or "system_prompt" in fields:
        name = others[0] if others else "system"
        return 0, f"field {name!r} beside {lists[0]!r}: expected all that concerns a row in that row"
    return starts[lists[0]], ""


# --- CSV -----------------------------------------------------------------------------------------------------------


class _Text:
    """Lines of text for the CSV parser, which counts what it is given; `bad` says which lines are no text, and why."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.bad: dict[int, str] = {}

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._blocks())

    def _blocks(self) -> Iterator[list[str]]:
        """Whole lines in blocks, for a loop over single lines would take as long as the parser."""
        number = 0
        while block := cast(io.BufferedReader, self.stream).read1(2**17):
            damage: BaseException | None = None
            try:
                block += self.stream.readline()
            except _DAMAGE as error:  # what was read before it counts
                block, damage = block[: block.rfind(b"\n") + 1], error
            try:
                text = block.decode()
            except UnicodeDecodeError:
                text = "\0"
            lines = io.StringIO(text, newline="").readlines() if "\0" not in text else self._slowly(block, number)
            number += len(lines)
            yield lines
            if damage is not None:
                raise damage

    def _slowly(self, block: bytes, number: int) -> list[str]:
        """The lines of a block of which some are no text. number: of lines before it."""
        lines = []
        for data in block.splitlines(keepends=True):  # of bytes: at \n, \r and \r\n alone
            number += 1
            try:
                text = _decoded(data, "CSV")
            except ValueError as error:
                self.bad[number], text = str(error), data.decode(errors="replace")
            if "\0" in text:
                self.bad[number], text = "holds a NUL byte; expected CSV in UTF-8", text.replace("\0", " ")
            lines.append(text)
        return lines


def _csv(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    csv.field_size_limit(2**31 - 1)  # images in base64
    try:
        text = _Text(_utf8(stream, _head(stream)))
    except UnicodeDecodeError as error:
        yield BadRow(name, 1, reason=f"not UTF-8 or {error.encoding}: {error.reason}; expected CSV in UTF-8")
        return
    delimiter = "\t" if format_of(name) == "tsv" else ","
    reader = csv.reader(iter(text), strict=True, delimiter=delimiter)
    header: list[str] = []
    width, all_bad = -1, text.bad
    start, done = 1, False
    while not done:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "; a quote that opens here is not closed" if "end of data" in str(error) else ""
            yield BadRow(name, start, reason=f"not CSV: {error}{hint}")
            if not header:
                return
            continue
        if len(cells) == width and not all_bad:
            yield Row(name, start, "line", 0, dict(zip(header, cells)))  # noqa: B905 (as many, and faster)
            continue
        bad = next((all_bad.pop(line) for line in list(all_bad) if line <= reader.line_num), "")
        if not header and cells:
            header, width = cells, len(cells)
            bad = bad or _bad_header(cells, delimiter)
            done = bool(bad)
        elif not cells:
            continue
        elif not bad and len(cells) != width:
            bad = f"found another number of columns than the header's ({len(cells)}, not {width})"
        elif not bad:
            yield Row(name, start, "line", 0, dict(zip(header, cells, strict=True)))
        if bad:
            yield BadRow(name, start, reason=bad)


def _bad_header(cells: Sequence[str], delimiter: str) -> str:
    twice = next((cell for k, cell in enumerate(cells) if cell in cells[:k]), None)
    if twice is not None:
        return f"column {twice!r:.80} occurs twice; expected each name once"
    other = next((mark for mark in (";", "\t", ",") if mark != delimiter and mark in cells[0]), None)
    if len(cells) == 1 and other:
        wanted = "a tab (.tsv)" if delimiter == "\t" else "a comma (.csv)"
        return f"found one column {cells[0]!r:.80}; expected {wanted} between columns, not {other!r}"
    return ""


# --- columnar files ------------------------------------------------------------------------------------------------


def _parquet(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        yield from pyarrow.parquet.ParquetFile(_source(stream)).iter_batches(batch_size=256)

    yield from _columnar(batches, name, "Parquet")


def _arrow(stream: IO[bytes], name: str, split: str | None) -> Iterator[Row | BadRow]:
    """The stream that `datasets` writes (`save_to_disk`), or an Arrow file (Feather)."""
    import pyarrow.ipc

    is_file = _head(stream).startswith(b"ARROW1")

    def batches() -> Iterator[Any]:
        source = _source(stream)
        if isinstance(source, str):
            source = pyarrow.memory_map(source)
        if is_file:
            file = pyarrow.ipc.open_file(source)
            yield from (file.get_batch(k) for k in range(file.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(source)

    yield from _columnar(batches, name, "Arrow")


def _source(stream: IO[bytes]) -> Any:
    """The file's path, or the contents where they are decompressed on the way or come from an archive."""
    import pyarrow

    raw = getattr(stream, "raw", None)
    if isinstance(raw, io.FileIO) and raw.seekable() and isinstance(raw.name, str):
        return raw.name
    return pyarrow.BufferReader(stream.read())


def _columnar(batches: Callable[[], Iterator[Any]], name: str, what: str) -> Iterator[Row | BadRow]:
    number, names = 0, None
    try:
        for batch in batches():
            if names is None:
                names = batch.schema.names
                twice = next((column for k, column in enumerate(names) if column in names[:k]), None)
                if twice is not None:
                    yield BadRow(name, 1, "row", reason=f"column {twice!r:.80} occurs twice; expected each name once")
                    return
            if what == "Arrow":  # offsets that lead outside its buffers would crash the process
                batch.validate(full=True)
            for part in _pieces(batch, 256):
                for values, reason in _objects(part):
                    number += 1
                    yield BadRow(name, number, "row", 0, reason) if reason else Row(name, number, "row", 0, values)
    except Exception as error:  # a damaged file makes pyarrow raise almost anything
        if isinstance(error, OSError) and error.errno in _DEVICE_ERRORS:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if number == 0 and names is None:
            yield BadRow(name, 1, "file", reason=f"not {what}, or cut short: {reason}")
        else:
            yield BadRow(name, number + 1, "row", reason=f"damaged {what} after row {number}: {reason}")


def _pieces(batch: Any, size: int) -> Iterator[Any]:
    for at in range(0, len(batch), size):
        yield batch.slice(at, size)


def _objects(batch: Any) -> Iterator[tuple[Any, str]]:
    """(a row's values, ""), or (None, why they cannot be had)."""
    try:
        yield from ((values, "") for values in batch.to_pylist())
        return
    except (ValueError, OverflowError, TypeError, ArithmeticError):
        pass
    for k in range(len(batch)):
        try:
            yield batch.slice(k, 1).to_pylist()[0], ""
        except (ValueError, OverflowError, TypeError, ArithmeticError) as error:
            yield None, f"a value cannot be read: {str(error).splitlines()[0]:.160}"
