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


def jsonl(path: Path, *values: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    return path


def values(table: Table) -> list[str]:
    return [row.values["a"] for row in table.rows()]


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "._train.jsonl",
        ".train.jsonl",
        "_train.jsonl",
        "__MACOSX/train.jsonl",
        "_temporary/0/train.jsonl",
        "train.jsonl~",
        "old~/train.jsonl",
        ".git/train.jsonl",
        "train.jsonl.bak",
        "train.jsonl.tmp",
        "dataset_info.json",
        "dataset_infos.json",
        "cache-0123.arrow",
    ],
)
def test_hidden_files_and_records_are_no_rows(tmp_path: Path, hidden: str) -> None:
    jsonl(tmp_path / "train.jsonl", "row")
    jsonl(tmp_path / hidden, "twice")
    assert values(Table(str(tmp_path))) == ["row"]
    (tmp_path / "train.jsonl").rename(tmp_path / "_train.jsonl")
    with pytest.raises(DataError, match=r"no data files for 'train'.*\(hidden, so ignored: .*_train\.jsonl"):
        Table(str(tmp_path)).files()
    assert values(Table(str(tmp_path / "_train.jsonl"))) == ["row"]  # a file that is named is read


def test_a_hidden_folder_above_the_data_hides_nothing(tmp_path: Path) -> None:
    jsonl(tmp_path / ".cache" / "_x" / "train.jsonl", "row")
    assert values(Table(str(tmp_path / ".cache" / "_x"))) == ["row"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    jsonl(tmp_path / "elsewhere" / "part.jsonl", "row")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "itself.jsonl").symlink_to("itself.jsonl")
    (tmp_path / "data" / "nowhere.jsonl").symlink_to("none.jsonl")
    assert values(Table(str(tmp_path / "data"))) == ["row"]
    jsonl(tmp_path / "data" / "more.jsonl", "more")
    (tmp_path / "data" / "latest.jsonl").symlink_to("more.jsonl")
    assert values(Table(str(tmp_path / "data"))) == ["row", "more"]


def test_one_name_in_two_formats_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", "row")
    write(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train\.csv and train\.jsonl: one name in two formats"):
        Table(str(tmp_path)).files()


def arrow(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        batch = pyarrow.RecordBatch.from_pylist([{"a": f"{folder.name}-{k}"}])
        with pyarrow.ipc.new_stream(folder / name, batch.schema) as writer:
            writer.write_batch(batch)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_folders_that_datasets_saved_are_read(tmp_path: Path) -> None:
    names = [f"data-0000{k}-of-00002.arrow" for k in range(2)]
    arrow(tmp_path / "one", *names)
    write(tmp_path / "one" / "cache-1.parquet").rename(tmp_path / "one" / "cache-1.arrow")
    assert values(Table(str(tmp_path / "one"))) == ["one-0", "one-1"]
    for split in ("train", "test"):
        arrow(tmp_path / "dict" / split, *names)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert values(Table(str(tmp_path / "dict"))) == ["train-0", "train-1"]
    assert values(Table(str(tmp_path / "dict"), split="test")) == ["test-0", "test-1"]
    with pytest.raises(DataError, match=r"has no split 'validation'; its dataset_dict\.json has"):
        Table(str(tmp_path / "dict"), split="validation").files()
    (tmp_path / "one" / names[1]).unlink()
    with pytest.raises(DataError, match=r"names .*data-00001-of-00002.*copy the whole folder"):
        Table(str(tmp_path / "one")).files()


def test_bad_rows_of_several_files_are_reported_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"a": 1}\n{"a": NaN}\n')
    with pytest.raises(DataError) as caught:
        Table(str(tmp_path)).sample(1, 0)
    assert [Path(line.split(": ")[0]).name for line in str(caught.value).splitlines()] == ["a.jsonl:2", "b.jsonl:2"]


@pytest.mark.parametrize(
    "matter", ["configs: 3", "configs: [3, {}]", "- x", "configs:\n- data_files: {split: train}", ": ["]
)
def test_a_card_that_says_nothing_of_files_is_passed_over(tmp_path: Path, matter: str) -> None:
    jsonl(tmp_path / "train.jsonl", "row")
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\n")
    assert values(Table(str(tmp_path))) == ["row"]
