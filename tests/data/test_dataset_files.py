"""Reading rows: four kinds of file, folders by card or by name, and what is said of damage."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from xreasoner.data.dataset_files import Table
from xreasoner.data.readers import count_rows, read_rows
from xreasoner.errors import DataError

ROWS = [{"a": f"text {k}, with a comma\u2028and a separator", "b": str(k)} for k in range(700)]


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        path.write_text("a,b\n" + "".join(f'"{row["a"]}",{row["b"]}\n' for row in ROWS), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows.{kind}")
    assert [dict(row.values) for row in read_rows(path)] == ROWS
    assert count_rows(path) == 700
    table = Table(str(path))
    sample = table.sample(5, seed=3)
    assert [row.values for row in table.sample(700, seed=3)] == [row.values for row in table.rows()]
    places = [row.where for row in table.rows()]
    assert len(sample) == 5
    assert sample == sorted(sample, key=lambda row: places.index(row.where)) != table.sample(5, seed=4)
    number = int(sample[0].values["b"])
    assert sample[0].where.endswith(str(number + {"csv": 2, "json": 1, "jsonl": 1, "parquet": 1}[kind]))


def test_a_folder_is_read_by_its_card_or_by_names(tmp_path: Path) -> None:
    for name in ("b/test-0.jsonl", "b/part-0.jsonl", "a/validation.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert [p.name for p in Table(str(tmp_path), split="test").files()] == ["test-0.jsonl"]
    assert [p.name for p in Table(str(tmp_path), split="validation").files()] == ["validation.jsonl"]
    with pytest.raises(DataError, match="no data files for 'train'"):
        Table(str(tmp_path)).files()
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: only\n  data_files:\n  - {split: train, path: b/part-*}\n---\n"
    )
    assert [p.name for p in Table(str(tmp_path)).files()] == ["part-0.jsonl"]
    assert [p.name for p in Table(str(tmp_path), config="only").files()] == ["part-0.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"', "x.jsonl:2: not JSON"),
        ("x.jsonl", b'{"a": 1}\n\xff\n', "x.jsonl:2: not (UTF-8|JSON)"),
        ("x.jsonl", b"3\n", "x.jsonl:1: found int, expected an object"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl:1: its JSON is nested too deep"),
        ("x.json", b'[{"a": 1}, 2]', "x.json:1: item 2: found int"),
        ("x.json", b'[{"a": 1}', "x.json:1: item 2: not JSON"),
        ("x.csv", b"a,b\n1\n", "x.csv:2: found another number of columns"),
        ("x.csv", b"a,b\n\xff,1\n", "x.csv:2: not UTF-8"),
        ("x.parquet", b"PAR1 cut", "x.parquet: not Parquet, or cut short"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(DataError, match="is empty"):
        Table(str(tmp_path / "x.jsonl")).sample(1, 0)
