"""Overlap is found whatever the spelling, the rest stays as it was, and the time is linear."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from xreasoner.data.dataset_files import Table
from xreasoner.data.decontamination import decontaminate, words
from xreasoner.data.public import orz
from xreasoner.errors import DataError, UserError
from xreasoner.problem import Problem

VOCABULARY = [f"w{k}" for k in range(5000)]


def sentence(rng: Random, length: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(length))


def item(question: str, name: str = "i", options: tuple[str, ...] = ()) -> Problem:
    return Problem(name, question, "A", "choice", options)


def file(path: Path, *rows: Any) -> Table:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Table(str(path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_shared_run_of_thirteen_words_is_found_and_twelve_is_not(tmp_path: Path) -> None:
    rng = Random(0)
    shared = sentence(rng, 13)
    bench = [item(f"{sentence(rng, 20)} {shared}", "whole"), item(sentence(rng, 40), "other")]
    loud = shared.upper().replace(" ", ",  ").replace("W", "Ｗ", 1)  # punctuation, case and a full-width letter
    table = file(
        tmp_path / "train.jsonl",
        {"question": f"So: {loud}!", "answer": "1"},
        {"question": " ".join(shared.split()[:12]), "answer": "2"},
        {"question": "a clean one", "chain": [{"value": f"as in {shared}"}], "answer": "3"},
        {"question": "clean é", "answer": 4},
    )
    report = decontaminate(table, {"b": bench}, tmp_path / "out")
    assert (report["rows"], report["dropped"]) == (4, 2)
    assert report["benches"] == {"b": {"items": 2, "too_short": 0, "items_hit": 1, "rows": 2}}
    hits = lines(tmp_path / "out" / "hits.jsonl")
    assert [hit["row"].rpartition(":")[2] for hit in hits] == ["1", "3"]
    assert {(hit["bench"], hit["item"], hit["words"]) for hit in hits} == {("b", "whole", shared)}
    assert [row["answer"] for row in lines(tmp_path / "out" / "clean.jsonl")] == ["2", 4]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert not list((tmp_path / "out").glob("*.partial"))


def test_fields_n_and_short_items(tmp_path: Path) -> None:
    bench = [item("one two three four five six", "short"), item("one two", "tiny")]
    rows = [{"q": "zero one two three four five six", "note": "x"}, {"q": "x", "note": "one two three four five six"}]
    table = file(tmp_path / "train.jsonl", *rows)
    report = decontaminate(table, {"b": bench}, tmp_path / "a", fields=["q"])
    assert (report["dropped"], report["benches"]["b"]["too_short"]) == (1, 1)
    assert decontaminate(table, {"b": bench}, tmp_path / "b", n=5)["dropped"] == 2
    with pytest.raises(DataError, match=r"train.jsonl:1: field 'question' is missing; found q, note"):
        decontaminate(table, {"b": bench}, tmp_path / "c", fields=["question"])
    with pytest.raises(UserError, match="not an empty folder"):
        decontaminate(table, {"b": bench}, tmp_path / "a")


def test_the_cleaned_set_is_read_by_the_same_source(tmp_path: Path) -> None:
    rng = Random(1)
    questions = [sentence(rng, 30) for _ in range(4)]
    pairs = [
        [{"from": "human", "value": q}, {"from": "assistant", "ground_truth": {"value": str(k)}}]
        for k, q in enumerate(questions)
    ]
    path = tmp_path / "orz.json"
    path.write_text(json.dumps(pairs))
    decontaminate(Table(str(path)), {"b": [item(questions[2])]}, tmp_path / "out")
    left = orz({"path": str(tmp_path / "out" / "clean.jsonl")}).problems(9, 0)
    assert sorted(problem.gold for problem in left) == ["0", "1", "3"]


def test_words_are_letters_and_digits_in_lower_case() -> None:
    assert words("The ①st “Ångström”—of\u00a0x²+3.5!") == ["the", "1st", "ångström", "of", "x2", "3", "5"]


def test_the_time_is_linear_in_the_training_set(tmp_path: Path) -> None:
    rng = Random(2)
    bench = {"b": [item(sentence(rng, 60), str(k)) for k in range(500)]}
    rows = [{"text": sentence(rng, 200)} for _ in range(4000)]
    seconds = []
    for size in (1000, 4000):
        table = file(tmp_path / f"{size}.jsonl", *rows[:size])
        start = time.process_time()
        decontaminate(table, bench, tmp_path / str(size))
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0]  # 4 if linear, 16 if quadratic
