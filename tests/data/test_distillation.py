"""A teacher's chains: right ones alone, each sample drawn once also over a kill, and the result is training data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from xreasoner.completion import Completion
from xreasoner.data.distillation import distill, distill_stage
from xreasoner.data.rows import questions
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.errors import DataError, UserError
from xreasoner.problem import Problem
from xreasoner.recipe import load_recipe
from xreasoner.trace import split

PROBLEMS = [
    Problem("a", "What is 1 + 1?", "2", "integer"),
    Problem("b", "Which?", "B", "choice", ("x", "y"), domain="clinical"),
]


class Written:
    """An engine whose replies are written down, to say exactly what is kept."""

    name = "written"

    def __init__(self, replies: dict[str, list[str]], stop_after: int = 99) -> None:
        self.replies, self.left, self.asked = replies, stop_after, 0

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int, list[Completion]], None] | None = None
    ) -> list[list[Completion]]:
        assert on_done is not None
        for k, request in enumerate(requests):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked += request.n
            text = str(request.messages[0]["content"][-1]["text"])
            replies = next(found for word, found in self.replies.items() if word in text)
            on_done(k, [_completion(reply) for reply in replies[: request.n]])
        return []


def _completion(text: str) -> Completion:
    trace, exit = split(text), "natural" if "</think>" in text else "truncated"
    return Completion(text, (1, 2), (), (False, False), trace.thought, trace.answer, exit, 1, 1, 1)  # type: ignore[arg-type]


REPLIES = {
    "1 + 1": [
        "<think>One and one.</think><answer>2</answer>",
        "<think>one, AND one</think><answer>2</answer>",  # the same words
        "<think>Count: one, two.</think><answer>2</answer>",
        "<think>Hm.</think><answer>3</answer>",
    ],
    "Which": [
        "<think>y</think><answer>B: y</answer>",
        "<answer>B</answer>",  # right, but no thought
        "<think>so long",
        "<think>x</think><answer>A</answer>",
    ],
}


def run(engine: Any, out: Path, **change: Any) -> dict[str, Any]:
    typed: Engine = engine
    settings = {"teacher": "t", "prompt": "brief", "samples": 4, "sampling": Sampling(temperature=1.0)} | change
    return distill(typed, PROBLEMS, out, **settings)  # type: ignore[arg-type]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_chains_are_kept_once_and_are_training_data(tmp_path: Path) -> None:
    out = tmp_path / "chains.jsonl"
    report = run(Written(REPLIES), out)
    assert report == {
        "problems": 2,
        "solved": 2,
        "samples": 8,
        "kept": 3,
        "outcomes": {"correct": 5, "wrong": 2, "truncated": 1},
    }
    assert [(row["id"], row["response"]) for row in rows(out)] == [
        ("a", "<think>\nOne and one.\n</think>\n<answer>\n2\n</answer>"),
        ("a", "<think>\nCount: one, two.\n</think>\n<answer>\n2\n</answer>"),
        ("b", "<think>\ny\n</think>\n<answer>\nB: y\n</answer>"),
    ]
    examples = questions({"path": str(out)}).examples(9, 0, "chain")
    one = Problem("a", "What is 1 + 1?", "2", "integer", source="chains")
    other = Problem("b", "Which?", "B", "choice", ("x", "y"), domain="clinical", source="chains")
    assert sorted((example.problem for example in examples), key=lambda p: p.id) == [one, one, other]


def test_a_stopped_run_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "chains.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Written(REPLIES, stop_after=1), out)
    assert not out.exists()
    journal = tmp_path / "chains.jsonl.samples"
    journal.write_bytes(journal.read_bytes() + b'{"id": "b", "sam')  # a kill in the midst of a line
    engine = Written(REPLIES)
    report = run(engine, out)
    assert (engine.asked, report["samples"], report["kept"]) == (4, 8, 3)
    whole = tmp_path / "whole.jsonl"
    run(Written(REPLIES), whole)
    assert out.read_text() == whole.read_text()
    assert run(Written(REPLIES, stop_after=0), out) == report  # nothing is left to ask
    with pytest.raises(UserError, match=r"another run \(teacher differ"):
        run(Written(REPLIES), out, teacher="another")
    journal.write_bytes(journal.read_bytes().replace(b'{"id"', b'"id"', 1))
    with pytest.raises(DataError, match=r"chains\.jsonl\.samples:2: not JSON.*; delete that line"):
        run(Written(REPLIES), out)


def test_a_folder_in_the_place_of_the_file_is_refused_before_the_teacher_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; expected the JSONL file's name"):
        distill_stage(load_recipe("demo"), None, "no teacher", tmp_path, 1, Sampling(), None, print)


PROGRAM = """
import sys
from pathlib import Path
from xreasoner.data.distillation import distill
from xreasoner.engines.base import Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import load
from xreasoner.tiny.sources import world
problems = world({}).problems(10, 0)
sampling = Sampling(temperature=1.0, thinking_budget=160, answer_budget=16)
engine = TorchEngine(load("tiny"))
distill(engine, problems, Path(sys.argv[1]), teacher="tiny", prompt="brief", samples=2, sampling=sampling)
"""


def _process(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)], env={**os.environ})


def test_a_real_teacher_killed_midway_draws_each_sample_once(tmp_path: Path) -> None:
    out = tmp_path / "chains.jsonl"
    journal = tmp_path / "chains.jsonl.samples"
    running = _process(out)
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert running.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not out.exists()
    before = journal.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 1 <= kept.count(b"\n") - 1 < 10
    assert _process(out).wait(280) == 0
    assert journal.read_bytes().startswith(kept)  # what was drawn before was not drawn again
    names = [line["id"] for line in rows(journal)[1:]]
    assert len(names) == len(set(names)) == 10
    assert all(len(line["samples"]) == 2 for line in rows(journal)[1:])
    assert len(questions({"path": str(out)}).examples(20, 0, "chain")) >= 4  # it is right more often than not
