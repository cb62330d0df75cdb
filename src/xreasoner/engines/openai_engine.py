"""Engines behind URLs: any number of OpenAI-compatible servers, used as one.

A request goes to the server with the least in flight. A server that fails is left alone for a while and then tried with
one request; what it was doing goes elsewhere, from the start where nobody has read any of it, and otherwise from where
it stopped. The forced exit is a continued request (`continue_final_message`, which vLLM and SGLang know). A service of
our own (`xreasoner serve`) keeps both budgets itself: it is asked once, and says how the reply ended.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast

import httpx2
from PIL.Image import Image

from xreasoner.completion import Exit
from xreasoner.engines.base import Request
from xreasoner.engines.continuing import ContinuingEngine, Draft, Finish, Piece, parts, plain, seed_of
from xreasoner.engines.failures import check_logprobs
from xreasoner.engines.info import EngineInfo, known_patch_size
from xreasoner.errors import EngineError, ServerError, UserError
from xreasoner.trace import CLOSE, OPEN, thought_opening

TRIES = 8
"""Times that one pass of one request is sent before it is given up."""
BUSY_TRIES = 200
"""Times that servers may answer one pass with "too many requests"."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask to wait (Retry-After); after more it is tried again."""
LONGEST_PAUSE = 8.0
"""Seconds for which a server that failed is left alone, at most; the first time it is half a second."""


class LostError(Exception):
    """A server failed with a request that another one, or the same one later, may answer."""


class BusyError(LostError):
    """A server has too much to do. args: what it said, seconds to wait."""


@dataclass(slots=True)
class Server:
    """One URL and how it is."""

    url: str
    model: str = ""
    context: int | None = None
    vllm: bool = False
    own: bool | None = None
    """Whether it is `xreasoner serve`; None: not known yet."""
    prompt_known: bool = False
    """Whether it has said what its chat template writes where a reply begins, and
    opening: the text with which that opens the reply's thought, "" where it does not."""
    opening: str = ""
    in_flight: int = 0
    failures: int = 0
    down: bool = False
    until: float = 0.0
    seen: float = field(default_factory=time.monotonic)
    error: str = ""

    def room(self, most: int, now: float) -> int:
        """How many requests it may take now: one, to see whether it is back, where it was down."""
        return 0 if now < self.until else (1 if self.down else most) - self.in_flight

    def worked(self) -> None:
        self.failures, self.down, self.seen = 0, False, time.monotonic()

    def failed(self, error: str, dead: bool) -> None:
        self.error = error
        if self.down and time.monotonic() < self.until:
            return  # all that was in flight fails together, which is one failure
        self.failures += 1
        self.down = self.down or dead or self.failures >= 3
        if self.down:
            self.until = time.monotonic() + min(LONGEST_PAUSE, 0.5 * 2 ** (self.failures - 1))


class OpenAIEngine(ContinuingEngine):
    """See `engines.base.Engine`.

    urls: of servers up to and including `/v1`. model: the name that the servers know; their first when left out.
    api_key: sent as a bearer token; from the environment's OPENAI_API_KEY when left out.
    max_in_flight: requests at one server at a time. timeout: seconds of silence, from the request to the first token
    and between two; patience: seconds for which no server may answer at all. patch_size: side
    of an image token in pixels, if the model's name does not tell it. Raises `EngineError` where none does now.
    """

    name = "openai"

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str | None = None,
        *,
        api_key: str | None = None,
        max_in_flight: int = 64,
        timeout: float = 300.0,
        connect_timeout: float = 5.0,
        patience: float = 60.0,
        patch_size: int | None = None,
    ) -> None:
        found = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        if not found or not all(url.startswith(("http://", "https://")) for url in found):
            raise UserError(f"servers {found}; expected addresses such as http://localhost:8000/v1")
        self.servers = [Server(url) for url in dict.fromkeys(found)]
        self.max_in_flight, self.patience, self._model = max_in_flight, patience, model
        self.patch_size = patch_size
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout, connect=connect_timeout),
            limits=httpx2.Limits(max_connections=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        super().__init__()
        self._exits: dict[str, list[tuple[int, str]]] = {}
        self._freed = asyncio.Event()
        self._turn = asyncio.Semaphore(max_in_flight * len(self.servers))
        try:
            self._now(self._look())
        except BaseException:
            self.close()
            raise

    @property
    def context(self) -> int | None:
        """Tokens that prompt and reply may have together, where the servers say."""
        return min((server.context for server in self.servers if server.context), default=None)

    @property
    def info(self) -> EngineInfo:
        """See `engines.base.Engine`. Services of our own resize images themselves."""
        names = [server.model for server in self.servers if server.model]
        is_own = bool(self.servers) and all(server.own for server in self.servers)
        return EngineInfo(
            model_name=names[0] if names else "",
            context_length=self.context,
            max_pixels=0 if is_own else None,
            patch_size=self.patch_size or known_patch_size(names[0] if names else ""),
        )

    async def _close(self) -> None:
        await super()._close()
        await self._client.aclose()

    async def _look(self) -> None:
        """Ask every server which model it has."""

        async def one(server: Server) -> None:
            try:
                await self._describe(server, self._model)
            except LostError as error:
                server.failed(str(error), dead=True)

        await asyncio.gather(*(one(server) for server in self.servers))
        if all(server.down for server in self.servers):
            raise EngineError(f"no server answers: {self._what_failed()}; is it running, and does its URL end in /v1?")

    async def _describe(self, server: Server, model: str | None) -> None:
        with _losses(server):
            response = await self._client.get(server.url + "/models")
        if response.status_code in (404, 405) and model:
            server.model, server.own = model, False  # some servers have no list
            return
        _complain(server, response.status_code, response.headers, response.text)
        with _losses(server):
            entries = _model_entries(response.json())
        names = [entry["id"] for entry in entries]
        if not entries or (model is not None and model not in names):
            raise UserError(f"the server {server.url} has no model {model or ''!r}; {_names_like(model or '', names)}")
        entry = entries[names.index(model) if model else 0]
        server.model, server.context = entry["id"], _context_of(entry)
        server.vllm, server.own = entry.get("owned_by") == "vllm", entry.get("owned_by") == "xreasoner"
        if server.vllm:
            await self._look_at_template(server)
        if any(other.own not in (None, server.own) for other in self.servers):
            raise UserError(f"{self._urls()}: some are xreasoner services and some are not; expected one kind")

    async def _look_at_template(self, server: Server) -> None:
        """Ask vLLM how its chat template begins a reply; the thought may be open from there."""
        messages = [{"role": "user", "content": "?"}]
        whole = await self._tokenize(server, messages=messages, add_generation_prompt=True)
        bare = await self._tokenize(server, messages=messages, add_generation_prompt=False)
        if whole is None or bare is None:
            return
        tail = whole[0][_common(whole[0], bare[0]) :]
        found = await self._ask_root(server, "/detokenize", {"tokens": tail})
        if isinstance(found.get("prompt"), str):
            server.prompt_known, server.opening = True, thought_opening(found["prompt"])

    async def _tokenize(self, server: Server, **what: Any) -> tuple[list[int], list[str]] | None:
        """Ids of a text or a chat by vLLM's tokenizer, and the text of each; None where it does not say."""
        found = await self._ask_root(server, "/tokenize", {"return_token_strs": True, **what})
        ids, texts = found.get("tokens"), found.get("token_strs") or []
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            return None
        return ids, [str(text) for text in texts] if len(texts) == len(ids) else [""] * len(ids)

    async def _ask_root(self, server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """vLLM's own routes beside OpenAI's; {} where they are missing."""
        with _losses(server):
            address = server.url.removesuffix("/v1") + path
            response = await self._client.post(address, json={"model": server.model, **body})
            found = response.json() if response.status_code == 200 else {}
        return found if isinstance(found, dict) else {}

    async def _exit_tokens(self, draft: Draft) -> Sequence[tuple[int, str]] | None:
        """By vLLM's tokenizer, so that the reply's tokens stay known behind a forced exit."""
        text = draft.sampling.exit_text
        if not draft.budget.ids_known:
            return None
        for server in self.servers:
            if server.vllm and text not in self._exits:
                with suppress(LostError):
                    found = await self._tokenize(server, prompt=plain(text), add_special_tokens=False)
                    if found is not None:
                        self._exits[text] = list(zip(*found, strict=True))
        return self._exits.get(text)

    def _urls(self) -> str:
        return ", ".join(server.url for server in self.servers)

    def _what_failed(self) -> str:
        return "; ".join(server.error for server in self.servers if server.error)

    # --- one pass ----------------------------------------------------------------------------------------------------

    async def _finish(self, draft: Draft, tell: Callable[[str], None]) -> Exit:
        async with self._turn:  # thousands may wait here; a second pass does not, while its prefix is still cached
            try:
                exit = await super()._finish(draft, tell)
            except NoContinuingError:
                if not draft.budget.broke_off:
                    raise
                return "truncated"  # there is no answer, and no way to one
        if draft.budget.opening_missed:
            for server in self.servers:  # now it is known how their template begins a reply
                server.opening = server.opening if server.prompt_known else OPEN
                server.prompt_known = True
        return exit

    async def _pass(self, draft: Draft, tokens: int, tell: Callable[[str], None]) -> Finish:
        saved = draft.copy()
        begun = heard = draft.text[: draft.budget.told]

        def note(_: str) -> None:
            nonlocal heard
            told = draft.text[: draft.budget.told]
            if heard.startswith(told):
                return  # written a second time
            if not told.startswith(heard):
                raise EngineError("a server failed in the middle of a reply, and the next one says something else")
            tell(told[len(heard) :])
            heard = told

        failed: list[Server] = []
        busy = 0
        while True:
            server = await self._take(failed)
            try:
                finish = await self._read(server, draft, tokens, note)
                server.worked()
                return finish
            except BusyError as error:
                busy += 1
                server.until = time.monotonic() + error.args[1]
                server.seen = time.monotonic()
                if busy > BUSY_TRIES:
                    raise EngineError(f"{error.args[0]}, {busy} times; try again later") from None
            except LostError as error:
                failed.append(server)
                server.failed(str(error), dead=not isinstance(error, RefusedError))
                if len(failed) >= TRIES:
                    raise EngineError(f"no server could answer, {TRIES} times tried: {error}") from None
            finally:
                self._give_back(server)
            if heard != begun and not server.own:
                return "length"  # goes on from what was read
            _restore(draft, saved.copy())  # one of our own says the same again, which is not told twice

    async def _take(self, failed: Sequence[Server]) -> Server:
        """The server with the least in flight, one that has not failed this request where there is one."""
        while True:
            now = time.monotonic()
            free = [server for server in self.servers if server.room(self.max_in_flight, now) > 0]
            if free:
                chosen = min(free, key=lambda server: (failed.count(server), server.in_flight))
                chosen.in_flight += 1
                return chosen
            if all(server.down for server in self.servers) and now - max(s.seen for s in self.servers) > self.patience:
                raise EngineError(f"no server has answered for {self.patience:.0f} s: {self._what_failed()}")
            waits = [server.until - now for server in self.servers if server.until > now]
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, min([*waits, 1.0]))):
                    await self._freed.wait()

    def _give_back(self, server: Server) -> None:
        server.in_flight -= 1
        self._freed.set()
        self._freed = asyncio.Event()

    async def _read(self, server: Server, draft: Draft, tokens: int, tell: Callable[[str], None]) -> Finish:
        """One pass at one server. Raises `LostError` where it fails on the way."""
        if not server.model:  # it did not answer at the beginning
            await self._describe(server, self._model)
        budget = draft.budget
        if not budget.tokens and not budget.was_forced:
            budget.open_thought("" if server.own else server.opening, bool(server.own) or server.prompt_known)
            if budget.exit_due:
                return "length"  # the prompt has opened a thought that there is no budget for
        counted, begin = budget.sampled, len(draft.text)
        async with aclosing(self._stream(server, draft, tokens)) as pieces:
            async for piece in pieces:
                check_logprobs(
                    piece.logprobs, f"after {draft.budget.sampled} tokens of sample {draft.sample} at {server.url}"
                )
                draft.add(piece)
                if budget.was_forced and draft.text[begin:].lstrip().startswith(OPEN):
                    budget.text = draft.text[:begin]
                    raise _no_continuing(server, "it begins a new reply instead")
                draft.tell(tell)
                if piece.total is not None:
                    budget.correct(counted + piece.total, piece.thought)
                if budget.dropped and not server.own:
                    return "length"
                if piece.finish is not None:
                    return piece.finish
                if not server.own and budget.interrupts(counted + tokens):
                    return "length"  # the server would continue
        raise LostError(f"{server.url} ended its reply without a word how")

    async def _stream(self, server: Server, draft: Draft, tokens: int) -> AsyncGenerator[Piece, None]:
        await self._know_prompt(server, draft)
        body = await asyncio.to_thread(self._body, server, draft, tokens)
        path = "/completions" if isinstance(body.get("prompt"), list) else "/chat/completions"
        finish, total, thought, empty, done = None, None, None, True, False
        with _losses(server):
            async with self._client.stream("POST", server.url + path, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    if is_refused_prompt(response.text):
                        yield Piece("", finish="refused")
                        return
                    if draft.budget.written and response.status_code in (400, 422):
                        raise _no_continuing(server, _message(response.text))
                    _complain(server, response.status_code, response.headers, response.text)
                async for event in events(server, response):
                    if event is END:
                        done = True
                        break
                    usage = event.get("usage") or {}
                    total = usage.get("completion_tokens", total)
                    if server.own:
                        thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", thought)
                    draft.prompt_tokens = draft.prompt_tokens or usage.get("prompt_tokens") or 0
                    draft.prompt_ids = draft.prompt_ids or tuple(event.get("prompt_token_ids") or ())
                    for choice in event.get("choices") or []:
                        finish = (choice.get("exit") if server.own else finish_of(choice)) or finish
                        piece = _piece(draft, choice)
                        if piece.text or piece.tokens:
                            empty = False
                            yield piece
        if finish is None and done and not empty:  # the server says that it is done, and not how
            finish = "length" if total is not None and total >= tokens else "stop"
        if finish in (None, "lost", "aborted"):
            raise LostError(f"{server.url} cut the connection in the middle of a reply")
        if empty and not total and finish != "refused":
            raise LostError(f"{server.url} answered with nothing at all")
        yield Piece("", finish=cast(Finish, finish), total=total, thought=thought)

    async def _know_prompt(self, server: Server, draft: Draft) -> None:
        """Have the prompt's tokens for a reply that is continued, where vLLM gives them (not with images)."""
        if server.vllm and draft.budget.written and not draft.prompt_ids and not draft.request.images:
            messages = self._prompt(server, draft.request)["messages"]
            found = await self._tokenize(server, messages=messages, add_generation_prompt=True)
            draft.prompt_ids = tuple(found[0]) if found else ()

    def _body(self, server: Server, draft: Draft, tokens: int) -> dict[str, Any]:
        sampling, budget = draft.sampling, draft.budget
        body: dict[str, Any] = {
            **self._reply_so_far(server, draft),
            "max_tokens": tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed_of(sampling, draft.sample, budget.sampled),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.logprobs:
            body["logprobs"] = 1 if "prompt" in body else True
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if server.own:  # it keeps both budgets itself, and knows the thought; others would stop inside it
            del body["max_tokens"]
            names = ("thinking_budget", "answer_budget", "exit_text", "exit_on_repeats")
            body |= {name: getattr(sampling, name) for name in names}
            if sampling.stop:
                body |= {"stop": list(sampling.stop), "stop_in_thought": sampling.stop_in_thought}
            body["prompt"] = "none"  # the messages have been through the prompt already
        if server.vllm:  # it would take these from the checkpoint's generation_config.json
            body |= {"top_k": sampling.top_k, "repetition_penalty": 1.0, "return_token_ids": True}
            body["skip_special_tokens"] = False  # the tags may be special tokens
        return body

    def _reply_so_far(self, server: Server, draft: Draft) -> dict[str, Any]:
        """The prompt and what is written of the reply: as tokens where they are known, which is exact.

        As text, the server tokenizes the reply again, and its tokens are no longer those that were sampled.
        """
        budget = draft.budget
        if server.vllm and budget.written and budget.ids_known and draft.prompt_ids and not draft.request.images:
            return {"model": server.model, "prompt": [*draft.prompt_ids, *budget.ids]}
        budget.ids_known &= not budget.written
        return self._prompt(server, draft.request, budget.written)

    def _prompt(self, server: Server, request: Request, given: str = "") -> dict[str, Any]:
        """The prompt as a chat. given: the beginning of the reply, without what the template writes itself."""
        shown = [self._resized(image, request) for image in request.images]
        images = iter(shown)
        messages = [
            {**message, "content": [_part(part, images) for part in parts(message)]}
            if not isinstance(message["content"], str)
            else {**message, "content": plain(message["content"])}
            for message in request.messages
        ]
        body: dict[str, Any] = {"model": server.model, "messages": messages}
        if server.own and shown and (request.min_pixels or request.max_pixels):  # as they are now, so they stay
            sizes = [image.width * image.height for image in shown]
            body |= {"min_pixels": min(sizes), "max_pixels": max(sizes)}
        if given:
            thought, closed, rest = plain(given).partition(CLOSE)
            if server.opening and closed:  # such a template writes the thought itself, from a field of its own
                messages.append(
                    {"role": "assistant", "reasoning_content": thought, "reasoning": thought, "content": rest}
                )
            else:
                messages.append({"role": "assistant", "content": plain(given)})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body

    # --- scores ------------------------------------------------------------------------------------------------------

    def score(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        """See `engines.base.Engine`. Needs vLLM's `prompt_logprobs`; raises `UserError` where they are missing."""
        if not all(continuations):
            raise UserError("a continuation to score is empty; expected some text")
        self._check(request)
        if any(server.own for server in self.servers):
            raise UserError("our own service gives option probabilities itself; ask it at /v1/decisions")
        found: list[float] = self._now(self._scores(request, given, continuations)) if continuations else []
        return found

    async def _scores(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        texts = [given, *(given + continuation for continuation in continuations)]
        rows = await asyncio.gather(*(self._prompt_logprobs(request, text) for text in texts))
        shared = min(_common(rows[0][0], ids) for ids, _ in rows[1:])
        return [sum(logprobs[shared:]) for _, logprobs in rows[1:]]

    async def _prompt_logprobs(self, request: Request, text: str) -> tuple[list[int], list[float]]:
        """Ids and log-probabilities of all tokens of the prompt with `text` behind it (the first has none: 0)."""
        failed: list[Server] = []
        while True:
            server = await self._take(failed)
            try:
                if not server.model:
                    await self._describe(server, self._model)
                path, body = await self._to_score(server, request, text.removeprefix(server.opening))
                body |= {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
                with _losses(server):
                    response = await self._client.post(server.url + path, json=body)
                _complain(server, response.status_code, response.headers, response.text)
                with _losses(server):
                    found = response.json()
                    entries = found.get("prompt_logprobs") or (found.get("choices") or [{}])[0].get("prompt_logprobs")
                server.worked()
                break
            except BusyError as error:
                server.until = time.monotonic() + error.args[1]
            except LostError as error:
                failed.append(server)
                server.failed(str(error), dead=not isinstance(error, RefusedError))
                if len(failed) >= TRIES:
                    raise EngineError(f"no server could answer, {TRIES} times tried: {error}") from None
            finally:
                self._give_back(server)
        if not entries:
            raise UserError(
                f"the server {server.url} does not give prompt_logprobs, which option probabilities need; vLLM does"
            )
        pairs = [next(iter(entry.items())) if entry else ("-1", {"logprob": 0.0}) for entry in entries]
        logprobs = [float(value["logprob"]) for _, value in pairs]
        check_logprobs(logprobs, f"of a prompt with an option at {server.url}")
        return [int(token) for token, _ in pairs], logprobs

    async def _to_score(self, server: Server, request: Request, text: str) -> tuple[str, dict[str, Any]]:
        """Route and body for a prompt with the beginning of a reply; a template that opens the thought needs tokens."""
        body = await asyncio.to_thread(self._prompt, server, request, text)
        if server.opening and server.vllm and not request.images:
            prompt = await self._tokenize(server, messages=body["messages"][:-1], add_generation_prompt=True)
            reply = await self._tokenize(server, prompt=plain(text), add_special_tokens=False)
            if prompt is not None and reply is not None:
                return "/completions", {"model": server.model, "prompt": [*prompt[0], *reply[0]]}
        return "/chat/completions", body


class RefusedError(LostError):
    """A server answered with an error of its own: it runs."""


def _model_entries(body: Any) -> list[dict[str, Any]]:
    """The models of a server's list, in OpenAI's form or bare (Together's); Ollama without models has null."""
    entries = body if isinstance(body, list) else body["data"] or []
    return [entry for entry in entries if isinstance(entry.get("id"), str)]


def _context_of(entry: Mapping[str, Any]) -> int | None:
    """The context length that vLLM, OpenRouter or LM Studio gives with a model."""
    names = ("max_model_len", "context_length", "loaded_context_length", "max_context_length")
    lengths = (entry.get(name) for name in names)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def _names_like(name: str, names: Sequence[str]) -> str:
    """The nearest of a server's models, which may be hundreds."""
    near = get_close_matches(name, names, n=3, cutoff=0.3) if name else []
    shown = near or list(names[:3])
    more = f" (of {len(names)})" if len(names) > len(shown) else ""
    return f"it has {', '.join(shown) or 'none'}{more}"


def _restore(draft: Draft, saved: Draft) -> None:
    for name in Draft.__dataclass_fields__:
        setattr(draft, name, getattr(saved, name))


@contextmanager
def _losses(server: Server) -> Iterator[None]:
    """What a connection or a reply may suffer, as `LostError`."""
    try:
        yield
    except httpx2.TimeoutException:
        raise LostError(f"{server.url} did not answer in time") from None
    except httpx2.HTTPError as error:
        raise LostError(f"{server.url} cannot be reached, or cut the connection ({type(error).__name__})") from None
    except httpx2.InvalidURL as error:
        raise UserError(f"the server's address {server.url!r}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise LostError(f"{server.url} answered with what is no reply ({type(error).__name__})") from None


def _message(text: str) -> str:
    """What a server's error says, in one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = str(found.get("message") or found.get("detail") or found) if isinstance(found, dict) else str(found)
    except ValueError:
        pass
    return " ".join(text.split())[:300] or "no words"


def _complain(server: Server, status: int, headers: Any, text: str) -> None:
    """Raise what a reply's status stands for."""
    if status == 200:
        return
    words = _message(text)
    said = f"{server.url}: {words} (status {status})"
    if _is_out_of_quota(text):  # a 429 that no waiting changes
        raise ServerError(f"{said}; expected an account with quota left", status, words)
    if status == 429 or (status >= 500 and "retry-after" in headers):
        raise BusyError(said, retry_seconds(headers))
    if status >= 500 or status == 408:
        raise RefusedError(said)
    if status in (401, 403):
        mend = "an API key that it accepts (--api-key, or OPENAI_API_KEY)"
        raise ServerError(f"{said}; expected {mend}", status, words)
    if status == 404:
        mend = "an address such as http://localhost:8000/v1, and a model that it has"
        raise ServerError(f"{said}; expected {mend}", status, words)
    code = _error_fields(text).get("code")
    known = code if code in STREAM_STATUS[400] else None
    raise ServerError(f"the server refuses the request: {said}", status, words, known)


def retry_seconds(headers: Mapping[str, str]) -> float:
    """How long a server asks to wait: Retry-After in seconds or as a date, or Azure's retry-after-ms."""
    text, scale = headers.get("retry-after-ms"), 1000.0
    if text is None:
        text, scale = headers.get("retry-after", "1"), 1.0
    try:
        seconds = float(text) / scale
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            seconds = 1.0
    return min(LONGEST_WAIT, max(0.05, seconds)) if seconds == seconds else 1.0


def _error_fields(text: str) -> dict[str, Any]:
    """The fields of an error, wherever a server puts them; {} where it says none."""
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    if isinstance(body, list) and body:  # Google's
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _is_out_of_quota(text: str) -> bool:
    error = _error_fields(text)
    return "insufficient_quota" in (error.get("code"), error.get("type"))


def is_refused_prompt(text: str) -> bool:
    """Whether an error says that a content filter refused the prompt, as Azure's and OpenAI's do."""
    error = _error_fields(text)
    inner = error.get("innererror")
    codes = {error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None}
    return bool(codes & {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})


class NoContinuingError(UserError):
    """A server does not go on with a reply."""


def _no_continuing(server: Server, said: str) -> NoContinuingError:
    return NoContinuingError(
        f"the server {server.url} does not continue a reply ({said}), which the end of a thinking budget needs; "
        "vLLM does (continue_final_message). Or raise the thinking budget"
    )


END: dict[str, Any] = {}
"""The event that stands for `[DONE]`."""
STREAM_STATUS = {
    400: (
        "context_length_exceeded",
        "invalid_request_error",
        "BadRequestError",
        "invalid_prompt",
        "string_above_max_length",
    ),
    401: ("invalid_api_key", "authentication_error", "AuthenticationError"),
    403: ("permission_error", "permission_denied", "PermissionDeniedError"),
    404: ("model_not_found", "not_found_error", "NotFoundError"),
    429: ("rate_limit_exceeded", "rate_limit_error", "overloaded_error", "RateLimitError", "insufficient_quota"),
    413: ("request_too_large",),
}
"""HTTP status → the codes and types that an error inside a stream has in its place; 500 for all others."""


def stream_status(error: Any) -> int:
    """The HTTP status that an error inside a stream stands for."""
    if not isinstance(error, dict):
        return 500
    named = [error.get(name) for name in ("code", "status", "status_code", "type")]
    for value in named:
        number = int(value) if isinstance(value, str) and value.isdigit() else value
        if isinstance(number, int) and not isinstance(number, bool) and 400 <= number < 600:
            return number
    for status, codes in STREAM_STATUS.items():
        if any(isinstance(value, str) and value in codes for value in named):
            return status
    return 500


async def events(server: Server, response: Any) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of a reply, and `END` where the server says that it is done.

    Reads server-sent events as servers write them: comments and keep-alives (`: ping`, an empty `data:`, `data: null`),
    CRLF, an event in several `data:` lines, events without a blank line between them; and a whole JSON reply where
    the server does not stream. Raises what an error among them stands for.
    """
    if response.headers.get("content-type", "").startswith("application/json"):
        await response.aread()
        yield _checked_event(server, json.loads(response.text), "")
        yield END
        return
    held, name = "", ""
    async for line in response.aiter_lines():
        field_, _, data = line.lstrip("\ufeff").partition(":")
        if field_ == "event":
            name = data.strip()
            continue
        if not line.strip():
            name = ""
        if field_ == "error":  # older llama.cpp
            name = "error"
        elif line.startswith("{"):
            data = line
        elif field_ != "data":
            continue  # a blank line, a comment, an id
        data = data.strip()
        if data == "[DONE]":
            yield END
            return
        if not data:
            continue
        try:
            event = json.loads(held + data)
        except ValueError:
            held += data + "\n"  # the rest of it is in the next line
            if len(held) > MOST_HELD:
                raise
            continue
        held = ""
        if event is not None:
            yield _checked_event(server, event, name)
    if held:
        raise LostError(f"{server.url} cut the connection in the middle of an event")


MOST_HELD = 1 << 20
"""Characters of one event."""


def _checked_event(server: Server, event: Any, name: str) -> dict[str, Any]:
    """An event that is no error. Raises what an error stands for."""
    if not isinstance(event, dict):
        raise LostError(f"{server.url} sent {type(event).__name__} in its stream, expected an object")
    error = event.get("error")
    if not error and (name == "error" or event.get("object") == "error"):
        error = event
    if error:
        text = json.dumps({"error": error})
        if is_refused_prompt(text):
            return {"choices": [{"finish_reason": "content_filter"}]}
        _complain(server, stream_status(error), {}, text)
    return event


FINISHES: dict[str, Finish | Literal["lost"]] = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete", "COMPLETE"), "stop"
    ),
    **dict.fromkeys(("length", "max_tokens", "model_length", "MAX_TOKENS", "max_output_tokens"), "length"),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "blocklist", "refusal"), "refused"),
    **dict.fromkeys(("prohibited_content", "spii", "content_policy", "guardrail_intervened"), "refused"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "truncated"),
    **dict.fromkeys(("abort", "aborted", "cancelled", "error", "network_error"), "lost"),
    **dict.fromkeys(("insufficient_system_resource", "overloaded", "timeout"), "lost"),
    "repetition_truncation": "truncated",
}
"""finish_reason → how a pass ended. A call of a tool that was not offered is no answer; nor is an unknown reason."""


def finish_of(choice: Mapping[str, Any]) -> Finish | Literal["lost"] | None:
    """How a choice of a stream says that it ended, if it does."""
    reason = choice.get("finish_reason")
    if not reason:
        return None
    delta = choice.get("delta") or choice.get("message") or {}
    if delta.get("refusal"):
        return "refused"
    reason = str(reason)
    return FINISHES.get(reason, FINISHES.get(reason.lower(), "truncated"))


def _piece(draft: Draft, choice: dict[str, Any]) -> Piece:
    """A choice of a stream, with a thought that the server told apart put back where it belongs."""
    delta = choice.get("delta") or choice.get("message") or {}
    reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
    content = _content_text(delta.get("content")) or delta.get("refusal") or choice.get("text") or ""
    text = reasoning
    if reasoning and not draft.budget.written:
        draft.reasoning = True
        text = reasoning if draft.budget.open else OPEN + reasoning
    if content:
        text += (CLOSE if draft.reasoning and draft.budget.open and CLOSE not in text else "") + content
    ids = tuple(choice.get("token_ids") or ())
    logprobs, texts = _logprobs(choice.get("logprobs") or {})
    return Piece(text, len(ids) or len(logprobs) or bool(text), ids, logprobs, texts)


def _logprobs(found: dict[str, Any]) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Log-probability and text of each token, in the form of a chat or of a completion."""
    entries = found.get("content")
    if entries is None:
        entries = [
            {"logprob": logprob, "token": token}
            for logprob, token in zip(found.get("token_logprobs") or (), found.get("tokens") or (), strict=True)
        ]
    return tuple(float(entry["logprob"]) for entry in entries), tuple(str(entry.get("token", "")) for entry in entries)


def _content_text(content: Any) -> str:
    """A delta's content; some servers send a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content or ""


def _part(part: dict[str, Any], images: Iterator[Image]) -> dict[str, Any]:
    if part.get("type") != "image":
        return {**part, "text": plain(part["text"])}
    buffer = io.BytesIO()
    next(images).save(buffer, "PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
