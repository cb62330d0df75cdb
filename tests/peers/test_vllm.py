"""A real vLLM, as a server and in process, with the embedded checkpoint: `make test-vllm` makes its environment.

Greedy and in float32, so it says what the torch engine says; where two tokens are as good as equally likely its other
arithmetic may choose the other, so one reply in eight may differ.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from peers.cases import BUDGETS, answered, cases

from xreasoner.completion import Completion
from xreasoner.decisions import decide
from xreasoner.engines.base import Request
from xreasoner.engines.openai_engine import OpenAIEngine
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import Loaded, load
from xreasoner.problem import Problem
from xreasoner.reasoner import Reasoner
from xreasoner.tiny import benchmarks
from xreasoner.tiny.checkpoints import reasoner_folder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-vllm/bin"
START = 420
"""Seconds that a server may take to start: about 40 alone on two cores, much longer when they are busy."""
MODALITIES = (("general", "text"), ("clinical", "image"))


def _environment() -> dict[str, str]:
    paths = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}


class VllmServer:
    """`vllm serve` on a free port, in a process group of its own."""

    def __init__(self, log: Path) -> None:
        assert (BIN / "vllm").is_file(), f"{BIN / 'vllm'} is missing; make it with `make test-vllm`"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        options = ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "32"]
        command = [BIN / "vllm", "serve", reasoner_folder(), "--served-model-name", "tiny", "--host", "127.0.0.1"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    def ready(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5).read()
                return
            except OSError:
                time.sleep(1)
        raise AssertionError(f"vLLM did not start in {START} s: {self.log.read_text()[-3000:]}")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
            self.process.wait(60)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    found = [VllmServer(tmp_path_factory.mktemp("vllm") / f"{k}.log") for k in range(2)]
    try:
        for server in found:
            server.ready()
        yield found
    finally:
        for server in found:
            server.kill()


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny")


@pytest.fixture(scope="module")
def ended(tiny: Loaded) -> list[str]:
    """Questions, foreign to it, inside whose thoughts the embedded reasoner ends its turn."""
    questions = [problem.question for problem in benchmarks.gym_held_out(60, 0)]
    asked = [replace(answered(question), sampling=BUDGETS["natural"]) for question in questions]
    groups = zip(questions, TorchEngine(tiny).generate(asked), strict=True)
    found = [question for question, (c,) in groups if c.exit == "natural" and not c.answer][:6]
    assert len(found) > 2
    return found


def _agree(theirs: list[Any], ours: list[Any]) -> None:
    assert len(theirs) == len(ours)
    differ = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
    assert len(differ) <= len(ours) // 8, differ


def _said(groups: list[list[Completion]]) -> list[tuple[Any, ...]]:
    return [(c.text, c.exit, c.prompt_tokens) for group in groups for c in group]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_vllm_server_says_what_the_torch_engine_says(servers: list[VllmServer], tiny: Loaded, budget: str) -> None:
    engine = OpenAIEngine([servers[0].url])
    requests = cases(budget)
    theirs = engine.generate(requests)
    engine.close()
    assert any(request.images for request in requests)
    assert all(c.exit in (budget, "natural", "truncated") for group in theirs for c in group)
    assert budget == "natural" or sum(c.exit == budget for group in theirs for c in group) >= len(requests) // 2
    _agree(_said(theirs), _said(TorchEngine(tiny).generate(requests)))


def test_option_probabilities_of_a_server_are_those_of_the_torch_engine(
    servers: list[VllmServer], tiny: Loaded
) -> None:
    engine, torch_engine = OpenAIEngine([servers[0].url]), TorchEngine(tiny)
    for request in cases("natural")[:4]:
        (completion,) = torch_engine.generate([request])[0]
        theirs = decide(engine, request, completion, ["14", "3", "21"])
        ours = decide(torch_engine, request, completion, ["14", "3", "21"])
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=0.02)
    engine.close()


def test_a_turn_that_ends_inside_the_thought_goes_on_to_an_answer(
    servers: list[VllmServer], tiny: Loaded, ended: list[str]
) -> None:
    engine = OpenAIEngine([servers[0].url])
    requests = [answered(question) for question in ended]
    theirs = engine.generate(requests)
    engine.close()
    assert all(c.exit in ("forced", "truncated") and c.answer for group in theirs for c in group)
    assert _said(theirs) == _said(TorchEngine(tiny).generate(requests))


def _asked(client: openai.OpenAI, problem: Problem, budget: int, stream: bool) -> tuple[Any, ...]:
    """(thought, answer, exit, finish reason) of a question put by the official client."""
    content: list[Any] = [{"type": "text", "text": problem.question}]
    for image in problem.images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    messages: Any = [{"role": "user", "content": content}]
    ours = {"prompt": "default", "thinking_budget": budget}
    if not stream:
        (choice,) = client.chat.completions.create(model="tiny", messages=messages, extra_body=ours).choices
        said: Any = choice.message
        return said.reasoning, said.content, choice.exit, choice.finish_reason  # type: ignore[attr-defined]
    chunks = client.chat.completions.create(model="tiny", messages=messages, stream=True, extra_body=ours)
    deltas: list[Any] = [choice for chunk in chunks for choice in chunk.choices]
    # role, pieces, end; a piece is what came in 40 ms (serving/desk.py), so a short thought may be one
    assert len(deltas) > 3, "it came in one piece"
    thought = "".join(getattr(choice.delta, "reasoning", None) or "" for choice in deltas)
    answer = "".join(choice.delta.content or "" for choice in deltas)
    return thought.strip(), answer.strip(), deltas[-1].exit, deltas[-1].finish_reason


def test_the_service_in_front_of_a_vllm_server_by_the_official_client(servers: list[VllmServer], tiny: Loaded) -> None:
    """Text and pictures, natural and forced, whole and streamed; and option probabilities."""
    ours = Reasoner("tiny", engine=TorchEngine(tiny), answer_budget=64)
    problems = [benchmarks.cell(domain, modality, 2, 5)[1] for domain, modality in MODALITIES]
    command = [sys.executable, "-m", "xreasoner.cli", "serve", servers[0].url, "--port", "0", "--answer-budget", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            assert running.stdout
            while "serving tiny at " not in (line := running.stdout.readline()):
                assert line, "the service ended"
            url = line.split()[3] + "/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
                cases = [(p, budget, stream) for p in problems for budget in (400, 8) for stream in (False, True)]
                theirs = [_asked(client, *case) for case in cases]
                asked = {"messages": [{"role": "user", "content": "Ana has 14 and Ben has 9. Who has more?"}]}
                body = {**asked, "options": ["Ana", "Ben"]}
                decided: Any = client.post("/decisions", body=body, cast_to=object)
        finally:
            running.terminate()
    expected = [ours.ask(p.question, p.images, thinking_budget=budget) for p, budget, _ in cases]
    _agree(theirs, [(a.thought, a.answer, a.exit, "stop") for a in expected])
    assert [exit for _, _, exit, _ in theirs] == ["natural", "natural", "forced", "forced"] * 2
    assert all(answer for _, answer, _, _ in theirs)
    same = ours.ask("Ana has 14 and Ben has 9. Who has more?", options=["Ana", "Ben"])
    shares = [option["probability"] for option in decided["option_probabilities"]]
    assert shares == pytest.approx(list((same.option_probabilities or {}).values()), abs=0.02)


def test_a_server_that_is_killed_in_the_middle_loses_nothing(servers: list[VllmServer], tiny: Loaded) -> None:
    """The last test with servers: one of them is gone after it."""
    engine = OpenAIEngine([server.url for server in servers], max_in_flight=8, timeout=60)
    requests = cases("natural", 48, seed=7)
    done: list[int] = []
    lock = threading.Lock()

    def note(index: int, group: list[Completion]) -> None:
        with lock:
            done.append(index)
            if len(done) == 6:
                threading.Thread(target=servers[1].kill).start()

    theirs = engine.generate(requests, note)
    engine.close()
    assert servers[1].process.poll() is not None
    assert sorted(done) == list(range(48))  # each answered, and once
    _agree(_said(theirs), _said(TorchEngine(tiny).generate(requests)))


def test_vllm_in_process_says_what_the_torch_engine_says(tiny: Loaded, ended: list[str], tmp_path: Path) -> None:
    questions, out = tmp_path / "questions.json", tmp_path / "said.json"
    questions.write_text(json.dumps(ended))
    command = [BIN / "python", Path(__file__).with_name("vllm_side.py"), questions, out]
    ran = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=800)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(out.read_text())
    engine = TorchEngine(tiny)
    for name in BUDGETS:
        requests = cases(name)
        _agree([tuple(said) for group in found[name] for said in group], _said(engine.generate(requests)))
    groups = engine.generate([answered(question) for question in ended])
    assert found["answered"] == [[c.text, c.exit, list(c.token_ids)] for group in groups for c in group]
    probabilities = [_decided(engine, request) for request in cases("natural")[:4]]
    for theirs, ours in zip(found["decisions"], probabilities, strict=True):
        assert theirs == pytest.approx(ours, abs=0.02)


def _decided(engine: TorchEngine, request: Request) -> list[float]:
    (completion,) = engine.generate([request])[0]
    return list(decide(engine, request, completion, ["14", "3", "21"]).probabilities)
