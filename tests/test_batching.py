"""`batch`: each line answered once, killed or not; bad lines named; pictures through the guard."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.served import Served
from PIL import Image

from xreasoner.batching import read_lines, run_batch
from xreasoner.engines.base import Sampling
from xreasoner.errors import DataError, EngineError, NonFiniteError, UserError
from xreasoner.media import Guard
from xreasoner.models.loading import load
from xreasoner.reasoner import Reasoner
from xreasoner.wire import chat_body, read_chat

SMALL = {"thinking_budget": 12, "answer_budget": 4}


@pytest.fixture(scope="module")
def tiny() -> Reasoner:
    return Reasoner("tiny", **SMALL)


def _line(k: int, content: Any = None, **more: Any) -> dict[str, Any]:
    content = content or f"Ana has {k % 30} and Ben has 9. Who has more?\nThink, then answer."
    return {
        "custom_id": f"q{k}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [{"role": "user", "content": content}], **more},
    }


def _write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _command(source: Path, out: Path, model: str = "tiny") -> list[str]:
    budgets = ["--budget", "12", "--answer-budget", "4"]
    return [sys.executable, "-m", "xreasoner.cli", "batch", model, "-i", str(source), "-o", str(out), *budgets]


def test_each_line_has_its_answer_in_openais_form(tiny: Reasoner, tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [_line(k) for k in range(9)])
    outcome = run_batch(tiny, source, tmp_path / "out.jsonl", Guard())
    rows = _rows(tmp_path / "out.jsonl")
    assert (outcome.total, outcome.before, outcome.answered, outcome.refused) == (9, 0, 9, [])
    assert sorted(row["custom_id"] for row in rows) == [f"q{k}" for k in range(9)]
    for row in rows:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        body = row["response"]["body"]
        (choice,) = body["choices"]
        k = int(row["custom_id"][1:])
        expected = tiny.ask(_line(k)["body"]["messages"][0]["content"]).completion
        assert choice["message"]["content"] == expected.answer
        assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == expected.thought
        assert choice["exit"] == expected.exit
        usage = body["usage"]
        assert usage["completion_tokens"] == len(expected.token_ids)
        assert usage["completion_tokens_details"]["reasoning_tokens"] == expected.thought_tokens
    again = run_batch(tiny, source, tmp_path / "out.jsonl", Guard())
    assert (again.before, again.answered) == (9, 0)
    assert _rows(tmp_path / "out.jsonl") == rows


def test_killed_again_and_again_it_ends_with_each_line_answered_once(tmp_path: Path) -> None:
    n = 60
    source = _write(tmp_path / "in.jsonl", [_line(k) if k % 10 else "rubbish" for k in range(n)])
    out = tmp_path / "out.jsonl"
    with Served(load("tiny"), pause=0.001) as served:
        for lines in (5, 30):
            running = subprocess.Popen(_command(source, out, served.url), stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 120
            while not out.exists() or out.read_bytes().count(b"\n") < lines:
                assert running.poll() is None, running.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
            running.communicate()
        before = out.read_bytes()
        torn = before[: before.rfind(b"\n", 0, -1) + 20]  # as if the kill had come in the middle of a write
        out.write_bytes(torn)
        result = subprocess.run(
            _command(source, out, served.url), capture_output=True, text=True, timeout=240, check=False
        )
    assert result.returncode == 2  # the bad lines
    assert "6 lines are invalid requests (lines 1, 11, 21," in result.stderr
    assert "fix them and run again with another -o" in result.stderr
    rows = _rows(out)
    assert sorted(int(row["id"].removeprefix("batch_req_")) for row in rows) == list(range(1, n + 1))
    assert sum(row["error"] is not None for row in rows) == 6
    assert out.read_bytes().startswith(torn[: torn.rfind(b"\n")])


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [_line(k) for k in range(100)])
    out = tmp_path / "out.jsonl"
    with Served(load("tiny"), pause=0.01) as served:
        running = subprocess.Popen(
            _command(source, out, served.url), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while not out.exists() or not out.stat().st_size:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        errors = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "stopped; the same command resumes"


BAD: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("7", "found int"),
    ("[" * 100_000, "nested too deep"),
    ({"body": {}}, "custom_id"),
    ({**_line(0), "url": "/v1/embeddings"}, "/v1/embeddings"),
    ({**_line(0), "priority": 1}, "priority"),
    ({**_line(0), "body": []}, "body: found list"),
    (_line(0, messages=[]), "messages"),
    (_line(0, temperature="hot"), "temperature: found 'hot'"),
    (_line(0, temperature=3), "temperature"),
    (_line(0, max_tokens=True), "max_tokens"),
    (_line(0, stream=True), "stream: not supported here; found 'True', expected null or false"),
    (_line(0, tools=[{"type": "function"}]), "tools: not supported here"),
    (_line(0, messages=[{"role": "tool", "content": "x"}]), "messages[0].role"),
    (_line(0, messages=[{"role": "user", "content": ""}]), "messages[0].content"),
    (_line(0, messages=[{"role": "user", "content": [{"type": "audio"}]}]), "messages[0].content[0]"),
    (_line(0, messages=[{"role": "assistant", "content": "x"}]), "expected 'user'"),
]


def test_bad_lines_are_answered_with_their_number_and_field(tiny: Reasoner, tmp_path: Path) -> None:
    rows = [
        {**line, "custom_id": f"b{k}"} if isinstance(line, dict) and "url" in line else line
        for k, (line, _) in enumerate(BAD)
    ]
    source = _write(tmp_path / "in.jsonl", [*rows, "", _line(5), _line(5)])
    outcome = run_batch(tiny, source, tmp_path / "out.jsonl", Guard())
    assert outcome.refused == [*range(1, len(BAD) + 1), len(BAD) + 3]
    found = {int(row["id"].removeprefix("batch_req_")): row for row in _rows(tmp_path / "out.jsonl")}
    for number, (_, words) in enumerate(BAD, 1):
        assert found[number]["response"] is None
        assert found[number]["error"]["message"].startswith(f"line {number}: ")
        assert words in found[number]["error"]["message"]
    assert found[len(BAD) + 2]["response"]
    assert "that of line" in found[len(BAD) + 3]["error"]["message"]


def test_pictures_come_through_the_guard(tiny: Reasoner, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (56, 56), "red").save(tmp_path / "in" / "red.png")
    Image.new("RGB", (56, 56), "red").save(tmp_path / "secret.png")
    (tmp_path / "in" / "note.png").write_text("no picture")

    def pictured(k: int, url: str) -> dict[str, Any]:
        return _line(k, [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}])

    urls = [
        "red.png",
        "../secret.png",
        "/etc/passwd",
        "http://127.0.0.1:9/x.png",
        "http://example.org/x.png",
        "note.png",
    ]
    source = _write(tmp_path / "in" / "in.jsonl", [pictured(k, url) for k, url in enumerate(urls)])
    outcome = run_batch(tiny, source, tmp_path / "out.jsonl", Guard(root=source.parent))
    assert outcome.refused == [2, 3, 4, 5, 6]
    said = {row["custom_id"]: row["error"] for row in _rows(tmp_path / "out.jsonl")}
    assert "outside the folder" in said["q1"]["message"]
    assert "remote images are off" in said["q3"]["message"]
    assert "no picture" not in said["q5"]["message"]


def test_files_that_do_not_belong_are_named(tiny: Reasoner, tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [_line(1)])
    other = _write(tmp_path / "other.jsonl", [{"id": "batch_req_1", "custom_id": "else", "error": None}])
    for out in (other, _write(tmp_path / "notes.txt", ["dear diary"])):
        kept = out.read_bytes()
        with pytest.raises(DataError, match="is no answer to a line of this input"):
            run_batch(tiny, source, out, Guard())
        assert out.read_bytes() == kept
    with pytest.raises(DataError, match="is empty"):
        run_batch(tiny, _write(tmp_path / "empty.jsonl", []), tmp_path / "out.jsonl", Guard())
    with pytest.raises(UserError, match="is a folder; expected a file's name"):
        run_batch(tiny, source, tmp_path, Guard())
    assert run_batch(tiny, source, tmp_path / "new" / "out.jsonl", Guard()).answered == 1
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    (line,) = read_lines(tmp_path / "latin")
    assert line.number == 1
    assert re.fullmatch(r"not UTF-8: .* at byte 0; expected JSON in UTF-8", line.problem)


def test_two_runs_do_not_write_one_file(tiny: Reasoner, tmp_path: Path) -> None:
    import fcntl

    source = _write(tmp_path / "in.jsonl", [_line(1)])
    with (tmp_path / "out.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing it"):
            run_batch(tiny, source, tmp_path / "out.jsonl", Guard())


def test_a_server_that_dies_is_no_fault_of_the_lines(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [_line(k) for k in range(6)])
    with Served(load("tiny")) as served:
        reasoner = Reasoner(served.url, patience=0.5, **SMALL)
        served.kill()
        with pytest.raises(EngineError, match="no server"):
            run_batch(reasoner, source, tmp_path / "out.jsonl", Guard())
        reasoner.close()
    assert _rows(tmp_path / "out.jsonl") == []


def test_what_a_body_says_is_honoured() -> None:
    body = _line(0, max_tokens=100, temperature=1.5, top_p=0.5, top_k=3, seed=9, stop="\n", n=2, max_pixels=4000)[
        "body"
    ]
    request = read_chat(body, Sampling(thinking_budget=3744, answer_budget=256), Guard(), 10, 20)
    expected = Sampling(1.5, 0.5, 3, thinking_budget=50, answer_budget=50, seed=9, stop=("\n",))
    assert (request.sampling, request.n, request.min_pixels, request.max_pixels) == (expected, 2, 10, 4000)
    assert read_chat({**body, "max_tokens": 5000}, Sampling(), Guard()).sampling.thinking_budget == 4000
    assert read_chat({**body, "max_tokens": 1}, Sampling(), Guard()).sampling.thinking_budget == 0
    both = read_chat(
        {**body, "max_tokens": None, "thinking_budget": 7, "answer_budget": 8}, Sampling(), Guard()
    ).sampling
    assert (both.thinking_budget, both.answer_budget) == (7, 8)


def test_several_samples_are_several_choices(tiny: Reasoner) -> None:
    request = read_chat(_line(1, n=3, temperature=2.0)["body"], tiny.sampling, Guard())
    completions = tiny.engine.generate([request])[0]
    body = chat_body(completions, "tiny")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == sum(len(c.token_ids) for c in completions)
    assert {choice["finish_reason"] for choice in body["choices"]} <= {"stop", "length"}


def test_a_write_is_whole_for_any_text(tiny: Reasoner, tmp_path: Path) -> None:
    """A lone surrogate in a custom_id is JSON, and must not end the run."""
    line = json.dumps(_line(1)).replace('"q1"', '"\\ud800"')
    source = _write(tmp_path / "in.jsonl", [line, _line(2)])
    out = tmp_path / "out.jsonl"
    run_batch(tiny, source, out, Guard())
    assert run_batch(tiny, source, out, Guard()).before == 2


def test_a_request_that_fails_is_written_last_and_asked_again_by_the_next_run(
    tiny: Reasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _write(tmp_path / "in.jsonl", [_line(k) for k in range(6)])
    out = tmp_path / "out.jsonl"
    right = tmp_path / "right.jsonl"
    run_batch(tiny, source, right, Guard())
    real = tiny.engine.submit

    def submit(request: Any, on_done: Any = None, on_text: Any = None) -> Any:
        if any("Ana has 2" in str(message["content"]) for message in request.messages):
            raise RuntimeError("index out of range\nin self")
        return real(request, on_done, on_text)

    with monkeypatch.context() as patch:
        patch.setattr(tiny.engine, "submit", submit)
        outcome = run_batch(tiny, source, out, Guard())
    assert ([line.number for line, _ in outcome.failed], outcome.answered, outcome.refused) == ([3], 5, [])
    last = _rows(out)[-1]
    assert (last["custom_id"], last["response"]) == ("q2", None)
    message = "line 3: RuntimeError: index out of range in self"
    assert last["error"] == {"code": "server_error", "message": message, "line": 3}
    again = run_batch(tiny, source, out, Guard())
    assert (again.before, again.answered, again.failed) == (5, 1, [])

    def answers(path: Path) -> dict[str, str]:
        return {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in _rows(path)}

    assert len(_rows(out)) == 6
    assert answers(out) == answers(right)


def test_numbers_that_are_not_finite_end_a_batch_with_one_line(tmp_path: Path) -> None:
    reasoner = Reasoner("tiny", **SMALL)
    with torch.no_grad():
        reasoner.engine.loaded.model.lm_head.weight[5] = torch.nan  # type: ignore[attr-defined]
    source = _write(tmp_path / "in.jsonl", [_line(k) for k in range(40)])
    with pytest.raises(NonFiniteError, match=r"numbers are not finite: after the prompt of \d+ tokens .*dtype"):
        run_batch(reasoner, source, tmp_path / "out.jsonl", Guard())
    assert _rows(tmp_path / "out.jsonl") == []
