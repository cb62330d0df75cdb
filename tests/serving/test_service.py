"""The HTTP service, by the official client and by hand."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest
from engines.served import Served
from PIL import Image
from serving.background import QUESTION, Background

from xreasoner.errors import UserError
from xreasoner.models.loading import load
from xreasoner.reasoner import Reasoner
from xreasoner.serving.desk import Limits
from xreasoner.serving.run import serve
from xreasoner.tiny.benchmarks import cell

CHAT = "/v1/chat/completions"


def client(service: Background, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=service.url + "/v1", api_key=key, max_retries=0, timeout=60)


def post(
    service: Background, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], Any]:
    """(status, body, headers)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(service.url + path, data, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, json.loads(reply.read()), reply.headers
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read()), refused.headers


def get(service: Background, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(service.url + path, headers=headers or {})) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode(), refused.headers


def ask(text: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "prompt": "default", **more}


def png(size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(buffer, "PNG")
    return buffer.getvalue()


def data_address(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


RED = data_address(png())


def pictured(url: str, **more: Any) -> dict[str, Any]:
    """A body with a picture."""
    parts = [{"type": "image_url", "image_url": {"url": url, **more}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": parts}]}


def metric(service: Background, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} (\S+)$", get(service, "/metrics")[1], re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_the_official_client_asks(service: Background, reasoner: Reasoner) -> None:
    with client(service) as there:
        (model,) = there.models.list().data
        reply: Any = there.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": QUESTION}], extra_body={"prompt": "default"}
        )
    expected = reasoner.ask(QUESTION)
    assert model.id == "tiny"
    assert reply.choices[0].message.content == expected.answer == "11"
    assert reply.choices[0].message.reasoning == reply.choices[0].message.reasoning_content == expected.thought
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].exit == "natural"
    assert reply.usage.completion_tokens_details.reasoning_tokens == expected.usage.thought_tokens
    assert reply.usage.completion_tokens == expected.usage.thought_tokens + expected.usage.answer_tokens


def test_the_official_client_streams(service: Background, reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = reasoner.engine
    step = engine.step
    monkeypatch.setattr(
        engine, "step", lambda: time.sleep(0.005) or step()
    )  # as a larger model's; tiny is done at once
    with client(service) as there:
        stream = there.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"prompt": "default"},
        )
        chunks: list[Any] = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    expected = reasoner.ask(QUESTION)
    assert "".join(delta.content or "" for delta in deltas).strip() == expected.answer
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas).strip() == expected.thought
    assert sum(bool(getattr(delta, "reasoning", None)) for delta in deltas) > 1, "it came in one piece"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert chunks[-1].usage.prompt_tokens > 0


def test_a_picture_by_the_official_client(service: Background, reasoner: Reasoner) -> None:
    problem = cell("general", "image", 3, 5)[1]
    buffer = io.BytesIO()
    problem.images[0].save(buffer, "PNG")
    url = data_address(buffer.getvalue())
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": problem.question}]
    with client(service) as there:
        reply = there.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": content}],
            extra_body={"prompt": "default", "options": list(problem.options)}
            if problem.options
            else {"prompt": "default"},
        )
    expected = reasoner.ask(problem.question, [problem.images[0]], problem.options)
    assert reply.choices[0].message.content == expected.answer


def test_n_samples_and_seeds(service: Background) -> None:
    body = ask(n=3, temperature=1.0, seed=5)
    first, second = post(service, CHAT, body)[1], post(service, CHAT, body)[1]
    texts = [choice["message"]["reasoning"] for choice in first["choices"]]
    assert texts == [choice["message"]["reasoning"] for choice in second["choices"]]
    assert len(set(texts)) > 1
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]


def test_the_budget_is_kept_and_told(service: Background) -> None:
    _, reply, _ = post(service, CHAT, ask(thinking_budget=8))
    (choice,) = reply["choices"]
    assert choice["exit"] == "forced"
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] < 30
    assert choice["message"]["content"]


@pytest.mark.parametrize("most", [12, 20, 60])
def test_max_tokens_are_kept_with_the_exit_text(service: Background, most: int) -> None:
    assert post(service, CHAT, ask(max_tokens=most))[1]["usage"]["completion_tokens"] <= most


def test_the_smallest_temperature_is_greedy(service: Background) -> None:
    said = [post(service, CHAT, ask(temperature=heat))[1]["choices"][0]["message"] for heat in (0, 1e-300)]
    assert said[0] == said[1]


def test_a_thought_that_is_cut_off_is_no_content(service: Background) -> None:
    _, reply, _ = post(service, CHAT, ask(thinking_budget=8, answer_budget=1, exit_text=" </think>"))
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["exit"] == "truncated"


def test_stop_and_logprobs(service: Background) -> None:
    _, reply, _ = post(service, CHAT, ask(logprobs=True))
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert "</think>" in "".join(token["token"] for token in tokens)
    assert all(token["logprob"] <= 0 for token in tokens)
    _, whole, _ = post(service, CHAT, ask(stop=["14 high"]))
    assert whole["choices"][0]["message"]["content"] == reply["choices"][0]["message"]["content"]  # not in the answer
    assert "14 high" in whole["choices"][0]["message"]["reasoning"]
    _, closed, _ = post(service, CHAT, ask(stop=["14 high"], stop_in_thought=True))
    assert closed["choices"][0]["message"]["reasoning"].endswith("14 high")
    assert closed["choices"][0]["exit"] == "forced"
    answer = whole["choices"][0]["message"]["content"]
    _, cut, _ = post(service, CHAT, ask(stop=[answer[1:]]))
    assert cut["choices"][0]["message"]["content"] == answer.partition(answer[1:])[0]


def test_decisions(service: Background) -> None:
    asked = ask("Ana has 14 and Ben has 9. Who has more?", options=["Ana", "Ben"])
    status, reply, _ = post(service, "/v1/decisions", asked)
    assert status == 200
    assert [option["label"] for option in reply["option_probabilities"]] == ["A", "B"]
    assert sum(option["probability"] for option in reply["option_probabilities"]) == pytest.approx(1)
    assert 0 < reply["mass"] <= 1
    assert reply["exit"] in ("natural", "forced", "truncated")
    asked.pop("options")
    status, reply, _ = post(service, "/v1/decisions", asked)
    assert (status, reply["error"]["param"]) == (400, "options")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        ([], 400, "expected an object"),
        ({}, 400, "messages: is missing"),
        (ask(foo=1), 400, "foo: unsupported field; docs/serving.md lists the fields"),
        (ask(temprature=1), 400, "temprature: unsupported field; did you mean temperature?"),
        (ask(maxTokens=1), 400, "maxTokens: unsupported field; did you mean max_tokens"),
        (ask(tools=[{"type": "function"}]), 400, "tools: not supported here (there are no tools here); found"),
        (ask(chat_template="{{ x }}"), 400, "chat_template: not supported here"),
        (ask(temperature="hot"), 400, "temperature: found 'hot'"),
        (ask(stop="~" * 257), 400, "stop: found"),
        (ask(options=["one", "x" * 2001]), 400, "options: found"),
        (ask("x" * 600_000), 400, "messages: 600,000 characters"),
        (ask("\ud800"), 400, "messages: holds half of a surrogate pair"),
        (ask(**{"\ud800": 1}), 400, "\\ud800: holds half of a surrogate pair"),
        (ask(frequency_penalty=0.5), 400, "frequency_penalty"),
        (ask(n=17), 400, "n: found 17, at most 16"),
        (ask(max_pixels=10**9), 400, "max_pixels"),
        (ask(thinking_budget=10**6), 400, "thinking_budget"),
        (ask(options=["one"]), 400, "options: found 1"),
        (ask(logprobs=True, stream=True), 400, "logprobs"),
        (ask(model="gpt"), 404, "model: found 'gpt', expected tiny"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x", "names": "Ana"}]}, 400, "messages[0].names: unsupported field"),
        (
            pictured(RED, detail="huge"),
            400,
            "messages[0].content[0].image_url.detail: found 'huge', expected auto, low",
        ),
        (pictured(RED, colour="red"), 400, "messages[0].content[0].image_url.colour: unsupported field"),
        (b'{"messages": ' + b"9" * 5000 + b"}", 400, "body: not JSON (Exceeds the limit"),
    ],
)
def test_what_is_wrong_is_named(service: Background, body: Any, status: int, said: str) -> None:
    found, reply, _ = post(service, CHAT, body)
    assert (found, set(reply)) == (status, {"error"})
    assert said in reply["error"]["message"]
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert status != 404 or reply["error"]["param"] == "model"


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/x.png", "file:///etc/passwd", "/etc/passwd", "data:image/png;base64,AAAA"]
)
def test_pictures_go_through_the_guard(service: Background, url: str) -> None:
    status, reply, _ = post(service, CHAT, pictured(url))
    assert (status, reply["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("spelled", ["<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>"])
def test_cve_2026_44222_placeholders_in_text_are_text(service: Background, spelled: str) -> None:
    """Text that spelled a picture's placeholder crashed servers; here a picture beside it is the only one."""
    body = pictured(RED, detail="auto") | {"thinking_budget": 2}
    body["messages"][0]["content"][1]["text"] = f"What is {spelled}?"
    status, reply, _ = post(service, CHAT, body)
    body["messages"][0]["content"][1]["text"] = f"What is {spelled.replace('|', '¦')}?"
    assert (status, reply["choices"]) == (200, post(service, CHAT, body)[1]["choices"])


def test_cve_2026_44222_placeholders_in_an_exit_text_and_in_options_are_text(service: Background) -> None:
    spelled = "<|image_pad|></think> <answer>"
    body = pictured(RED) | {
        "thinking_budget": 4,
        "stop": [" ", "4"],
        "exit_text": spelled,
        "options": ["red", "<|image_pad|>"],
    }
    status, reply, _ = post(service, "/v1/decisions", body)
    assert (status, len(reply.get("option_probabilities", []))) == (200, 2), reply


@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs", "documents", "add_generation_prompt"])
def test_cve_2026_115911_no_template_comes_with_a_request(service: Background, field: str) -> None:
    """A template of the request's own was rendered, for as long and as wide as it liked."""
    status, reply, _ = post(service, CHAT, ask(**{field: "{% for i in range(10**9) %}x{% endfor %}"}))
    assert (status, reply["error"]["param"]) == (400, field)
    (_, plain, _), (_, braces, _) = (post(service, CHAT, ask(text, thinking_budget=2)) for text in ("49", "{{ 7*7 }}"))
    assert braces["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]  # what is said is not rendered either


def test_cve_2026_22778_a_reply_never_quotes_a_decoder(service: Background) -> None:
    for data in (png(64)[:60], b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64), b"\xff\xd8\xff"):
        status, reply, _ = post(service, CHAT, pictured(data_address(data)))
        said = reply["error"]["message"]
        assert status == 400
        assert not [word for word in ("0x", "BytesIO", "object at", "truncated", "identify") if word in said]


def test_a_conversation_goes_on_with_what_the_client_was_given(service: Background) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with client(service) as there:
        for _ in range(2):
            reply = there.chat.completions.create(model="tiny", messages=messages, extra_body={"thinking_budget": 8})
            messages += [reply.choices[0].message, {"role": "user", "content": "Sure?"}]
    assert reply.usage
    assert reply.usage.prompt_tokens > 60


def test_unknown_routes_and_methods(service: Background) -> None:
    status, body, _ = get(service, "/v1/nothing")
    assert (status, json.loads(body)["error"]["code"]) == (404, None)
    assert (
        "/v1/nothing is not served here; expected one of /v1/chat/completions" in json.loads(body)["error"]["message"]
    )
    status, body, _ = get(service, CHAT)
    assert (status, json.loads(body)["error"]["code"]) == (405, None)
    assert json.loads(body)["error"]["message"] == f"{CHAT}: found GET, expected POST"
    assert post(service, CHAT, b"x=1", {"content-type": "text/plain"})[0] == 415


def test_an_errors_code_is_a_text_that_clients_look_for(service: Background, reasoner: Reasoner) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    question = {"type": "text", "text": "What is shown?"}
    for body, status, code in (
        (ask(model="gpt-4o"), 404, "model_not_found"),
        (ask(messages=[{"role": "user", "content": "word " * 4000}]), 400, "context_length_exceeded"),
        (ask(messages=[{"role": "user", "content": "word " * 8000}]), 400, "context_length_exceeded"),
        (ask(messages=[{"role": "user", "content": [image, question]}]), 400, "invalid_image"),
        (ask(temperature=9), 400, None),
    ):
        found, reply, _ = post(service, CHAT, body)
        assert (found, reply["error"]["code"]) == (status, code), reply
        if status == 400:
            assert post(service, CHAT, {**body, "stream": True})[:2] == (found, reply)
    with client(service) as there, pytest.raises(openai.NotFoundError) as missing:
        there.models.retrieve("gpt-4o")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with Background(lambda: reasoner, key="s3cret") as running, client(running, "wrong") as there:
        with pytest.raises(openai.AuthenticationError) as stranger:
            there.models.list()
        assert stranger.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny", "/v1/models/tiny/"])
def test_what_is_read_has_a_head(service: Background, path: str) -> None:
    wire = http.client.HTTPConnection(service.url.removeprefix("http://"))
    wire.request("HEAD", path)
    reply = wire.getresponse()
    assert (reply.status, reply.read()) == (200, b"")
    wire.close()
    assert get(service, path)[0] == 200


@pytest.mark.parametrize(("fault", "told"), [("401", 502), ("404", 502), ("500", 503), ("400", 400)])
def test_a_server_behind_is_not_quoted_to_clients(fault: str, told: int) -> None:
    """Its address and what it says of keys are for the log; what is wrong with the request is for who asked."""
    with Served(load("tiny"), fault=fault) as served, Background(lambda: Reasoner(served.url)) as running:
        found, reply, _ = post(running, CHAT, ask())
    assert found == told
    said = reply["error"]
    assert ("top_p must be" in said["message"]) == (told == 400)
    assert said["param"] is None
    assert served.url not in said["message"]
    assert "luck" not in said["message"]


def test_cve_2024_1727_other_sites_stay_out(service: Background) -> None:
    assert get(service, "/", {"origin": "http://["})[0] == 403
    """Uploads from any site to a service on this machine, and names that lead here from elsewhere."""
    assert post(service, CHAT, ask(), {"origin": "https://evil.example"})[0] == 403
    assert post(service, CHAT, ask(), {"origin": "null"})[0] == 403
    assert get(service, "/v1/models", {"host": "evil.example"})[0] == 403


def test_metrics_count(service: Background) -> None:
    before = metric(service, 'xreasoner_exits_total{exit="natural"}')
    post(service, CHAT, ask())
    assert metric(service, 'xreasoner_exits_total{exit="natural"}') == before + 1
    assert metric(service, "xreasoner_prompt_tokens_total") > 0
    assert metric(service, "xreasoner_time_to_first_token_seconds_count") > 0
    assert metric(service, "xreasoner_running_requests") == 0


@contextlib.contextmanager
def hanging_up(service: Background, **more: Any) -> Iterator[socket.socket]:
    """A client that has asked for much and goes away."""
    body = json.dumps({**ask("Say much."), "prompt": "brief", "temperature": 1.5, "n": 16, **more}).encode()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        yield wire


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(reasoner: Reasoner, stream: bool) -> None:
    with Background(lambda: reasoner) as running:
        with hanging_up(running, stream=stream, thinking_budget=20_000, answer_budget=5000):
            end = time.monotonic() + 20
            while metric(running, "xreasoner_running_requests") < 1 and time.monotonic() < end:
                time.sleep(0.02)
            assert metric(running, "xreasoner_running_requests") == 1
        gone = time.monotonic()
        engine: Any = reasoner.engine
        while (metric(running, "xreasoner_running_requests") or engine._rows) and time.monotonic() < gone + 10:
            time.sleep(0.02)
        assert time.monotonic() - gone < 1.0 * patience()


def patience() -> float:
    """A second on a machine at rest; more where it has other work."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) * 2


def test_too_many_are_told_to_wait(reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, limits=Limits(max_running=1, max_queue=0)) as running:
        with hanging_up(running, stream=True, thinking_budget=2000):
            while metric(running, "xreasoner_running_requests") < 1:
                time.sleep(0.02)
            status, reply, headers = post(running, CHAT, ask())
            assert (status, reply["error"]["type"], headers["retry-after"]) == (429, "rate_limit_error", "1")
        end = time.monotonic() + 10
        while (status := post(running, CHAT, ask())[0]) == 429 and time.monotonic() < end:
            time.sleep(0.1)
        assert status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place_in_the_queue(
    reasoner: Reasoner, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = reasoner.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.2), step())[1])  # a larger model's pace
    long = {"thinking_budget": 20_000, "answer_budget": 5000}
    with (
        Background(lambda: reasoner, limits=Limits(max_running=1, max_queue=1)) as running,
        hanging_up(running, stream=True, **long),
    ):
        waited_for(running, "xreasoner_running_requests", 1)
        with hanging_up(running, stream=stream, **long):
            waited_for(running, "xreasoner_waiting_requests", 1)
        gone = time.monotonic()
        waited_for(running, "xreasoner_waiting_requests", 0)
        assert time.monotonic() - gone < 1.0 * patience()
        assert metric(running, "xreasoner_running_requests") == 1


def waited_for(service: Background, name: str, value: float) -> None:
    end = time.monotonic() + 20
    while metric(service, name) != value and time.monotonic() < end:
        time.sleep(0.02)
    assert metric(service, name) == value


def test_pysec_2026_4184_the_body_is_measured_while_it_is_read(reasoner: Reasoner) -> None:
    """A body without a length must not be read whole first."""
    with Background(lambda: reasoner, limits=Limits(max_body=10_000, body_seconds=1.0)) as running:
        assert post(running, CHAT, ask("x" * 20_000))[0] == 413
        host, port = running.url.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            wire.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
            for _ in range(20):
                wire.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            assert b" 413 " in wire.recv(100)
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            wire.sendall((head + "content-length: 100\r\n\r\n{").encode())
            assert b" 408 " in wire.recv(100)


def test_bodies_are_counted_before_they_are_read(reasoner: Reasoner) -> None:
    """As many as may wait, and no more bytes than are allowed together: the others are told to wait at once."""
    limits = Limits(max_body=100_000, max_bodies=150_000, max_running=1, max_queue=1)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with Background(lambda: reasoner, limits=limits) as running, ExitStack() as stack:
        host, port = running.url.removeprefix("http://").split(":")

        def sent(size: int) -> socket.socket:
            wire = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            wire.sendall((head + "content-length: 100000\r\n\r\n").encode() + b" " * size)
            return wire

        slow = sent(90_000)
        time.sleep(0.5)
        assert b" 429 " in sent(90_000).recv(100)
        few = sent(10)
        time.sleep(0.5)
        assert post(running, CHAT, ask())[0] == 429
        few.close()
        slow.close()
        end = time.monotonic() + 10
        while (status := post(running, CHAT, ask())[0]) == 429 and time.monotonic() < end:
            time.sleep(0.1)
        assert status == 200
        counted = get(running, "/metrics")[1]
    assert 'status="499"' in counted
    assert 'status="500"' not in counted


def test_the_key_is_asked_for_everywhere_but_at_health(reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, key="s3cret") as running:
        assert get(running, "/health")[0] == 200
        for path in ("/", "/page.js", "/page.css", "/v1/models", "/metrics", "/v1/chat/completions", "/nothing"):
            assert get(running, path)[0] == 401, path
        assert post(running, CHAT, ask(), {"authorization": "Bearer wrong"})[0] == 401
        with client(running, "s3cret") as there:
            assert there.models.list().data[0].id == "tiny"
        with client(running, "wrong") as there, pytest.raises(openai.AuthenticationError):
            there.models.list()


def test_a_browser_signs_in(reasoner: Reasoner) -> None:
    with Background(lambda: reasoner, key="s3cret") as running:
        host = running.url.removeprefix("http://")
        for key, status in (("wrong", 401), ("s3cret", 303)):
            wire = http.client.HTTPConnection(host)
            wire.request("POST", "/sign-in", f"key={key}", {"content-type": "application/x-www-form-urlencoded"})
            reply = wire.getresponse()
            assert reply.status == status
            cookie = reply.headers.get("set-cookie")
            wire.close()
        assert cookie
        assert "s3cret" not in cookie
        assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
        assert get(running, "/", {"cookie": cookie.partition(";")[0]})[0] == 200
        assert get(running, "/", {"cookie": "xreasoner=guess"})[0] == 401


def test_a_failure_while_it_streams_is_an_error_event(
    reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = reasoner.engine
    steps = iter(range(10**9))
    real = engine.step

    def step() -> bool:
        if engine._rows and next(steps) == 12:
            engine._fail(RuntimeError("a secret address 0xdeadbeef"))
        return bool(real())

    with Background(lambda: reasoner) as running:
        monkeypatch.setattr(engine, "step", step)
        with client(running) as there, pytest.raises(openai.APIError) as caught:
            list(
                there.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": QUESTION}],
                    stream=True,
                    extra_body={"prompt": "default"},
                )
            )
        assert "0xdeadbeef" not in str(caught.value)
        monkeypatch.undo()
        assert post(running, CHAT, ask())[0] == 200


def test_loading_is_told_and_a_failure_to_load_ends_it(reasoner: Reasoner) -> None:
    wait = threading.Event()

    def slow() -> Reasoner:
        wait.wait(20)
        return reasoner

    running = Background(slow)
    running._thread.start()
    end = time.monotonic() + 10
    status = 0
    while status == 0 and time.monotonic() < end:
        with contextlib.suppress(OSError):
            status, body, _ = get(running, "/health")
    assert (status, json.loads(body)) == (503, {"status": "loading"})
    assert post(running, CHAT, ask())[0] == 503
    wait.set()
    assert running.desk.ready.wait(10)
    assert get(running, "/health")[0] == 200
    running.__exit__()
    with pytest.raises(UserError, match="no such folder"):
        serve(lambda: Reasoner("./nothing"), port=0, say=lambda _: None)


def test_beyond_this_machine_only_with_a_key(reasoner: Reasoner) -> None:
    with pytest.raises(UserError, match=r"give --key \(or XREASONER_API_KEY\)"):
        serve(lambda: reasoner, host="0.0.0.0", port=0)


def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xreasoner.cli", "serve", "tiny", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        while "serving tiny" not in (line := server.stdout.readline()):
            assert line, "it ended"
        wire = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        wire.request("POST", CHAT, json.dumps(ask(n=8, temperature=1.0)), {"content-type": "application/json"})
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        reply = wire.getresponse()
        assert reply.status == 200
        assert len(json.loads(reply.read())["choices"]) == 8
        wire.close()
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def front(service: Background) -> Iterator[Background]:
    """A service in front of a service."""
    url = service.url + "/v1"
    with Background(lambda: Reasoner(url, thinking_budget=160, answer_budget=24, prompt="brief")) as running:
        yield running


@pytest.mark.parametrize("budgets", [{}, {"thinking_budget": 8}, {"thinking_budget": 8, "answer_budget": 1}])
def test_in_front_of_a_service_of_our_own(service: Background, front: Background, budgets: dict[str, int]) -> None:
    """The one behind keeps the budgets, and all that it says of the reply's end comes through."""
    assert json.loads(get(front, "/v1/models")[1])["data"][0]["id"] == "tiny"
    asked = ask(exit_text=" So </think>", **budgets)
    theirs, ours = (post(one, CHAT, asked)[1] for one in (front, service))
    assert theirs["choices"] == ours["choices"]
    assert theirs["usage"] == ours["usage"]
    assert ours["choices"][0]["exit"] == ("natural", "forced", "truncated")[len(budgets)]
    messages: Any = asked.pop("messages")
    with client(front) as there:
        chunks: Any = there.chat.completions.create(model="tiny", messages=messages, stream=True, extra_body=asked)
        said = [choice for chunk in chunks for choice in chunk.choices]
    thought = "".join(getattr(choice.delta, "reasoning", None) or "" for choice in said)
    assert thought.strip() == ours["choices"][0]["message"]["reasoning"]
    assert said[-1].exit == ours["choices"][0]["exit"]


@contextlib.contextmanager
def cut_once(service: Background, after: int) -> Iterator[str]:
    """A way to the service that breaks once, when so many bytes of a reply have come through."""
    host, port = service.url.removeprefix("http://").split(":")
    cuts = [after]

    def carry(source: socket.socket, target: socket.socket, back: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
                carried += len(data) * back
                if cuts and carried > cuts[0]:
                    cuts.clear()
                    break
        for wire in (source, target):
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                for pair in ((near, far, False), (far, near, True)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert not cuts
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_of_our_own_service_that_breaks_is_said_again_and_told_once(
    service: Background, temperature: float
) -> None:
    with cut_once(service, 900) as url, Reasoner(url) as remote:
        stream = remote.stream(QUESTION, temperature=temperature, seed=4)
        told = "".join(piece.text for piece in stream if piece.label == "thought")
        again = remote.ask(QUESTION, temperature=temperature, seed=4)
    assert told.strip() == stream.answer.thought == again.thought
    assert stream.answer == again


def test_a_reasoner_over_a_service_of_our_own(service: Background, reasoner: Reasoner) -> None:
    problem = cell("clinical", "image", 2, 5)[1]
    with Reasoner(service.url + "/v1", thinking_budget=160, answer_budget=24) as remote:
        for budgets in ({}, {"thinking_budget": 9}):
            theirs, ours = (r.ask(problem.question, problem.images, **budgets) for r in (remote, reasoner))
            assert (theirs.thought, theirs.answer, theirs.exit) == (ours.thought, ours.answer, ours.exit)
            assert theirs.usage == ours.usage
        plain = remote.request("What is it?", problem.images, thinking_budget=2)
        sizes = [replace(plain, min_pixels=size, max_pixels=size) for size in (20_000, 60_000)]
        counts = [[group[0].prompt_tokens for group in r.engine.generate(sizes)] for r in (remote, reasoner)]
        assert counts[0] == counts[1]
        assert counts[0][0] < counts[0][1]
        assert remote.ask(QUESTION, options=["11", "5"], thinking_budget=2).option_probabilities is None
        with pytest.raises(UserError, match="ask it at /v1/decisions"):
            remote.ask(QUESTION, options=["11", "5"], thinking_budget=2, probabilities=True)
    with pytest.raises(UserError, match="some are xreasoner services and some are not"), Served(load("tiny")) as other:
        Reasoner([service.url + "/v1", other.url])


def test_many_clients_get_their_own_answers(service: Background, reasoner: Reasoner) -> None:
    """The short form of benchmarks/serving.py."""
    rng = Random(0)
    questions = [f"Ana has {rng.randint(1, 20)}, Ben has {rng.randint(1, 20)}. Who has more?" for _ in range(8)]
    expected = {
        answer.id: answer.text for answer in reasoner.ask_many({"id": q, "question": q} for q in set(questions))
    }
    wrong: list[str] = []

    def one(mine: int) -> None:
        for k in range(2):
            question = questions[(mine + 7 * k) % len(questions)]
            _, reply, _ = post(service, CHAT, ask(question))
            said = reply["choices"][0]["message"]
            if said["reasoning"] not in expected[question] or said["content"] not in expected[question]:
                wrong.append(question)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
