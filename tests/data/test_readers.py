"""The data reader: rows come back equal from every format, and whatever is wrong is named with file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.data.dataset_files import Table
from xreasoner.data.readers import MAX_REPORTED, BadRow, Row, count_rows, json_line, read_records, read_rows
from xreasoner.errors import DataError

Rows = list[dict[str, str]]
NAMES = ("question", "gold", "a b", "ü")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = TEXT.map(lambda text: text.replace("\0", ""))
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, PLAIN)), min_size=1, max_size=6)


def jsonl(rows: Rows, **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def table(rows: Rows, delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, NAMES, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def arrow(rows: Rows, write: Any = pyarrow.ipc.new_stream) -> bytes:
    buffer, data = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    with write(buffer, data.schema) as writer:
        writer.write_table(data)
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


FORMS: dict[str, Callable[[Rows], bytes]] = {
    "x.jsonl": lambda rows: jsonl(rows, ensure_ascii=False),
    "ascii.jsonl": jsonl,
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows, ensure_ascii=False),
    "crlf.jsonl": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "cr.jsonl": lambda rows: jsonl(rows).replace(b"\n", b"\r"),
    "blank.jsonl": lambda rows: b"\n  \n" + jsonl(rows).replace(b"\n", b"\n\n"),
    "end.jsonl": lambda rows: jsonl(rows)[:-1],
    "utf16.jsonl": lambda rows: jsonl(rows, ensure_ascii=False).decode().encode("utf-16"),
    "utf16le.jsonl": lambda rows: jsonl(rows, ensure_ascii=False).decode().encode("utf-16-le"),
    "x.ndjson": jsonl,
    "x.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "x.jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "x.jsonl.xz": lambda rows: lzma.compress(jsonl(rows)),
    "x.jsonl.zst": lambda rows: zstd(jsonl(rows)),
    "unpacked.jsonl.gz": jsonl,
    "without-suffix": jsonl,
    "x.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "utf16.json": lambda rows: json.dumps(rows).encode("utf-16"),
    "wrapped.json": lambda rows: json.dumps({"version": "1", "data": rows}).encode(),
    "lines.json": jsonl,
    "indented.jsonl": lambda rows: json.dumps(rows, indent=2).encode(),
    "x.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "x.csv": lambda rows: table(rows, ","),
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + table(rows, ","),
    "utf16.csv": lambda rows: table(rows, ",").decode().encode("utf-16"),
    "x.csv.gz": lambda rows: gzip.compress(table(rows, ",")),
    "x.tsv": lambda rows: table(rows, "\t"),
    "x.parquet": parquet,
    "parquet-without-suffix": parquet,
    "x.arrow": arrow,
    "file.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_file),
}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_rows_read_back_equal_from_every_format(
    name: str, rows: Rows, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FORMS[name](rows))
    assert [dict(row.values) for row in read_rows(path)] == rows
    assert [dict(row.values) for row in Table(str(path)).sample(10**6, 0)] == rows
    if name != "cr.jsonl":
        assert count_rows(path) == len(rows)
    assert [dict(row.values) for row in read_records(Path(name), path.read_bytes()) if isinstance(row, Row)] == rows


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_the_projects_error_with_file_and_line(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(FORMS[name]([dict.fromkeys(NAMES, "text 1 é"), dict.fromkeys(NAMES, "2")]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole)))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        list(read_rows(path))
    except DataError as error:
        for line in str(error).splitlines():
            assert line.startswith((f"{path}:", "and ")), line
    count_rows(path)


def problems(data: bytes, name: str = "x.jsonl") -> list[str]:
    """Each bad row's place and reason, without the folder."""
    return [
        f"{record.where}: {record.reason}" for record in read_records(Path(name), data) if isinstance(record, BadRow)
    ]


GOOD = b'{"a": 1}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN}', "field 'a': found NaN, which JSON does not have"),
        (b'{"a": [{"b": -Infinity}]}', "field 'a.0.b': found -Infinity"),
        (b'{"a": 1e999}', "field 'a': found 1e999, which is too large"),
        (b'{"a": "\\ud800"}', "field 'a': found \\ud800, half of a surrogate pair"),
        (b'{"m": [{"content": "x\\uDFFFy"}]}', "field 'm.0.content': found \\udfff"),
        (b'{"\\ud800": 1}', "a field's name: found \\ud800"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "field 'a': found an integer of 5,000 digits"),
        (b'{"a": 1, "a": 2}', "field 'a' occurs twice"),
        (b'{"m": {"a": 1, "a": 1}}', "field 'a' occurs twice"),
        (b'{"a": 1}{"a": 2}', "more follows the first value, at column 9"),
        (b'{"a": 1,}', "a comma before the closing bracket"),
        (b"{'a': 1}", "JSON has double quotes"),
        (b'{"a": "x\0y"}', "a NUL byte"),
        (b"\0\0\0\0", "a NUL byte"),
        (b"[" * 100_000, "nested too deep"),
        (b"7", "found int, expected an object"),
        (b"\xff", "not UTF-8"),
        (b'{"a": "x', "not JSON: Unterminated string"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_the_others_are_read(line: bytes, reason: str) -> None:
    data = GOOD + line + b"\n" + GOOD
    (problem,) = problems(data)
    assert problem.startswith("x.jsonl:2: ")
    assert reason in problem
    assert sum(isinstance(record, Row) for record in read_records(Path("x.jsonl"), data)) == 2
    if line[:1] in b"{7" and b'{"a": 1}{' not in line and not reason.startswith(("not", "a comma", "JSON", "a NUL")):
        (problem,) = problems(b"[" + GOOD + b",\n" + line + b",\n" + GOOD + b"]", "x.json")  # the same in a list
        assert problem.startswith("x.json:3: item 2: ")
        assert reason in problem


def test_texts_that_only_look_wrong_are_read() -> None:
    values = {"a": "\\ud800 NaN Infinity", "b": "\ud83d\ude00", "c": "\u2028\x85\x0c", "d": "\0", "e": 10**3000}
    values["b"] = "😀"
    for escape in (True, False):
        (row,) = read_records(Path("x.jsonl"), json.dumps(values, ensure_ascii=escape).encode())
        assert isinstance(row, Row)
        assert row.values == values


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("x.json", b'{"data": [{"a": 1}], "rows": [{"a": 2}]}', "x.json:1: holds several lists (data, rows)"),
        ("x.json", b'{"system": "S", "data": [{"a": 1}]}', "x.json:1: field 'system' beside 'data'"),
        ("x.json", b'[\n{"a": 1}\n{"a": 2}]', "x.json:3: item 2: not JSON: found '{', expected a comma"),
        ("x.json", b'[\n{"a": 1},\n]', "x.json:3: item 2: not JSON: Expecting value at column 1 (a comma before"),
        ("x.json", b'[{"a": 1}] 2', "x.json:1: item 2: not JSON: more follows the list"),
        ("x.json", b'{\n"a": 1\n}\n{\n"a": 2\n}', "x.json:3: not JSON: more follows the object"),
        ("x.json", b'[{"a": "\n\xff"}]', "x.json:2: not UTF-8"),
        ("x.csv", b"a,a\n1,2\n", "x.csv:1: column 'a' occurs twice"),
        ("x.csv", b"a;b\n1;2\n", "x.csv:1: found one column 'a;b'; expected a comma (.csv) between columns"),
        ("x.tsv", b"a,b\n1,2\n", "x.tsv:1: found one column 'a,b'; expected a tab (.tsv) between columns"),
        ("x.csv", b'a,b\n"1\n2",3\n4\n', "x.csv:4: found another number of columns than the header's (1, not 2)"),
        ("x.csv", b'a,b\n1,"2\n3,4\n', "x.csv:2: not CSV: unexpected end of data; a quote that opens here"),
        ("x.csv", b"a,b\n1,\xe9\n", "x.csv:2: not UTF-8"),
        ("x.csv", b"a,b\n1,\0\n", "x.csv:2: holds a NUL byte"),
        ("x.jsonl.gz", gzip.compress(GOOD * 9, mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("x.jsonl", b"PK\x03\x04", "x.jsonl: an archive or a program's own file"),
        ("x.xlsx", b"whatever", "x.xlsx: an archive or a program's own file"),
        ("x.parquet", b"PAR1 cut", "x.parquet: not Parquet, or cut short"),
        ("x.arrow", b"ARROW1 cut", "x.arrow: not Arrow, or cut short"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(name: str, data: bytes, expected: str) -> None:
    (problem,) = problems(data, name)
    assert expected in problem


def test_a_json_object_with_splits_gives_the_split(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": [{"a": 1}], "test": [{"a": 2}, {"a": 3}]}))
    assert [row.values["a"] for row in Table(str(path)).rows()] == [1]
    assert [row.values["a"] for row in Table(str(path), split="test").rows()] == [2, 3]
    path.write_text('{"question": "Q", "messages": [{"role": "user", "content": "x"}]}')
    assert [list(row.values) for row in Table(str(path)).rows()] == [["question", "messages"]]  # one row, no wrapper


def test_columns_that_occur_twice_or_hold_no_text_are_named() -> None:
    batch = pyarrow.RecordBatch.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["a", "a"])
    buffer = io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    assert "column 'a' occurs twice" in problems(buffer.getvalue(), "x.arrow")[0]
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": broken}), buffer)
    (problem,) = problems(buffer.getvalue(), "x.parquet")
    assert problem.startswith("x.parquet: row 2: a value cannot be read: 'utf-8' codec")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, True, b"x", [1], {"a": 1}, "", "  "])
def test_what_is_no_text_is_refused_where_text_is_expected(value: Any) -> None:
    row = Row("x.parquet", 3, "row", 0, {"gold": value})
    with pytest.raises(DataError, match=r"^x\.parquet: row 3: field 'gold': found .*, expected text"):
        row.text("gold")
    for text in ("nan", "NaN", "<NA>"):
        with pytest.raises(DataError, match="expected text"):
            Row("x.csv", 3, "line", 0, {"gold": text}).text("gold")
    assert Row("x.csv", 3, "line", 0, {"gold": "None"}).text("gold") == "None"
    assert Row("x.jsonl", 3, "line", 0, {"gold": "  nan "}).text("gold") == "  nan "


def test_all_problems_are_reported_at_once_and_then_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes((b"{\n" + GOOD) * 30)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_REPORTED + 1
    assert [line.split(":")[1] for line in lines[:-1]] == [str(2 * k + 1) for k in range(MAX_REPORTED)]
    assert lines[-1] == "and 10 more problems"


def test_a_columnar_files_nan_is_written_as_null() -> None:
    line = json_line({"a": float("nan"), "b": [1.5, float("inf")], "c": "ü\u2028"})
    assert json.loads(line) == {"a": None, "b": [1.5, None], "c": "ü\u2028"}


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (record,) = read_records(tmp_path / "none.jsonl")
    assert isinstance(record, BadRow)
    assert record.reason == "cannot be read: No such file or directory; expected a whole file"


def test_a_line_that_is_no_text_is_named_far_into_a_long_table(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    lines = [b"question,gold"] + [b'"%d: caf\xc3\xa9,\n%s",4' % (k, b"x" * 60) for k in range(5000)]
    lines[4000] = b"caf\xe9,4"
    lines[4500] = b"nul\0,4"
    path.write_bytes(b"\n".join(lines))
    records = list(read_records(path))
    bad = [record for record in records if isinstance(record, BadRow)]
    assert [(each.number, each.reason.split(";")[0].split(" at ")[0]) for each in bad] == [
        (8000, "not UTF-8: invalid continuation byte"),
        (8999, "holds a NUL byte"),
    ]
    assert len(records) == 5000


def test_rows_before_the_damage_of_a_compressed_table_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    rows = b"".join(b"%d,%s\n" % (k, os.urandom(30).hex().encode()) for k in range(20_000))
    whole = gzip.compress(b"n,text\n" + rows)
    path.write_bytes(whole[: len(whole) // 2])
    records = list(read_records(path))
    assert len(records) > 5000
    assert isinstance(records[-1], BadRow)
    assert "cannot be read" in records[-1].reason
    assert records[-1].number == len(records) + 1
    assert all(isinstance(record, Row) for record in records[:-1])


def test_half_of_a_surrogate_pair_is_found_in_a_large_list(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    rows = [json.dumps({"question": "x" * 1000, "mark": "\u00e9 \u2028 \\ud 😀"}) for _ in range(2000)]
    path.write_text("[" + ", ".join(rows) + "]")
    assert len(list(read_rows(path))) == 2000
    rows[1500] = '{"question": "\\uDC00"}'
    path.write_text("[" + ",\n".join(rows) + "]")
    with pytest.raises(DataError, match=r"large\.json:1501: item 1501: field 'question': found \\udc00, half"):
        list(read_rows(path))


def test_a_single_object_that_breaks_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe" + '{"a",\n g"}\n'.encode("utf-16-le"))
    (row,) = read_records(path)
    assert isinstance(row, BadRow)
    assert row.where.startswith(str(path))
    assert "not JSON" in row.reason
