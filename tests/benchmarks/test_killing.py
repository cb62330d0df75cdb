"""kill -9 at any moment, the real engine and the real store: nothing lost, repeated or counted twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

ITEMS, SAMPLES = 6, 3
BENCHES = ["tiny-text-general", "tiny-image-general"]
RUNNER = f"""
import os, sys
import torch
from pathlib import Path
from xreasoner.benchmarks.running import evaluate
from xreasoner.engines.base import Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import load

torch.set_num_threads(1)
loaded = load("tiny")
for line in sys.stdin:
    out, samples, temperature = (line + "\\t\\t").split("\\t")[:3]
    if not samples:
        print(os.waitpid(int(out), 0)[1], flush=True)
        continue
    child = os.fork()
    if not child:
        evaluate(
            TorchEngine(loaded, max_rows=8), {BENCHES!r}, Path(out), stage="tiny", model_hash="m", prompt="brief",
            n={ITEMS}, seed=1, samples=int(samples),
            sampling=Sampling(float(temperature), thinking_budget=16, answer_budget=8, seed=5),
        )
        os._exit(0)
    print(child, flush=True)
"""


class Runner:
    """Starts evaluations in processes of their own, all from one process that has the model."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, out: Path, samples: int = SAMPLES, temperature: float = 0.8) -> int:
        """The process that evaluates into a folder."""
        return self._asked(f"{out}\t{samples}\t{temperature}")

    def status(self, child: int) -> int:
        """Of a process, once it has ended."""
        return self._asked(str(child))

    def whole(self, out: Path, samples: int = SAMPLES, temperature: float = 0.8) -> Path:
        assert self.status(self.start(out, samples, temperature)) == 0
        return results(out)

    def _asked(self, line: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module", name="run")
def runner() -> Iterator[Runner]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUNNER], env=environment, **pipes) as process:
        yield Runner(process)
        assert process.stdin is not None
        process.stdin.close()


def results(out: Path) -> Path:
    return out / "eval" / "tiny" / "results.jsonl"


def whole_lines(path: Path) -> bytes:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def samples_of(path: Path) -> dict[tuple[str, str, int], str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(row["bench"], row["id"], row["sample"]): row["response"] for row in rows}
    assert len(found) == len(rows) == len({row["key"] for row in rows})
    return found


def agreement(one: dict[Any, str], other: dict[Any, str]) -> float:
    """The share of equal replies: neighbours in a batch may turn the last bit of a sum, and rarely a token."""
    assert one.keys() == other.keys()
    return sum(one[key] == other[key] for key in one) / len(one)


def kill_often(run: Runner, out: Path, kills: int, rng: Random) -> None:
    """Kill runs at random, after some rows more or none; what was whole before stays, byte by byte."""
    for _ in range(kills):
        before = whole_lines(results(out))
        child = run.start(out)
        wanted, end = rng.choice((0, 0, 1, 1, 2)), time.monotonic() + 20
        while whole_lines(results(out)).count(b"\n") < before.count(b"\n") + wanted and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        status = run.status(child)
        assert os.WIFSIGNALED(status) or status == 0
        assert whole_lines(results(out)).startswith(before)
        if rng.random() < 0.4 and results(out).exists():  # as if the kill had come inside the write
            with results(out).open("ab") as file:
                file.write(b'{"key": "torn", "response": "\xc3')


def check_kills(run: Runner, tmp_path: Path, kills: int, each: int) -> None:
    """each: kills until a folder is run to its end, and another begun."""
    expected = samples_of(run.whole(tmp_path / "whole"))
    assert len(expected) == len(BENCHES) * ITEMS * SAMPLES
    for begun in range(0, kills, each):
        out = tmp_path / f"killed-{begun}"
        kill_often(run, out, min(each, kills - begun), Random(begun))
        found = samples_of(run.whole(out))
        assert agreement(found, expected) > 0.75
        again = results(out).read_bytes()
        assert run.whole(out).read_bytes() == again


def test_five_kills_lose_and_repeat_nothing(run: Runner, tmp_path: Path) -> None:
    check_kills(run, tmp_path, 5, each=5)


@pytest.mark.slow
def test_sixty_kills_lose_and_repeat_nothing(run: Runner, tmp_path: Path) -> None:
    check_kills(run, tmp_path, 60, each=10)


def test_running_again_is_byte_equal_and_more_samples_keep_the_first(run: Runner, tmp_path: Path) -> None:
    for samples, temperature in ((1, 0.0), (2, 0.8)):
        one, two = (run.whole(tmp_path / f"{name}{temperature}", samples, temperature) for name in "ab")
        assert one.read_bytes() == two.read_bytes()
    few = one.read_bytes()
    run.whole(tmp_path / "a0.8", 4)
    assert one.read_bytes().startswith(few)
    straight = samples_of(run.whole(tmp_path / "straight", 4))
    assert agreement(samples_of(one), straight) > 0.9
    assert len(set(straight.values())) > len(straight) / 4  # samples differ


def test_two_at_once_repeat_nothing(run: Runner, tmp_path: Path) -> None:
    children = [run.start(tmp_path) for _ in range(2)]
    assert [run.status(child) for child in children] == [0, 0]
    assert len(samples_of(results(tmp_path))) == len(BENCHES) * ITEMS * SAMPLES
