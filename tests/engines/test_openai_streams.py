"""What servers send: keep-alives, errors inside a stream, and every way to say that a reply ended."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

import pytest

from xreasoner.completion import Exit
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.openai_engine import OpenAIEngine, retry_seconds
from xreasoner.errors import ServerError, UserError
from xreasoner.grading.grader import judge
from xreasoner.problem import Problem
from xreasoner.reporting.inspect_log import STOP

JSON = {"Content-Type": "application/json"}
EVENTS = {"Content-Type": "text/event-stream"}
Reply = tuple[int, dict[str, str], str]


class Recorded(ThreadingHTTPServer):
    """A server that gives the replies of a list, first to last; the last one again and again."""

    daemon_threads = True

    def __init__(self, replies: list[Reply]) -> None:
        self.replies, self.asked = replies, 0
        self.models: Any = MODELS
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


MODELS = {"data": [{"id": "somebody's"}]}


class _Handler(BaseHTTPRequestHandler):
    server: Recorded  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send((200, JSON, json.dumps(self.server.models)))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self.server.replies[min(self.server.asked, len(self.server.replies) - 1)])
        self.server.asked += 1

    def _send(self, reply: Reply) -> None:
        status, headers, text = reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@contextlib.contextmanager
def served(*replies: Reply, models: Any = MODELS, model: str | None = None) -> Iterator[tuple[Recorded, OpenAIEngine]]:
    with Recorded(list(replies)) as server:
        server.models = models
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            engine = OpenAIEngine(server.url, model, patience=3)
            try:
                yield server, engine
            finally:
                engine.close()
        finally:
            server.shutdown()
            thread.join(5)


def ask(engine: OpenAIEngine, **sampling: Any) -> Any:
    request = Request([{"role": "user", "content": "Who?"}], sampling=Sampling(**sampling))
    return engine.generate([request])[0][0]


def chunk(content: str | None = None, finish: str | None = None, **delta: Any) -> str:
    said = {"content": content, **delta}
    return json.dumps({"choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def stream(*datas: str, end: str = "\n\n") -> Reply:
    return 200, EVENTS, "".join(f"data: {data}{end}" for data in datas)


GOOD = stream(chunk("An"), chunk("a"), chunk(finish="stop"), "[DONE]")

FORMS: dict[str, Reply] = {
    "as usual": GOOD,
    "keep-alives": (
        *GOOD[:2],
        ": ping\n\ndata:\n\ndata: \n\ndata: null\n\n: OPENROUTER PROCESSING\n\nevent: ping\ndata: {}\n\n" + GOOD[2],
    ),
    "CRLF": (*GOOD[:2], GOOD[2].replace("\n", "\r\n")),
    "CR": (*GOOD[:2], GOOD[2].replace("\n", "\r")),
    "no blank lines": (*GOOD[:2], GOOD[2].replace("\n\n", "\n")),
    "no space": (*GOOD[:2], GOOD[2].replace("data: ", "data:")),
    "a BOM": (*GOOD[:2], "\ufeff" + GOOD[2]),
    "ids, retries and names": (*GOOD[:2], "retry: 5\n\n" + GOOD[2].replace("data:", "id: 1\nevent: message\ndata:")),
    "an event in several lines": (
        *GOOD[:2],
        "data: {\ndata:   \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"Ana\"}}]\ndata: }\n\n"
        + stream(chunk(finish="stop"), "[DONE]")[2],
    ),
    "no choices": stream('{"choices": []}', '{"choices": null}', chunk("Ana"), chunk(finish="stop"), "[DONE]"),
    "prompt filter results": stream(
        '{"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}', chunk("Ana", finish="stop"), "[DONE]"
    ),
    "usage alone": stream(
        chunk("Ana"),
        chunk(finish="stop"),
        '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}',
        "[DONE]",
    ),
    "usage null": stream(chunk("Ana")[:-1] + ', "usage": null}', chunk(finish="stop"), "[DONE]"),
    "no delta": stream('{"choices": [{"index": 0, "delta": null}]}', chunk("Ana"), chunk(finish="stop"), "[DONE]"),
    "the role first": stream(chunk(role="assistant"), chunk("Ana"), chunk("", "stop"), "[DONE]"),
    "no [DONE]": stream(chunk("Ana"), chunk(finish="stop")),
    "no reason, but [DONE]": stream(chunk("Ana"), "[DONE]"),
    "an empty reason": stream(chunk("Ana", ""), "[DONE]"),
    "a whole reply": (
        200,
        JSON,
        json.dumps({"choices": [{"message": {"content": "Ana"}, "finish_reason": "stop"}], "usage": {}}, indent=2),
    ),
    "parts": stream(chunk("Ana", "stop").replace('"Ana"', '[{"type": "text", "text": "Ana"}]'), "[DONE]"),
    "TGI": stream(chunk("Ana", "eos_token"), "[DONE]"),
    "Anthropic's": stream(chunk("Ana", "end_turn"), "[DONE]"),
    "in capitals": stream(chunk("Ana", "STOP"), "[DONE]"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_stream_is_read(form: str) -> None:
    with served(FORMS[form]) as (server, engine):
        completion = ask(engine)
    assert (completion.answer, completion.exit, server.asked) == ("Ana", "natural", 1)


@pytest.mark.parametrize(
    ("reason", "exit"),
    [
        ("content_filter", "refused"),
        ("SAFETY", "refused"),
        ("sensitive", "refused"),
        ("tool_calls", "truncated"),
        ("function_call", "truncated"),
        ("no_such_reason", "truncated"),
    ],
)
def test_an_end_that_is_no_answer_is_not_natural(reason: str, exit: str) -> None:
    for replies in (
        [stream(chunk("<think> Ana"), chunk(finish=reason), "[DONE]")],
        [stream(chunk(finish=reason), '{"choices": [], "usage": {"completion_tokens": 1}}', "[DONE]")],
    ):
        with served(*replies) as (server, engine):
            completion = ask(engine)
        assert (completion.exit, completion.answer, server.asked) == (exit, "", 1)


@pytest.mark.parametrize("text", ["", "<think> It is", "<think> It is Ana. </think> <answer>A"])
def test_a_filtered_reply_is_judged_as_refused_and_reaches_inspects_log(text: str) -> None:
    problem = Problem("p", "Who?", "B", "choice", ("Ana", "Ben"))
    assert judge(problem, text, "refused").outcome == "refused"
    assert judge(problem, "<think> x </think> <answer>B</answer>", "refused").outcome == "correct"
    assert set(STOP) == set(get_args(Exit))


def test_a_refusal_of_the_model_is_refused() -> None:
    with served(stream(chunk(refusal="I cannot."), chunk(finish="stop", refusal="."), "[DONE]")) as (_, engine):
        assert ask(engine).exit == "refused"


@pytest.mark.parametrize(
    "error",
    [
        {"code": "content_filter", "message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
        {"code": "content_policy_violation", "message": "filtered"},
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_prompt_that_a_filter_refuses_is_refused(error: dict[str, Any], streamed: bool) -> None:
    body = json.dumps({"error": error})
    with served(stream(body) if streamed else (400, JSON, body)) as (server, engine):
        completion = ask(engine)
    assert (completion.exit, completion.answer, server.asked) == ("refused", "", 1)


PERMANENT: list[Any] = [
    {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}},
    {"error": {"message": "too long", "type": "BadRequestError", "code": 400}},
    {"error": {"message": "too long", "type": "BadRequestError", "code": "400"}},
    {"object": "error", "message": "too long", "code": 400},
    {"error": {"message": "too long, and no quota", "type": "insufficient_quota", "code": "insufficient_quota"}},
    {"error": {"message": "too long a key", "code": "invalid_api_key"}},
    {"error": {"message": "too long a name", "code": "model_not_found"}},
]


@pytest.mark.parametrize("error", PERMANENT, ids=lambda error: json.dumps(error)[:70])
@pytest.mark.parametrize("after", [[], [chunk("An")]])
def test_an_error_that_no_second_try_changes_is_not_tried_again(error: Any, after: list[str]) -> None:
    with served(stream(*after, json.dumps(error))) as (server, engine), pytest.raises(ServerError, match="too long"):
        ask(engine)
    assert server.asked == 1


def test_llama_cpps_error_line_is_an_error() -> None:
    text = 'error: {"code": 400, "message": "too long", "type": "invalid_request_error"}\n\n'
    with served((200, EVENTS, text)) as (server, engine), pytest.raises(ServerError, match="too long"):
        ask(engine)
    assert server.asked == 1


@pytest.mark.parametrize(
    "first",
    [
        (429, {**JSON, "Retry-After": "0.1"}, '{"error": {"message": "slowly"}}'),
        (503, {**JSON, "Retry-After": "0.1"}, '{"error": {"message": "slowly"}}'),
        (500, {**JSON, "Retry-After": "0.1"}, '{"error": {"message": "slowly"}}'),
        (500, JSON, '{"error": {"message": "out of luck"}}'),
        (502, {"Content-Type": "text/html"}, "<html>Bad gateway</html>"),
        (529, JSON, '{"error": {"type": "overloaded_error"}}'),
        stream('{"error": {"message": "slowly", "code": "rate_limit_exceeded"}}'),
        stream('{"error": {"message": "out of luck", "type": "server_error", "code": null}}'),
        stream(chunk("Ana"), chunk(finish="insufficient_system_resource"), "[DONE]"),
        stream(chunk("A")),
        stream('{"choices": [{"ind'),
        (200, EVENTS, ""),
        (200, EVENTS, "data: [DONE]\n\n"),
    ],
    ids=lambda reply: f"{reply[0]} {reply[2][:40]}",
)
def test_a_passing_failure_is_tried_again(first: Reply) -> None:
    with served(first, GOOD) as (server, engine):
        completion = ask(engine)
    assert (completion.answer[-3:], completion.exit, server.asked) == ("Ana", "natural", 2)


def test_retry_after_is_kept() -> None:
    slow = (429, {**JSON, "Retry-After": "0.7"}, "{}")
    with served(slow, GOOD) as (_, engine):
        begun = time.monotonic()
        ask(engine)
        assert time.monotonic() - begun >= 0.7
    assert 5 < retry_seconds({"retry-after": formatdate(time.time() + 8, usegmt=True)}) <= 8
    assert retry_seconds({"retry-after-ms": "250"}) == 0.25
    assert retry_seconds({"retry-after": "soon"}) == 1.0
    assert retry_seconds({"retry-after": "nan"}) == 1.0
    assert retry_seconds({"retry-after": "1e9"}) == 120.0
    assert retry_seconds({}) == 1.0


@pytest.mark.parametrize(
    ("models", "context"),
    [
        ({"data": [{"id": "m", "max_model_len": 4096}]}, 4096),
        ({"object": "list", "data": [{"id": "m", "context_length": 4096}], "has_more": False}, 4096),
        ([{"id": "m", "object": "model"}], None),
        ({"models": [], "data": [{"id": "m", "meta": {"n_ctx_train": 4096}}]}, None),
        ({"data": [{"id": 7}, {"id": "m", "max_model_len": None}]}, None),
    ],
)
def test_lists_of_models_are_read(models: Any, context: int | None) -> None:
    with served(GOOD, models=models) as (_, engine):
        assert [(server.model, server.context) for server in engine.servers] == [("m", context)]


def test_a_model_that_a_server_does_not_have_is_named_with_the_nearest() -> None:
    many = {"data": [{"id": f"lab/model-{k}"} for k in range(300)]}
    with pytest.raises(UserError, match=r"has no model 'lab/modle-7'; it has lab/model-7, .* \(of 300\)$"):
        served(GOOD, models=many, model="lab/modle-7").__enter__()
    for empty in ({"data": []}, {"object": "list", "data": None}):
        with pytest.raises(UserError, match="it has none"):
            served(GOOD, models=empty).__enter__()
