"""Engines that run by themselves: a request's failure is its own, and nobody waits for an engine that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from engines.served import Served

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.continuing import Piece
from xreasoner.engines.openai_engine import OpenAIEngine
from xreasoner.errors import EngineError, NonFiniteError, RequestsError, ServerError, UserError
from xreasoner.models.loading import Loaded
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks


def _requests(n: int) -> list[Request]:
    sampling = Sampling(thinking_budget=6, answer_budget=0)
    return [Request(chat_messages(p, "brief"), (), 1, sampling) for p in benchmarks.cell("general", "text", n, 1)]


@pytest.fixture
def served(loaded: Loaded) -> Iterator[Served]:
    with Served(loaded) as server:
        yield server


@pytest.fixture
def engine(served: Served) -> Iterator[OpenAIEngine]:
    with_server = OpenAIEngine(served.url, patience=2.0)
    yield with_server
    with_server.close()


def test_a_request_that_a_server_refuses_ends_no_other(served: Served, engine: OpenAIEngine) -> None:
    requests = _requests(5)
    right = [group[0].text for group in engine.generate(requests)]
    served.faults[:] = ["", "400"]
    delivered: dict[int, str] = {}
    with pytest.raises(RequestsError, match=r"4 of 5 were finished") as caught:
        engine.generate(requests, on_done=lambda k, group: delivered.update({k: group[0].text}))
    ((refused, error),) = caught.value.failures.items()
    assert isinstance(error, ServerError)
    assert delivered == {k: text for k, text in enumerate(right) if k != refused}


def test_a_callback_or_a_bad_request_fails_alone(engine: OpenAIEngine) -> None:
    requests = _requests(4)
    requests[2] = replace(requests[2], sampling=replace(requests[2].sampling, exit_text="no tag"))
    delivered: list[int] = []

    def record(k: int, _: Any) -> None:
        if k == 1:
            raise OSError("no space left")
        delivered.append(k)

    with pytest.raises(RequestsError, match="request 1: OSError: no space left") as caught:
        engine.generate(requests, on_done=record)
    assert sorted(delivered) == [0, 3]
    assert isinstance(caught.value.failures[2], UserError)

    def told(_: int, text: str) -> None:
        raise ValueError("who reads this?")

    failed, other = engine.submit(_requests(1)[0], on_text=told), engine.submit(_requests(2)[1])
    engine.wait([failed, other])
    with pytest.raises(ValueError, match="who reads"):
        _ = failed.completions
    assert other.completions


def test_nobody_waits_for_an_engine_that_was_closed(served: Served) -> None:
    served.fault = "hang"
    engine = OpenAIEngine(served.url)
    tickets = [engine.submit(request) for request in _requests(4)]
    engine.close()  # some of them have not even begun
    for ticket in tickets:
        assert ticket.done.wait(10)
        with pytest.raises(RuntimeError, match="closed"):
            _ = ticket.completions
        ticket.cancel()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(_requests(1)[0])
    with pytest.raises(EngineError, match="closed"):
        engine.generate(_requests(2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_stops_the_engine_is_told_to_all_who_wait(served: Served) -> None:
    engine = OpenAIEngine(served.url)
    served.pause = 0.05

    def stop(*_: Any) -> None:
        raise SystemExit

    others = [engine.submit(request) for request in _requests(3)]
    stopping = engine.submit(_requests(1)[0], on_text=stop)
    engine.wait([*others, stopping])
    assert all(ticket.done.is_set() for ticket in (*others, stopping))
    with pytest.raises(EngineError, match="closed"):
        engine.submit(_requests(1)[0])


def test_log_probabilities_that_are_no_numbers_are_an_error(
    engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stream(*_: Any) -> Any:
        yield Piece("one", 1, (5,), (-0.5,))
        yield Piece("two", 1, (6,), (float("nan"),))

    monkeypatch.setattr(engine, "_stream", stream)
    with pytest.raises(NonFiniteError, match=r"after 1 tokens of sample 0 at http.* is nan"):
        engine.generate(_requests(1))
