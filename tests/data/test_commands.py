"""Bad data, through every command that reads some: a line for each problem, exit code 2, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xreasoner import cli

GOOD = {
    "question": "Ana has 14 and Ben has 9. Who has more?",
    "gold": "A",
    "answer_type": "choice",
    "options": ["Ana", "Ben"],
    "response": "<think> 14 is more than 9 </think> <answer>A</answer>",
}
BAD = [
    (json.dumps({**GOOD, "gold": "@"}).replace('"@"', "NaN"), "field 'gold': found NaN"),
    (json.dumps({**GOOD, "question": "\ud800"}), "field 'question': found \\ud800, half of a surrogate pair"),
    (json.dumps(GOOD).replace('"A"', "1" * 5000, 1), "an integer of 5,000 digits"),
    ('{"gold": "A", ' + json.dumps(GOOD)[1:], "field 'gold' occurs twice"),
    (json.dumps(GOOD)[:-5], "not JSON"),
]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps(GOOD), *(line for line, _ in BAD)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str]]:
    code = cli.run([str(arg) for arg in args])
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return code, error.splitlines()


def check(code: int, lines: list[str], place: str, first: int = 2) -> None:
    """One line for each problem, in order, with the file and the line."""
    assert code == 2
    problems = [line for line in lines if place in line]
    assert len(problems) >= len(BAD)
    for number, (_, reason) in enumerate(BAD, first):
        assert any(f"{place}:{number}: " in line and reason in line for line in problems), (number, reason, problems)


def recipe(folder: Path, kind: str, data: Path, source: str = "rows") -> Path:
    stage: dict[str, Any] = {
        "name": "one",
        "kind": kind,
        "data": [{"source": source, "n": 10, "options": {"path": str(data)}}],
        "optimizer": {"lr": 1e-4},
        "prompt": "brief",
    } | ({"steps": 1, "thinking_budget": 64} if kind == "rl" else {})
    path = folder / f"{kind}.yaml"
    path.write_text(json.dumps({"name": "x", "model": "tiny-base", "stages": [stage]}))
    return path


@pytest.mark.parametrize("kind", ["sft", "rl"])
@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["data", "show"]])
def test_training(tmp_path: Path, bad: Path, kind: str, command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "run"] if command == ["train"] else []
    code, lines = run(capfd, *command, recipe(tmp_path, kind, bad), *out)
    check(code, lines, str(bad))
    assert not (tmp_path / "run" / "one" / "manifest.json").exists()


def test_distilling(tmp_path: Path, bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chains.jsonl"
    check(
        *run(capfd, "data", "distill", recipe(tmp_path, "rl", bad), "--teacher", "tiny", "--out", out),
        str(bad),
    )
    assert not out.exists()


def test_decontaminating(tmp_path: Path, bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ("data", "decontaminate", bad, "--bench", "gym:gcd", "--limit", 2, "--out", tmp_path / "clean")
    check(*run(capfd, *args), str(bad))
    assert not (tmp_path / "clean" / "clean.jsonl").exists()


def test_benchmarks(tmp_path: Path, bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data" / "gsm8k.jsonl"
    data.parent.mkdir()
    bad.rename(data)
    args = ("eval", "tiny", "--bench", "gsm8k", "--data", data.parent, "--out", tmp_path / "eval")
    check(*run(capfd, *args), str(data))
    rows = [{"question": "Q", "answer": "six"}, {"question": "", "answer": "#### 6"}, {"question": None, "answer": 6}]
    data.write_text("".join(json.dumps({**row, "id": k}) + "\n" for k, row in enumerate(rows * 439 + rows[:2])))
    code, lines = run(capfd, *args)
    assert code == 2
    problems = [line for line in lines if str(data) in line]
    assert len(problems) == 20
    assert problems[1].endswith("gsm8k.jsonl:2: gsm8k: item 1: the question is ''; expected text")
    assert lines[-1] == "error: and 1,299 more problems"


def test_grading(tmp_path: Path, bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graded.jsonl"
    check(*run(capfd, "grade", bad, "--out", out), "bad.jsonl")
    assert [json.loads(line)["outcome"] for line in out.read_text().splitlines()] == ["correct", *["error"] * len(BAD)]


def test_batches(tmp_path: Path, bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = {"messages": [{"role": "user", "content": "1 + 1?"}], "max_tokens": 3}
    good = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps(good), *(line for line, _ in BAD)]
    bad.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    code, errors = run(capfd, "batch", "tiny", "-i", bad, "-o", tmp_path / "out.jsonl")
    assert code == 2
    for number, (_, reason) in enumerate(BAD, 2):
        assert any(f"{bad}: line {number}: " in line and reason in line for line in errors)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sum(row["error"] is None for row in rows) == 1


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.arrow", "x.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\x1f\x8b\x08", b"PAR1", b"{", b"\xff\xfe\x00"])
def test_grading_a_file_that_is_no_data(
    tmp_path: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    code, lines = run(capfd, "grade", tmp_path / name)
    assert code == 2
    assert any(name in line for line in lines)
