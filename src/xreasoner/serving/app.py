"""The routes. A request is read, given a place at the desk, and answered whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from xreasoner.completion import Completion
from xreasoner.decisions import Decision
from xreasoner.engines.base import Request as Asking
from xreasoner.errors import EngineError, ServerError, UserError, XReasonerError
from xreasoner.media import Guard
from xreasoner.problem import LABELS, Problem
from xreasoner.prompts import PROMPTS, chat_messages, default_prompt
from xreasoner.reasoner import Reasoner, context, exit_tokens
from xreasoner.serving.desk import BusyError, Desk, log
from xreasoner.serving.door import ROUTES, Door, error, page
from xreasoner.trace import Splitter
from xreasoner.wire import FIELDS, Fields, chat_body, finish_reason, head, read_chat, read_fields, usage

T = TypeVar("T")

OPTIONS: Fields = {
    "options": (
        lambda value: (
            isinstance(value, list) and all(isinstance(o, str) and o.strip() and len(o) <= 2000 for o in value)
        ),
        "a list of texts of at most 2,000 characters",
    ),
    "prompt": (lambda value: value in (*PROMPTS, "default"), f"default, or one of {', '.join(PROMPTS)}"),
}
"""Ours: the last message's text is the question of a prompt of the grammar, and the options are its options."""
CHAT: Fields = {
    **FIELDS,
    **OPTIONS,
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "stream_options": (
        lambda value: isinstance(value, dict) and set(value) <= {"include_usage"},
        "include_usage alone",
    ),
    "logprobs": (lambda value: isinstance(value, bool), "true or false"),
}
DECISIONS: Fields = {name: rule for name, rule in {**FIELDS, **OPTIONS}.items() if name not in ("n", "stream")}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read."""

    request: Asking
    options: tuple[str, ...]
    stream: bool
    include_usage: bool


def create_app(desk: Desk, guard: Guard, hosts: Iterable[str] | None, key: str | None) -> FastAPI:
    """The service around a desk. guard: what pictures may be; hosts, key: see `door.Door`."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        await asyncio.to_thread(desk.stop)

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, hosts=hosts, key=key, metrics=desk.metrics)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)

    @app.get("/health")
    async def health() -> Response:
        if desk.ready.is_set():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "failed" if desk.error else "loading"}, 503, headers={"retry-after": "2"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    @loaded(desk)
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(desk.reasoner)]})

    @app.post("/v1/chat/completions")
    @loaded(desk)
    async def chat(request: Request) -> Response:
        asked = await _read(request, desk, guard, CHAT)
        return await _streamed(request, desk, asked) if asked.stream else await _whole(request, desk, asked)

    @app.post("/v1/decisions")
    @loaded(desk)
    async def decisions(request: Request) -> Response:
        asked = await _read(request, desk, guard, DECISIONS)
        if len(asked.options) < 2:
            raise UserError("options: is missing; expected a list of two or more texts")
        return await _whole(request, desk, asked, _decision_body)

    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
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
            if not desk.ready.is_set():
                return error(503, "the model is still loading; try again in some seconds", retry=2)
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
        return error(429, "too many requests are here already; try again in a second", "rate_limit_error", retry=1)
    if isinstance(found, ClientDisconnect):  # in the middle of its body
        return Response(status_code=499)
    if isinstance(found, ServerError) and found.status in (400, 413, 422):  # the request's fault, in the server's words
        return error(400, f"the model's server refuses the request: {found.said}")
    if isinstance(found, ServerError | EngineError):  # whose words are for those who run the service
        log.error("%s", found)
        status = 502 if isinstance(found, ServerError) else 503
        return error(status, "what runs the model cannot answer now; the service's log says why", retry=5)
    if isinstance(found, UserError):
        return error(400, str(found), param=_field(str(found)))
    log.error("a request failed", exc_info=found)
    return error(500, str(found) if isinstance(found, XReasonerError) else "the service failed; its log says why")


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


async def _read(request: Request, desk: Desk, guard: Guard, fields: Fields) -> Asked:
    """A request's body. Raises `HTTPException` and `UserError` for what is wrong with it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type: found {kind[:60]!r}, expected application/json")
    with desk.arrival() as count:
        raw = await _body(request, desk.limits.max_body, desk.limits.body_seconds, count)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as wrong:
            raise UserError(f"body: not JSON ({getattr(wrong, 'msg', 'nested too deep, or not UTF-8')})") from None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(desk.readers, understood, body, desk, guard, fields)


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


def understood(body: Any, desk: Desk, guard: Guard, fields: Fields) -> Asked:
    """What a body asks for, within the limits. Raises `UserError` that names the field."""
    given, reasoner, limits = read_fields(body, fields), desk.reasoner, desk.limits
    if given.get("model", reasoner.model) != reasoner.model:
        raise HTTPException(404, f"model: found {given['model'][:60]!r}, expected {reasoner.model}")
    options = tuple(given.pop("options", ()))
    if options and not 2 <= len(options) <= len(LABELS):
        raise UserError(f"options: found {len(options)}, expected 2 to {len(LABELS)}, or none")
    stream, told = bool(given.pop("stream", False)), given.pop("stream_options", {})
    prompt, logprobs = given.pop("prompt", "default" if options else None), bool(given.pop("logprobs", False))
    if logprobs and (stream or not hasattr(reasoner.engine, "loaded")):
        raise UserError("logprobs: only without stream, and from a model in the service's own process")
    sampling = replace(reasoner.sampling, logprobs=logprobs)
    _check_text(given["messages"], context(reasoner.engine))
    closing = partial(exit_tokens, reasoner.engine)
    request = read_chat(given, sampling, guard, reasoner.min_pixels, reasoner.max_pixels, exit_tokens=closing)
    if prompt:
        request = _asked_by(request, reasoner, options, prompt)
    for name, found, most in (
        ("n", request.n, limits.max_samples),
        ("thinking_budget", request.sampling.thinking_budget + request.sampling.answer_budget, limits.max_tokens),
        ("min_pixels", request.min_pixels or 0, limits.max_pixels),
        ("max_pixels", request.max_pixels or 0, limits.max_pixels),
    ):
        if found > most:
            raise UserError(
                f"{name}: found {found}{' with the answer' if 'budget' in name else ''}, at most {most} here"
            )
    return Asked(request, options, stream, bool(told.get("include_usage")))


def _check_text(messages: Any, room: int | None) -> None:
    """Raise `UserError` for text that no tokenizer fits into the context: 20 million characters take it half a minute.

    What is longer than a token ever is on average (16 characters) is refused by its length.
    """
    most = 16 * room if room else 4_000_000
    found = sum(map(_characters, messages))
    if found > most:
        raise UserError(f"messages: {found:,} characters of text; expected at most {most:,}")


def _characters(message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    return sum(len(text) for text in texts if isinstance(text, str))


def _asked_by(request: Asking, reasoner: Reasoner, options: tuple[str, ...], prompt: str) -> Asking:
    """The same request, with the last message put as a prompt of the grammar puts a question."""
    *before, last = request.messages
    parts = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
    question = "".join(part["text"] for part in parts if part["type"] == "text")
    if not question.strip():
        raise UserError("messages: the last one holds no question; expected some text")
    count = sum(part["type"] == "image" for part in parts)
    shown = request.images[len(request.images) - count :]
    name = (reasoner.prompt or default_prompt(reasoner.model, options)) if prompt == "default" else prompt
    problem = Problem("question", question, "", "text", options, tuple(shown))
    return replace(request, messages=[*before, *chat_messages(problem, name)])


# --- answering -------------------------------------------------------------------------------------------------------


async def _whole(
    request: Request,
    desk: Desk,
    asked: Asked,
    shown: Callable[[Desk, Asked, list[Completion], Decision | None], dict[str, Any]] | None = None,
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
    return Response(status_code=499) if found is None else JSONResponse(found)  # 499: nobody reads it


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


async def _decided(desk: Desk, asked: Asked, completions: list[Completion], required: bool) -> Decision | None:
    """The options' probabilities after the first completion; None where the engine cannot say and need not."""
    if not asked.options:
        return None
    try:
        return await desk.decide(asked.request, completions[0], asked.options)
    except UserError:
        if required:
            raise
        return None


def _probabilities(asked: Asked, decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {}
    pairs = zip(LABELS, asked.options, decision.probabilities, strict=False)
    found = [{"label": label, "text": text, "probability": value} for label, text, value in pairs]
    return {"option_probabilities": found, "mass": decision.mass}


def _chat_body(desk: Desk, asked: Asked, completions: list[Completion], decision: Decision | None) -> dict[str, Any]:
    body = chat_body(completions, desk.reasoner.model)
    if asked.request.sampling.logprobs:
        tokenizer: Any = desk.reasoner.engine.loaded.tokenizer  # type: ignore[attr-defined]
        for choice, completion in zip(body["choices"], completions, strict=True):
            choice["logprobs"] = {"content": _logprobs(completion, tokenizer)}
    return body | _probabilities(asked, decision)


def _logprobs(completion: Completion, tokenizer: Any) -> list[dict[str, Any]]:
    """Every token of the whole reply, thought and tags included."""
    texts = [tokenizer.decode([token]) for token in completion.token_ids]
    return [
        {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
        for text, logprob in zip(texts, completion.logprobs, strict=True)
    ]


def _decision_body(
    desk: Desk, asked: Asked, completions: list[Completion], decision: Decision | None
) -> dict[str, Any]:
    (completion,) = completions
    assert decision is not None
    said = {"answer": completion.answer, "reasoning": completion.thought, "exit": completion.exit}
    body = {**head("decision", desk.reasoner.model), **_probabilities(asked, decision), **said}
    return {**body, "usage": usage(completions)}


async def _streamed(request: Request, desk: Desk, asked: Asked) -> Response:
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

    return StreamingResponse(all_of(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _events(desk: Desk, asked: Asked) -> AsyncGenerator[str, None]:
    """A chunk for every piece of text, told apart into thought and answer, then how each sample ended."""
    begin = head("chat.completion.chunk", desk.reasoner.model)

    def chunk(sample: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": sample, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return _event({**begin, "choices": [choice]})

    splitters = [Splitter() for _ in range(asked.request.n)]
    completions: list[Completion] = []
    decision, opened = None, False
    try:
        async with desk.place():
            running = desk.run(asked.request, streamed=True)
            try:
                async for event in running:
                    if not opened:
                        opened = True
                        for sample in range(asked.request.n):
                            yield chunk(sample, {"role": "assistant", "content": ""})
                    if isinstance(event, list):
                        completions = event
                        continue
                    sample, text, tokens = event
                    for delta in _deltas(splitters[sample].feed(text)):
                        yield chunk(sample, delta, tokens=tokens)
                        tokens = 0
            finally:
                await running.aclose()
            decision = await _decided(desk, asked, completions, required=False)
    except Exception as found:
        if not opened:
            raise
        yield _event(json.loads(bytes(refusal(found).body)))
        return
    for sample, (splitter, completion) in enumerate(zip(splitters, completions, strict=True)):
        for delta in _deltas(splitter.close()[0]):
            yield chunk(sample, delta)
        yield chunk(sample, {}, finish_reason(completion), exit=completion.exit)
    if asked.include_usage or decision is not None:
        yield _event({**begin, "choices": [], "usage": usage(completions), **_probabilities(asked, decision)})
    yield "data: [DONE]\n\n"


def _deltas(pieces: Iterable[tuple[str, str]]) -> Iterable[dict[str, str]]:
    """Text outside of all tags belongs to the answer."""
    for label, text in pieces:
        yield {"reasoning": text, "reasoning_content": text} if label == "thought" else {"content": text}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
