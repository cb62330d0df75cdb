"""A request that fails is answered with its error; those beside it are answered as ever, and nobody waits for ever."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from serving.background import Background

from xreasoner.engines import torch_engine
from xreasoner.reasoner import Reasoner

QUESTIONS = [f"Ana has {k + 3}, Ben has {2 * k + 1}. Who has more?" for k in range(8)]


@pytest.fixture(scope="module")
def small() -> Reasoner:
    return Reasoner("tiny", thinking_budget=24, answer_budget=8)


@pytest.fixture(scope="module")
def running(small: Reasoner) -> Iterator[Background]:
    with Background(lambda: small) as service:
        yield service


def _ask(service: Background, question: str, stream: bool = False, **more: Any) -> tuple[int, str]:
    """(status, the reply's text or the error's message); a stream's error event has status 0."""
    body = {"messages": [{"role": "user", "content": question}], "stream": stream, **more}
    path = service.url + ("/v1/decisions" if "options" in more else "/v1/chat/completions")
    asked = urllib.request.Request(path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            text = reply.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())["error"]["message"]
    if not stream:
        found = json.loads(text)
        return 200, found["answer"] if "options" in more else found["choices"][0]["message"]["content"] or ""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if "error" in events[-1]:
        assert "[DONE]" not in text
        return 0, events[-1]["error"]["message"]
    assert text.rstrip().endswith("[DONE]")
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return 200, "".join(delta.get("content") or "" for delta in deltas)


@contextmanager
def _broken(owner: Any, name: str, wrong: Any) -> Iterator[None]:
    had, real = name in vars(owner), getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wrong(*args)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


def test_a_request_that_fails_has_its_error_and_the_others_their_answers(small: Reasoner, running: Background) -> None:
    engine: Any = small.engine
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(lambda question: _ask(running, question), QUESTIONS))
        assert {status for status, _ in right} == {200}
        guilty = QUESTIONS[3]

        def wrong(row: Any) -> None:
            if guilty in str(row.ticket.request.messages) and len(row.tokens) > 9:
                raise RuntimeError("a secret address 0xdeadbeef")

        for stream in (False, True):
            with _broken(engine, "_tell", wrong):
                found = list(pool.map(lambda question, stream=stream: _ask(running, question, stream), QUESTIONS))
            assert found[3] == (0 if stream else 500, "internal error; see the service's log")
            assert [one for k, one in enumerate(found) if k != 3] == right[:3] + right[4:]
    assert not engine._rows


def test_memory_that_runs_out_is_said_with_what_to_lower(small: Reasoner, running: Background) -> None:
    engine: Any = small.engine

    def wrong(groups: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with _broken(engine, "_seat", wrong):
        status, message = _ask(running, QUESTIONS[0])
    assert status == 500
    assert "out of memory" in message
    assert "lower" in message
    assert "\n" not in message
    assert _ask(running, QUESTIONS[0])[0] == 200


def test_numbers_that_are_not_finite_are_said(small: Reasoner, running: Background) -> None:
    weight = small.engine.loaded.model.model.language_model.norm.weight  # type: ignore[attr-defined]
    before = weight.detach().clone()
    with torch.no_grad():
        weight[3] = torch.nan
    try:
        for found in (_ask(running, QUESTIONS[0]), _ask(running, QUESTIONS[0], options=["Ana", "Ben"])):
            assert found[0] == 500
            assert "not finite" in found[1]
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert _ask(running, QUESTIONS[0])[0] == 200


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_whatever_raises_in_the_service_every_request_ends(small: Reasoner, running: Background, trials: int) -> None:
    engine: Any = small.engine
    rng = random.Random(trials)
    sites = [(engine, name) for name in ("_advance", "_admit", "_seat", "_choose", "_decode", "_finish", "_append")]
    sites += [(torch_engine, "encode"), (engine.loaded.tokenizer, "decode"), (running.desk, "decide")]
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(lambda question: _ask(running, question), QUESTIONS))
        for _ in range(trials):
            owner, name = rng.choice(sites)
            calls = iter(range(10**9))
            at = rng.randint(0, 30)

            def wrong(*_: Any, calls: Any = calls, at: int = at) -> None:
                if next(calls) == at:
                    raise RuntimeError("injected")

            with _broken(owner, name, wrong):
                streams = [rng.random() < 0.5 for _ in QUESTIONS]
                found = list(pool.map(lambda pair: _ask(running, *pair), zip(QUESTIONS, streams, strict=True)))
            assert sum(status != 200 for status, _ in found) <= 1, (name, found)
            assert all(one == right[k] for k, one in enumerate(found) if one[0] == 200)
    end = time.monotonic() + 10
    while engine._rows and time.monotonic() < end:
        time.sleep(0.01)
    assert not engine._rows
    assert not engine._waiting


def test_a_service_whose_engine_was_stopped_says_so(small: Reasoner) -> None:
    with Background(lambda: small) as service:

        def wrong(*_: Any) -> None:
            raise SystemExit

        with _broken(small.engine, "_choose", wrong):
            begun = time.monotonic()
            assert _ask(service, QUESTIONS[0])[0] in (500, 503)
            assert time.monotonic() - begun < 20
        assert _ask(service, QUESTIONS[0])[0] == 503
        assert threading.active_count() < 200
