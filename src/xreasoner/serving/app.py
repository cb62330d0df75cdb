"""The routes. A request is read, given a place at the desk, and answered whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from xreasoner import __version__
from xreasoner.completion import Completion
from xreasoner.decisions import Decision
from xreasoner.errors import (
    ContextLengthError,
    EngineError,
    MediaError,
    RequestError,
    ServerError,
    UserError,
    XReasonerError,
)
from xreasoner.media import Guard
from xreasoner.reasoner import Reasoner, context
from xreasoner.serving.chat_request import (
    ChatRequest,
    RequestRules,
    UnknownModelError,
    parse_request,
    probabilities_body,
    reply_body,
)
from xreasoner.serving.desk import BusyError, Desk, log
from xreasoner.serving.door import ROUTES, Door, error, page
from xreasoner.serving.markdown import render_markdown
from xreasoner.serving.openai_schema import DECISION_FIELDS, readable
from xreasoner.serving.openapi import openapi_document
from xreasoner.wire import ReplyRenderer, finish_reason, head, usage

T = TypeVar("T")
READ = ["GET", "HEAD"]
"""Methods of what is only read; load balancers and `curl -I` ask for the head alone."""


def create_app(
    desk: Desk,
    guard: Guard,
    hosts: Iterable[str] | None,
    key: str | None,
    *,
    prompt: str = "default",
    lenient: bool = False,
) -> FastAPI:
    """The service around a desk.

    Args:
        desk: the model, and who waits for it.
        guard: what images may be.
        hosts: see `door.Door`.
        key: see `door.Door`.
        prompt: how the last user message is put where a request does not say it (`chat_request.RequestRules`).
        lenient: fields that are not honored are ignored and listed in the reply.
    """
    limits = desk.limits
    rules = RequestRules(prompt, lenient, limits.max_samples, limits.max_tokens, limits.max_pixels)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        await asyncio.to_thread(desk.stop)

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, hosts=hosts, key=key, metrics=desk.metrics)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)

    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        if desk.ready.is_set() and desk.error is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "failed" if desk.error else "loading"}, 503, headers={"retry-after": "2"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/v1/models", methods=READ)
    @loaded(desk)
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(desk.reasoner)]})

    @app.api_route("/v1/models/{name:path}", methods=READ)
    @loaded(desk)
    async def model(request: Request) -> Response:
        name = request.path_params["name"].rstrip("/")  # a slash too many
        if not name:
            return JSONResponse({"object": "list", "data": [_model(desk.reasoner)]})
        if name != desk.reasoner.model:
            raise UnknownModelError(f"model: found {readable(name)}, expected {desk.reasoner.model}", "model")
        return JSONResponse(_model(desk.reasoner))

    @app.get("/openapi.json")
    @loaded(desk)
    async def openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(desk.reasoner.model, __version__))

    @app.post("/v1/chat/completions")
    @loaded(desk)
    async def chat(request: Request) -> Response:
        asked = await _read(request, desk, guard, rules)
        return await _streamed(request, desk, asked) if asked.stream else await _whole(request, desk, asked)

    @app.post("/v1/decisions")
    @loaded(desk)
    async def decisions(request: Request) -> Response:
        asked = await _read(request, desk, guard, replace(rules, fields=DECISION_FIELDS))
        if len(asked.options) < 2:
            raise UserError("options: is missing; expected a list of two or more texts")
        return await _whole(request, desk, asked, _decision_body)

    @app.post("/render")
    async def render(request: Request) -> Response:
        """The page's answers: Markdown and LaTeX as safe HTML."""
        try:
            with desk.arrival() as count:
                body = await _json(request, desk, count)
            if not isinstance(body, dict) or not isinstance(body.get("text"), str):
                raise UserError("text: is missing; expected a text")
            return JSONResponse({"html": await asyncio.to_thread(render_markdown, body["text"])})
        except Exception as found:
            return refusal(found)

    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/sign-in.css", "sign-in.css", "text/css"),
    ):
        app.add_api_route(path, _file(page(name), kind), methods=["GET"])
    return app


def _file(text: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def found() -> Response:
        return HTMLResponse(text, media_type=kind, headers={"cache-control": "no-cache"})

    return found


Route = Callable[[Request], Awaitable[Response]]


def loaded(desk: Desk) -> Callable[[Route], Route]:
    """Routes that need the model: 503 while it loads, and the errors of asking it in OpenAI's shape."""

    def around(route: Route) -> Route:
        async def answer(request: Request) -> Response:
            if desk.ready.is_set() and desk.error is not None:
                return error(503, "the engine has stopped; the service's log says why, and starting it again helps")
            if not desk.ready.is_set():
                return error(503, "the model is still loading; try again in a few seconds", retry=2)
            try:
                return await route(request)
            except Exception as found:
                return refusal(found)

        return answer

    return around


def refusal(found: Exception) -> Response:
    """What went wrong, as a reply. What nobody meant to say is logged and not told."""
    if isinstance(found, HTTPException):
        return error(found.status_code, str(found.detail), param=_field(found.detail))
    if isinstance(found, BusyError):
        return error(429, "too many requests; try again in a second", "rate_limit_error", retry=1)
    if isinstance(found, ClientDisconnect):  # in the middle of its body
        return Response(status_code=499)
    if isinstance(found, ServerError) and found.status in (400, 413, 422):  # the request's fault, in the server's words
        return error(400, f"the model's server refuses the request: {found.said}", code=found.code)
    if isinstance(found, ServerError | EngineError):  # whose words are for those who run the service
        log.error("%s", found)
        status = 502 if isinstance(found, ServerError) else 503
        return error(status, "the model cannot answer at the moment; see the service's log", retry=5)
    if isinstance(found, UnknownModelError):
        return error(404, str(found), param=found.param, code="model_not_found")
    if isinstance(found, ContextLengthError):
        return error(400, str(found), param="messages", code="context_length_exceeded")
    if isinstance(found, MediaError):
        return error(400, str(found), param="messages", code="invalid_image")
    if isinstance(found, RequestError):
        return error(400, str(found), param=found.param, code=found.code)
    if isinstance(found, UserError):
        return error(400, str(found), param=_field(str(found)))
    if isinstance(found, XReasonerError):  # numbers that are not finite, memory that ran out: its words say it all
        log.error("a request failed: %s", found)
        return error(500, str(found))
    log.error("a request failed", exc_info=found)
    return error(500, "internal error; see the service's log")


def _field(said: str) -> str | None:
    """The field that a message begins with."""
    field = re.match(r"([a-z_]+)(?:\[|\.|:(?!//))", said)
    return field[1] if field else None


async def _http_error(request: Request, found: Exception) -> Response:
    """What nobody serves: an address without /v1 is the usual mistake."""
    assert isinstance(found, HTTPException)
    path = request.url.path[:60]
    said = {404: f"{path} is not served here; expected one of {', '.join(ROUTES)}",
            405: f"{path}: found {request.method}, expected {(found.headers or {}).get('Allow')}"}  # fmt: skip
    refused = error(found.status_code, said.get(found.status_code, str(found.detail)))
    refused.headers.update(found.headers or {})
    return refused


async def _failure(_: Request, found: Exception) -> Response:
    return refusal(found)


def _model(reasoner: Reasoner) -> dict[str, Any]:
    """The model's entry, with what holds for requests that do not say otherwise."""
    sampling = reasoner.sampling
    entry = {"id": reasoner.model, "object": "model", "created": 0, "owned_by": "xreasoner"}
    budgets = {"thinking_budget": sampling.thinking_budget, "answer_budget": sampling.answer_budget}
    return {**entry, "max_model_len": context(reasoner.engine), **budgets, "temperature": sampling.temperature}


# --- reading ---------------------------------------------------------------------------------------------------------


async def _read(request: Request, desk: Desk, guard: Guard, rules: RequestRules) -> ChatRequest:
    """A request's body. Raises `HTTPException` and `UserError` for what is wrong with it."""
    with desk.arrival() as count:
        body = await _json(request, desk, count)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(desk.readers, parse_request, body, desk.reasoner, guard, rules)


async def _json(request: Request, desk: Desk, count: Callable[[int], None]) -> Any:
    """A body's JSON, within the limits. count: what its bytes are reported to."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type: found {kind[:60]!r}, expected application/json")
    raw = await _body(request, desk.limits.max_body, desk.limits.body_seconds, count)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as wrong:
        raise UserError(f"body: not JSON ({_why_not_json(wrong)})") from None


def _why_not_json(wrong: Exception) -> str:
    if isinstance(wrong, json.JSONDecodeError):
        return f"{wrong.msg} at character {wrong.pos}"
    if isinstance(wrong, UnicodeDecodeError):
        return "not UTF-8"
    return "nested too deep" if isinstance(wrong, RecursionError) else str(wrong).partition(";")[0]


async def _body(request: Request, most: int, seconds: float, count: Callable[[int], None]) -> bytes:
    """Read no more than is allowed, in the time that is allowed."""
    said = request.headers.get("content-length", "0")
    if not said.isdigit() or int(said) > most:
        raise HTTPException(413, f"the body is longer than {most} bytes")
    found = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                count(len(chunk))
                found += chunk
                if len(found) > most:
                    raise HTTPException(413, f"the body is longer than {most} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:.0f} s") from None
    return bytes(found)


# --- answering -------------------------------------------------------------------------------------------------------


async def _whole(
    request: Request,
    desk: Desk,
    asked: ChatRequest,
    shown: Callable[[Desk, ChatRequest, list[Completion], Decision | None], dict[str, Any]] | None = None,
) -> Response:
    """The reply in one piece; a client that goes away meanwhile ends the work."""

    async def work() -> dict[str, Any]:
        async with desk.place():
            completions: list[Completion] = []
            async for event in desk.run(asked.request, streamed=False):
                if isinstance(event, list):
                    completions = event
            decision = await _decided(desk, asked, completions, required=shown is not None)
        return (shown or _chat_body)(desk, asked, completions, decision)

    found = await _unless_gone(request, work())
    if found is None:
        return Response(status_code=499)  # nobody reads it
    return JSONResponse(found | _ignored(asked), headers=_ignored_header(asked))


IGNORED_HEADER = "x-xreasoner-ignored-fields"


def _ignored(asked: ChatRequest) -> dict[str, Any]:
    return {"ignored_fields": list(asked.ignored)} if asked.ignored else {}


def _ignored_header(asked: ChatRequest) -> dict[str, str]:
    """Names are ASCII already (`openai_schema.readable_name`)."""
    return {IGNORED_HEADER: ", ".join(asked.ignored)[:4000]} if asked.ignored else {}


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What the work makes; None where the client goes away before, which ends the work."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _decided(desk: Desk, asked: ChatRequest, completions: list[Completion], required: bool) -> Decision | None:
    """The options' probabilities after the first completion; None where the engine cannot say and need not."""
    if not asked.options:
        return None
    try:
        return await desk.decide(asked.request, completions[0], asked.options)
    except UserError:
        if required:
            raise
        return None


def _chat_body(
    desk: Desk, asked: ChatRequest, completions: list[Completion], decision: Decision | None
) -> dict[str, Any]:
    return reply_body(desk.reasoner, asked, completions, decision)


def _decision_body(
    desk: Desk, asked: ChatRequest, completions: list[Completion], decision: Decision | None
) -> dict[str, Any]:
    (completion,) = completions
    assert decision is not None
    said = {"answer": completion.answer, "reasoning": completion.thought, "exit": completion.exit}
    body = {**head("decision", desk.reasoner.model), **probabilities_body(asked.options, decision), **said}
    return {**body, "usage": usage(completions)}


async def _streamed(request: Request, desk: Desk, asked: ChatRequest) -> Response:
    """Server-sent events. The first one is waited for, so that what is wrong at once has its own status."""
    events = _events(desk, asked)
    first = await _unless_gone(request, anext(events))
    if first is None:
        return Response(status_code=499)

    async def all_of() -> AsyncIterator[str]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return StreamingResponse(
        all_of(), media_type="text/event-stream", headers={"cache-control": "no-cache", **_ignored_header(asked)}
    )


async def _events(desk: Desk, asked: ChatRequest) -> AsyncGenerator[str, None]:
    """The events of a reply. What fails after the first is an event too, which ends the stream."""
    opened = False
    try:
        async with aclosing(_reply_events(desk, asked)) as events:
            async for event in events:
                opened = True
                yield event
    except Exception as found:
        if not opened:
            raise
        yield _event(json.loads(bytes(refusal(found).body)))


async def _reply_events(desk: Desk, asked: ChatRequest) -> AsyncGenerator[str, None]:
    """A chunk for every piece of text, told apart into thought and answer, then how each sample ended."""
    begin = head("chat.completion.chunk", desk.reasoner.model)

    def chunk(sample: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": sample, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        first = _ignored(asked) if "role" in delta else {}
        return _event({**begin, "choices": [choice], **first})

    renderers = [ReplyRenderer() for _ in range(asked.request.n)]
    completions: list[Completion] = []
    opened = False
    async with desk.place():
        async with aclosing(desk.run(asked.request, streamed=True)) as running:
            async for event in running:
                if not opened:
                    opened = True
                    for sample in range(asked.request.n):
                        yield chunk(sample, {"role": "assistant", "content": ""})
                if isinstance(event, list):
                    completions = event
                    continue
                sample, text, tokens = event
                for delta in renderers[sample].feed(text):
                    yield chunk(sample, delta, tokens=tokens)
                    tokens = 0
        decision = await _decided(desk, asked, completions, required=False)
    for sample, (renderer, completion) in enumerate(zip(renderers, completions, strict=True)):
        for delta in renderer.close():
            yield chunk(sample, delta)
        yield chunk(sample, {}, finish_reason(completion), exit=completion.exit)
    if asked.include_usage or decision is not None:
        yield _event(
            {**begin, "choices": [], "usage": usage(completions), **probabilities_body(asked.options, decision)}
        )
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
