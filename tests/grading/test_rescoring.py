"""`xreasoner grade`: one line in, one line out, in order, whatever a line holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xreasoner import cli
from xreasoner.grading import rescoring
from xreasoner.grading.rescoring import KINDS, grade_line, option_texts

GOOD = {"response": "B", "gold": "B", "answer_type": "mcq", "choices": ["cat", "dog"], "model": "m", "n": 1}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def graded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fields_are_carried_and_three_are_added(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    assert cli.run(["grade", str(write(tmp_path / "in.jsonl", GOOD)), "--out", str(out)]) == 0
    assert graded(out) == [{**GOOD, "outcome": "correct", "extracted": "B", "correct": True}]
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_bad_lines_are_reported_and_do_not_stop_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        GOOD,
        "not json",
        "",
        [1],
        {**GOOD, "answer_type": "mqc"},
        {**GOOD, "gold": None},
        {**GOOD, "gold": "1"},
        {**GOOD, "choices": "cat"},
        {**GOOD, "response": 3},
        {**GOOD, "answer_type": "float:x"},
        {**GOOD, "gold": "fish"},
        {**GOOD, "answer_type": "gym"},
        {**GOOD, "response": "\\boxed{9^{9^{9^9}}}", "gold": "x+2", "answer_type": "latex"},
        {**GOOD, "response": "A", "k": "\ud800"},
    ]
    out = tmp_path / "out.jsonl"
    assert cli.run(["grade", str(write(tmp_path / "in.jsonl", *rows)), "--out", str(out)]) == 2
    found = graded(out)
    assert [row["outcome"] for row in found] == ["correct", *["error"] * 12]  # a blank line is no row, as everywhere
    assert not any(row["correct"] for row in found[1:])
    said = capfd.readouterr().err.splitlines()
    assert [int(line.split(":")[1]) for line in said[:-1]] == [2, *range(4, 15)]
    assert "did you mean 'mcq'?" in said[2]
    assert "may count from 0 or from 1" in said[4]
    assert "half of a surrogate pair" in said[11]
    assert said[-1] == "1 of 13 correct (7.7 %); 12 lines could not be graded"


def test_the_screen_is_the_output_when_none_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["grade", str(write(tmp_path / "in.jsonl", GOOD, GOOD))]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2


def test_order_is_kept_over_many_lines(tmp_path: Path) -> None:
    rows = [{**GOOD, "n": n, "response": "AB"[n % 2]} for n in range(2000)]
    out = tmp_path / "out.jsonl"
    assert cli.run(["grade", str(write(tmp_path / "in.jsonl", *rows)), "--out", str(out)]) == 0
    assert [(row["n"], row["correct"]) for row in graded(out)] == [(n, n % 2 == 1) for n in range(2000)]


def test_the_users_mistakes_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "in.jsonl", GOOD)
    assert cli.run(["grade", str(tmp_path / "none.jsonl")]) == 2
    assert cli.run(["grade", str(file), "--out", str(file)]) == 2
    assert cli.run(["grade", str(file), "--out", str(tmp_path)]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 3
    assert graded(file) == [GOOD]


def test_an_output_that_was_there_stays_when_the_work_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "out.jsonl", "before")

    def stop(row: dict[str, Any]) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(rescoring, "_encoded", stop)
    assert cli.run(["grade", str(write(tmp_path / "in.jsonl", GOOD)), "--out", str(out)]) == 130
    assert out.read_text() == "before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    "choices",
    [
        ["cat", "dog"],
        "['cat', 'dog']",
        '["cat", "dog"]',
        "[\"['cat', 'dog']\"]",
        {"A": "cat", "B": "dog"},
        [{"key": "B", "value": "dog"}, {"key": "A", "value": "cat"}],
    ],
)
def test_options_in_every_form_that_data_sets_use(choices: object) -> None:
    assert option_texts(choices) == ("cat", "dog")


def test_every_kind_is_judged() -> None:
    for kind in set(KINDS) - {"gym"}:
        gold = {"choice": "A", "yesno": "yes", "quantity": "5 m", "text": "oak"}.get(KINDS[kind], "5")
        row = {"response": f"Answer: {gold}", "gold": gold, "answer_type": kind, "choices": ["x", "y"]}
        assert grade_line(json.dumps(row).encode())[0]["correct"], kind
    store = {**GOOD, "options": GOOD["choices"], "answer_type": "choice", "exit": "truncated", "response": "It is B"}
    del store["choices"]
    assert grade_line(json.dumps(store).encode())[0]["outcome"] == "truncated"
    assert grade_line(json.dumps({**GOOD, "choices": None}).encode())[0]["correct"]  # options in the picture


def test_golds_of_lists_and_numbers() -> None:
    row = {"response": "[1, 2.04]", "gold": [1, 2.0], "answer_type": "list:1", "choices": None}
    assert grade_line(json.dumps(row).encode())[0]["correct"]
    row = {"response": "5", "gold": 5, "answer_type": "integer", "choices": None}
    assert grade_line(json.dumps(row).encode())[0]["correct"]


def test_options_in_columns_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(
        'response,gold,answer_type,A,B,C\n"It is dog.",B,mcq,cat,dog,\n"(A)",dog,mcq,cat,dog,bat\nA,A,mcq,cat,,bat\n'
    )
    out = tmp_path / "out.jsonl"
    assert cli.run(["grade", str(path), "--out", str(out)]) == 2
    assert [row["outcome"] for row in graded(out)] == ["correct", "wrong", "error"]
    assert graded(out)[2]["note"] == "field 'B': found '', expected an option before the row's last one"
