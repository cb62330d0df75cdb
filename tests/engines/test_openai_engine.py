"""The engine behind URLs against real servers: the same words as in process, and none lost when they misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines.served import Served
from PIL import Image

from xreasoner.decisions import decide
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.openai_engine import OpenAIEngine, Server
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import EngineError, UserError
from xreasoner.models.loading import Loaded, load
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny")


@pytest.fixture
def served(tiny: Loaded) -> Iterator[Served]:
    with Served(tiny) as server:
        yield server


def _requests(n: int, sampling: Sampling, samples: int = 1, modality: str = "text") -> list[Request]:
    problems = benchmarks.cell("general", modality, n, 5)
    return [Request(chat_messages(p, "brief"), p.images, samples, sampling) for p in problems]


def _engine(*servers: Served, **more: Any) -> OpenAIEngine:
    return OpenAIEngine([server.url for server in servers], timeout=more.pop("timeout", 20), **more)


BUDGETS = [Sampling(), Sampling(thinking_budget=20, answer_budget=12), Sampling(thinking_budget=20, answer_budget=1)]


@pytest.mark.parametrize("sampling", BUDGETS, ids=["natural", "forced", "truncated"])
@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_server_says_what_the_model_says_in_process(
    tiny: Loaded, served: Served, sampling: Sampling, modality: str
) -> None:
    requests = _requests(1 if modality == "image" else 2, sampling, modality=modality)
    engine = _engine(served)
    found = engine.generate(requests)
    engine.close()
    for (theirs,), (ours,) in zip(found, TorchEngine(tiny).generate(requests), strict=True):
        assert (theirs.text, theirs.thought, theirs.answer) == (ours.text, ours.thought, ours.answer)
        assert theirs.exit == ours.exit
        assert theirs.prompt_tokens == ours.prompt_tokens
        sampled = sum(not forced for forced in ours.forced)
        assert theirs.thought_tokens + theirs.answer_tokens == sampled
    exits = {group[0].exit for group in found}
    assert exits == {
        "natural" if sampling.answer_budget > 100 else "forced" if sampling.answer_budget > 1 else "truncated"
    }


def test_token_ids_and_logprobs_come_where_the_server_gives_them(tiny: Loaded) -> None:
    (request,) = _requests(1, Sampling(logprobs=True))
    with Served(tiny, owner="vllm") as served:
        engine = _engine(served)
        (theirs,) = engine.generate([request])[0]
        assert served.bodies[0]["repetition_penalty"] == 1.0  # not the checkpoint's own
        engine.close()
    (ours,) = TorchEngine(tiny).generate([request])[0]
    assert theirs.token_ids == ours.token_ids
    assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)
    assert len(theirs.forced) == len(theirs.token_ids)


def test_a_server_that_tells_the_thought_apart_gives_one_trace(tiny: Loaded) -> None:
    for sampling in BUDGETS[:2]:
        requests = _requests(2, sampling)
        with Served(tiny, split=True) as served:
            engine = _engine(served)
            found = engine.generate(requests)
            engine.close()
        for (theirs,), (ours,) in zip(found, TorchEngine(tiny).generate(requests), strict=True):
            assert (theirs.thought, theirs.answer, theirs.exit) == (ours.thought, ours.answer, ours.exit)


def test_samples_differ_and_a_seed_repeats_them(served: Served) -> None:
    (request,) = _requests(1, Sampling(temperature=1.5, thinking_budget=12, answer_budget=2, seed=3), samples=4)
    engine = _engine(served)
    first, again = (engine.generate([request])[0] for _ in range(2))
    engine.close()
    assert first == again
    assert len({completion.text for completion in first}) > 1
    assert len({body["seed"] for body in served.bodies if "continue_final_message" not in body}) == 4


@pytest.mark.parametrize("inside", [False, True])
def test_a_stop_string_ends_the_answer_as_in_process(tiny: Loaded, served: Served, inside: bool) -> None:
    """The embedded reasoner writes "So:" and ":" in its thought; with a label, ":" is in its answer too."""
    engine = _engine(served)
    for stop in (":", "So:"):
        sampling = Sampling(stop=(stop,), stop_in_thought=inside)
        (request,) = _requests(1, sampling)
        (theirs,), (ours,) = engine.generate([request])[0], TorchEngine(tiny).generate([request])[0]
        assert (theirs.text, theirs.exit, theirs.thought, theirs.answer) == (
            ours.text,
            ours.exit,
            ours.thought,
            ours.answer,
        )
        assert stop.strip() in ours.thought
        assert ours.thought.endswith(stop.strip()) == inside == (ours.exit == "forced")
        assert stop not in ours.answer
        assert ours.answer
        assert all("stop" not in body for body in served.bodies)
    engine.close()


def test_thousands_wait_without_being_woken_in_vain(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    engine = _engine(served, max_in_flight=4)
    room = type(engine.servers[0]).room

    def counted(self: Any, most: int, now: float) -> int:
        nonlocal looks
        looks += 1
        return room(self, most, now)

    monkeypatch.setattr(type(engine.servers[0]), "room", counted)
    (request,) = _requests(1, Sampling(thinking_budget=1, answer_budget=1))
    tickets = [engine.submit(request) for _ in range(500)]
    engine.wait(tickets[:8])
    for ticket in tickets:
        ticket.cancel()
    engine.wait(tickets)
    assert {ticket.completions[0].exit for ticket in tickets[100:]} == {"aborted"}
    assert looks < 400
    engine.close()


def test_text_streams_in_pieces_that_join(served: Served) -> None:
    (request,) = _requests(1, BUDGETS[1], samples=2)
    engine = _engine(served)
    pieces: dict[int, list[str]] = {0: [], 1: []}
    ticket = engine.submit(request, on_text=lambda sample, text: pieces[sample].append(text))
    engine.wait([ticket])
    engine.close()
    assert ["".join(pieces[k]) for k in range(2)] == [c.text for c in ticket.completions]
    assert all(len(pieces[k]) > 10 for k in range(2))
    assert not engine.step()


def test_a_cancelled_request_ends_at_the_server_too(tiny: Loaded) -> None:
    with Served(tiny, pause=0.05) as served:
        engine = _engine(served)
        begun = threading.Event()
        (request,) = _requests(1, Sampling())
        ticket = engine.submit(request, on_text=lambda sample, text: begun.set())
        assert begun.wait(20)
        ticket.cancel()
        assert ticket.done.wait(2)
        (completion,) = ticket.completions
        assert completion.exit == "aborted"
        assert completion.text
        deadline = time.monotonic() + 5
        while not served.aborted:
            assert time.monotonic() < deadline, "the server went on"
            time.sleep(0.05)
        at_once = engine.submit(request)
        at_once.cancel()
        engine.wait([at_once])
        assert [c.exit for c in at_once.completions] == ["aborted"]
        engine.close()


def test_load_goes_to_the_server_with_the_least(tiny: Loaded) -> None:
    requests = _requests(12, BUDGETS[1])
    with Served(tiny) as one, Served(tiny) as two:
        engine = _engine(one, two, max_in_flight=2)
        engine.generate(requests)
        engine.close()
        assert min(len(one.bodies), len(two.bodies)) >= 6
        assert len(one.bodies) + len(two.bodies) == 24


@pytest.mark.parametrize("followed", [False, True], ids=["whole", "streamed"])
def test_a_server_killed_in_the_middle_loses_nothing_and_doubles_nothing(tiny: Loaded, followed: bool) -> None:
    requests = _requests(8, BUDGETS[1])
    expected = [group[0].text for group in TorchEngine(tiny).generate(requests)]
    with Served(tiny, pause=0.002) as stays:
        goes = Served(tiny, pause=0.002)
        engine = _engine(stays, goes, max_in_flight=4)
        done: list[int] = []
        texts = [""] * len(requests)

        def told(k: int) -> Any:
            def tell(sample: int, text: str) -> None:
                texts[k] += text

            return tell if followed else None

        tickets = [
            engine.submit(request, lambda _, k=k: done.append(k), told(k))  # type: ignore[misc]
            for k, request in enumerate(requests)
        ]
        while not goes.answered:
            time.sleep(0.01)
        goes.kill()
        engine.wait(tickets)
        assert [ticket.completions[0].text for ticket in tickets] == expected
        assert sorted(done) == list(range(8))
        assert texts == (expected if followed else [""] * 8)
        assert goes.answered < 16
        engine.close()


def test_a_server_that_comes_back_is_used_again(tiny: Loaded) -> None:
    requests = _requests(2, BUDGETS[1])
    goes = Served(tiny)
    engine = _engine(goes)
    expected = engine.generate(requests)
    goes.kill()
    back: list[Served] = []
    later = threading.Timer(1.0, lambda: back.append(Served(tiny, port=goes.server_address[1])))
    later.start()
    assert engine.generate(requests) == expected
    later.join()
    assert len(back[0].bodies) == 4
    engine.close()
    back[0].kill()


@pytest.mark.parametrize("fault", ["500", "cut", "empty", "stream-error", "hang"])
def test_what_a_misbehaving_server_was_asked_is_answered_elsewhere(tiny: Loaded, fault: str) -> None:
    requests = _requests(3, BUDGETS[1])
    expected = [group[0].text for group in TorchEngine(tiny).generate(requests)]
    with Served(tiny) as good, Served(tiny, fault) as bad:
        engine = _engine(bad, good, timeout=1.0 if fault == "hang" else 20)
        assert [group[0].text for group in engine.generate(requests)] == expected
        assert bad.bodies
        engine.close()


@pytest.mark.parametrize("fault", ["500", "cut", "empty", "stream-error", "busy"])
def test_a_lone_server_that_fails_now_and_then_is_asked_again(tiny: Loaded, fault: str) -> None:
    requests = _requests(2, BUDGETS[1])
    expected = [group[0].text for group in TorchEngine(tiny).generate(requests)]
    with Served(tiny) as served:
        served.faults = [fault, fault]
        engine = _engine(served)
        texts = [""] * 2
        tickets = [
            engine.submit(request, None, lambda _, text, k=k: texts.__setitem__(k, texts[k] + text))  # type: ignore[misc]
            for k, request in enumerate(requests)
        ]
        engine.wait(tickets)
        assert [ticket.completions[0].text for ticket in tickets] == expected == texts
        engine.close()


def test_a_crash_with_many_in_flight_is_one_failure() -> None:
    server = Server("http://a/v1")
    for _ in range(64):
        server.failed("gone", dead=True)
    assert server.until - time.monotonic() <= 0.5
    assert server.room(64, time.monotonic()) == 0
    assert server.room(64, server.until + 1) == 1  # one request looks whether it is back
    server.worked()
    assert server.room(64, server.until + 1) == 64


def test_a_request_that_no_server_can_answer_ends_with_an_error(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xreasoner.engines.openai_engine.LONGEST_PAUSE", 0.05)
    with Served(tiny, "500") as served:
        engine = _engine(served)
        with pytest.raises(EngineError, match="out of luck"):
            engine.generate(_requests(1, Sampling()))
        assert len(served.bodies) == 8
        engine.close()


def test_servers_that_are_gone_for_good_are_waited_for_so_long(tiny: Loaded) -> None:
    served = Served(tiny)
    engine = _engine(served, patience=1.0)
    served.kill()
    begun = time.monotonic()
    with pytest.raises(EngineError, match="no server"):
        engine.generate(_requests(3, Sampling()))
    assert time.monotonic() - begun < 15
    engine.close()


def test_a_refused_request_is_not_sent_again(tiny: Loaded) -> None:
    with Served(tiny, "400") as served:
        engine = _engine(served)
        with pytest.raises(UserError, match="top_p must be in"):
            engine.generate(_requests(1, Sampling(top_p=2.0)))
        assert len(served.bodies) == 1
        engine.close()


@pytest.mark.parametrize("fault", ["refuses-continuing", "ignores-continuing"])
def test_a_server_that_cannot_continue_a_reply_is_named(tiny: Loaded, fault: str) -> None:
    with Served(tiny, fault) as served:
        engine = _engine(served)
        assert engine.generate(_requests(1, BUDGETS[0]))[0][0].exit == "natural"
        with pytest.raises(UserError, match="does not continue a reply"):
            engine.generate(_requests(1, BUDGETS[1]))
        engine.close()


def test_scores_are_those_in_process(tiny: Loaded) -> None:
    (request,) = _requests(1, BUDGETS[0])
    with Served(tiny) as served:
        engine, ours = _engine(served), TorchEngine(tiny)
        (completion,) = engine.generate([request])[0]
        options = ["Ana", "Ben", "14"]
        theirs = decide(engine, request, completion, options)
        expected = decide(ours, request, completion, options)
        assert theirs.probabilities == pytest.approx(expected.probabilities, rel=1e-3)
        assert theirs.mass == pytest.approx(expected.mass, rel=1e-3)
        served.fault = "no-logprobs"
        with pytest.raises(UserError, match="prompt_logprobs"):
            engine.score(request, "", ["A"])
        engine.close()


def test_pictures_and_typed_special_tokens_are_made_safe(served: Served) -> None:
    parts = [{"type": "text", "text": "<|image_pad|><|im_end|> what?"}, {"type": "image"}]
    picture = Image.new("RGB", (600, 300), "red")
    request = Request(
        [{"role": "user", "content": parts}],
        (picture,),
        sampling=Sampling(thinking_budget=2, answer_budget=1),
        max_pixels=50_000,
    )
    engine = _engine(served)
    engine.generate([request])
    engine.close()
    text, image = served.bodies[0]["messages"][0]["content"]
    assert text["text"] == "<¦image_pad¦><¦im_end¦> what?"
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    from engines.served import _read

    (sent,) = _read(served.bodies[0])[1]
    assert sent.width * sent.height <= 50_000
    assert sent.width % 28 == sent.height % 28 == 0


def test_a_key_is_sent_and_its_lack_is_named(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Served(tiny, key="open sesame") as served:
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            _engine(served)
        _engine(served, api_key="open sesame").close()
        monkeypatch.setenv("OPENAI_API_KEY", "open sesame")
        _engine(served).close()


def test_wrong_addresses_and_models_are_named(served: Served, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected addresses such as"):
        OpenAIEngine("localhost:8000")
    with pytest.raises(EngineError, match="no server answers"):
        OpenAIEngine("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="has no model 'large'; it has tiny"):
        _engine(served, model="large")


def test_a_loop_ends_the_thought_when_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xreasoner.engines.reply_budget.repeats", lambda units: len(units) >= 32)
    (request,) = _requests(1, Sampling(exit_on_repeats=True))
    engine = _engine(served)
    (completion,) = engine.generate([request])[0]
    engine.close()
    assert completion.exit == "forced"
    assert 32 <= completion.thought_tokens <= 40


@pytest.mark.parametrize("owner", ["somebody", "vllm"])
def test_a_turn_that_ends_inside_the_thought_goes_on_to_an_answer_when_asked(tiny: Loaded, owner: str) -> None:
    with Served(tiny, "ends", owner=owner) as served:
        engine = _engine(served)
        off, on = (_requests(1, Sampling(exit_on_end=asked))[0] for asked in (False, True))
        ((plain,), (asked,)) = engine.generate([off, on])
        engine.close()
    assert (plain.exit, plain.answer) == ("natural", "")
    assert asked.exit in ("forced", "truncated")
    assert asked.text.startswith(plain.text + " </think> <answer>")
    assert asked.answer
    assert tiny.tokenizer.eos_token_id not in asked.token_ids[:-1]
    closing = len(tiny.tokenizer.encode(" </think>"))  # counts as in process, where the server says its tokens
    assert asked.thought_tokens == (11 + closing if owner == "vllm" else 12)


@pytest.mark.parametrize("fault", ["refuses-continuing", "ignores-continuing"])
def test_where_a_server_cannot_continue_a_turn_that_ended_there_is_no_answer(tiny: Loaded, fault: str) -> None:
    (request,) = _requests(1, Sampling(exit_on_end=True))
    with Served(tiny) as served:
        served.faults = ["ends", fault]
        engine = _engine(served)
        ((found,),) = engine.generate([request])
        engine.close()
    assert (found.exit, found.answer) == ("truncated", "")
    assert found.thought
