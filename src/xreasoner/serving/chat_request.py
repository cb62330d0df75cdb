"""A chat request as the service and `batch` read it: its fields, its options, and the prompt that puts its question.

A reasoner was trained under one prompt, so the last user message is put through it unless the request or the service
says `none`: the same question has the same answer from `ask`, the service and `batch`. Earlier turns are sent as they
were written; an assistant's thought among them is left out, as it is where a chat template drops it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from xreasoner.completion import Completion
from xreasoner.decisions import Decision
from xreasoner.engines.base import Message, Request
from xreasoner.errors import RequestError
from xreasoner.media import Guard
from xreasoner.problem import LABELS, Problem
from xreasoner.prompts import chat_messages, default_prompt
from xreasoner.reasoner import Reasoner, context, exit_tokens, most_pixels
from xreasoner.serving.openai_schema import CHAT_FIELDS, Fields, Problems, readable
from xreasoner.trace import CLOSE, split
from xreasoner.wire import build_request, chat_body, read_fields, read_messages


class UnknownModelError(RequestError):
    """The request names a model that is not served."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request that was read.

    Args:
        request: what the engine is asked.
        options: the answer options, if any.
        stream: whether the reply is wanted as a stream of events.
        include_usage: whether a stream ends with its usage.
        ignored: fields that are not honored, where the service is lenient.
    """

    request: Request
    options: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestRules:
    """How requests are read where they do not say it.

    Args:
        prompt: of the last user message: `default` (what the model was trained with), `none`, or a prompt's name.
        lenient: fields that are not honored are ignored and listed in the reply, in place of being refused.
        max_samples: the largest `n`.
        max_tokens: the most tokens of thought and answer of one sample; None for no limit.
        max_pixels: the largest image area that `min_pixels` and `max_pixels` may ask for; None for no limit.
        fields: the fields that a body may hold.
        any_model: a body may name another model than the one that answers.
    """

    prompt: str = "default"
    lenient: bool = False
    max_samples: int = 128
    max_tokens: int | None = None
    max_pixels: int | None = None
    fields: Fields = field(default_factory=lambda: CHAT_FIELDS)
    any_model: bool = False


def parse_request(body: Any, reasoner: Reasoner, guard: Guard, rules: RequestRules) -> ChatRequest:
    """The chat request that a body is.

    Args:
        body: the request's JSON, parsed.
        reasoner: the model that answers, and its defaults.
        guard: what images may be.
        rules: what holds where the body is silent, and its limits.

    Returns:
        The request, ready for the engine.

    Raises:
        RequestError: names every field that is wrong.
        UnknownModelError: the model is not served.
        MediaError: an image cannot be read.
    """
    problems = Problems(rules.lenient)
    given = read_fields(body, rules.fields, problems)
    _check_model(given, reasoner, rules)
    _check_text(given["messages"], context(reasoner.engine), problems)
    messages, references = read_messages(given["messages"], problems)
    options = tuple(given.get("options", ()))
    stream, prompt = bool(given.get("stream", False)), str(given.get("prompt", rules.prompt))
    if options and not 2 <= len(options) <= len(LABELS):
        problems.add("options", f"found {len(options)}, expected 2 to {len(LABELS)}, or none")
    if options and prompt == "none":
        problems.add("options", 'prompt is "none", which does not show them to the model; expected another prompt')
    logprobs = bool(given.get("logprobs", False))
    if logprobs and (stream or not hasattr(reasoner.engine, "loaded")):
        problems.add("logprobs", "only without stream, and from a model in the service's own process")
    _check_limits(given, reasoner, rules, problems)
    problems.raise_if_any()
    request = build_request(
        given,
        messages,
        references,
        replace(reasoner.sampling, logprobs=logprobs),
        guard,
        reasoner.min_pixels,
        reasoner.max_pixels,
        exit_tokens=partial(exit_tokens, reasoner.engine),
        model_pixels=most_pixels(reasoner.engine),
    )
    if prompt != "none":
        request = apply_prompt(request, reasoner, options, prompt)
    include_usage = bool((given.get("stream_options") or {}).get("include_usage"))
    return ChatRequest(request, options, stream, include_usage, tuple(problems.ignored))


def _check_model(given: dict[str, Any], reasoner: Reasoner, rules: RequestRules) -> None:
    model = given.get("model") or reasoner.model
    if model != reasoner.model and not rules.any_model:
        raise UnknownModelError(f"model: found {readable(model)}, expected {reasoner.model}", "model")


def _check_limits(given: dict[str, Any], reasoner: Reasoner, rules: RequestRules, problems: Problems) -> None:
    thinking = given.get("thinking_budget", reasoner.sampling.thinking_budget)
    answer = given.get("answer_budget", reasoner.sampling.answer_budget)
    if "max_tokens" in given or "max_completion_tokens" in given:
        asked = [given.get(name, -1) for name in ("max_completion_tokens", "max_tokens")]
        limit = asked[0] if "max_completion_tokens" in given else asked[1]
        thinking, answer = (min(thinking + answer, limit), 0) if limit > 0 else (thinking, answer)
    for name, found, most in (
        ("n", given.get("n", 1), rules.max_samples),
        ("min_pixels", given.get("min_pixels", 0), rules.max_pixels),
        ("max_pixels", given.get("max_pixels", 0), rules.max_pixels),
    ):
        if most is not None and found > most:
            problems.add(name, f"found {found}, at most {most} here")
    if rules.max_tokens is not None and thinking + answer > rules.max_tokens:
        problems.add("thinking_budget", f"found {thinking + answer} with the answer, at most {rules.max_tokens} here")


def _check_text(messages: Any, room: int | None, problems: Problems) -> None:
    """Text that no tokenizer fits into the context is a problem: 20 million characters take it half a minute.

    What is longer than a token ever is on average (16 characters) is refused by its length.
    """
    most = 16 * room if room else 4_000_000
    found = sum(map(_characters, messages))
    if found > most:
        problems.add(
            "messages", f"{found:,} characters of text; expected at most {most:,}", code="context_length_exceeded"
        )


def _characters(message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    return sum(len(text) for text in texts if isinstance(text, str))


# --- the prompt ------------------------------------------------------------------------------------------------------


def apply_prompt(request: Request, reasoner: Reasoner, options: Sequence[str], prompt: str) -> Request:
    """The same request, with the last user message put as a prompt of the grammar puts a question.

    Args:
        request: with the messages as the client wrote them.
        reasoner: whose prompt and system text hold.
        options: the answer options, if any.
        prompt: a name of `prompts.PROMPTS`, or `default`.

    Raises:
        RequestError: the last message has no text.
    """
    *before, last = request.messages
    name = (reasoner.prompt or default_prompt(reasoner.model, options)) if prompt == "default" else prompt
    if reasoner.system and not any(message["role"] == "system" for message in before):
        before = [{"role": "system", "content": reasoner.system}, *before]
    return replace(request, messages=[*map(_without_thought, before), *_prompted(last, request, options, name)])


def _without_thought(message: Message) -> Message:
    """An earlier turn; the thought of an assistant that was given back with its tags is left out."""
    content = message["content"]
    if message["role"] != "assistant" or not isinstance(content, str) or CLOSE not in content:
        return message
    return {**message, "content": split(content).answer}


def _prompted(last: Message, request: Request, options: Sequence[str], name: str) -> list[Message]:
    content = last["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    kinds = [part["type"] for part in parts]
    question = "".join(part["text"] for part in parts if part["type"] == "text")
    if not question.strip():
        raise RequestError("messages: the last one has no question; expected some text", "messages")
    count = kinds.count("image")
    if _is_interleaved(kinds):
        return _interleaved(parts, options, name)
    images = tuple(request.images[len(request.images) - count :])
    return chat_messages(Problem("question", question, "", "text", tuple(options), images), name)


def _is_interleaved(kinds: Sequence[str]) -> bool:
    """Whether text stands between images, or on both sides of them, so that their places say something."""
    first, last = kinds.index("text"), len(kinds) - kinds[::-1].index("text")
    return "image" in kinds[first:last]


def _interleaved(parts: Sequence[dict[str, Any]], options: Sequence[str], name: str) -> list[Message]:
    """The prompt's message with the images where the client put them between its texts."""
    mark = f"image-{secrets.token_hex(8)}"
    question = "".join(mark if part["type"] == "image" else part["text"] for part in parts)
    (message,) = chat_messages(Problem("question", question, "", "text", tuple(options)), name)
    texts = "".join(part["text"] for part in message["content"]).split(mark)
    content: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for text in texts[1:]:
        content += [{"type": "image"}, {"type": "text", "text": text}]
    return [{**message, "content": [part for part in content if part.get("text") != ""]}]


# --- the reply -------------------------------------------------------------------------------------------------------


def reply_body(
    reasoner: Reasoner, asked: ChatRequest, completions: Sequence[Completion], decision: Decision | None
) -> dict[str, Any]:
    """The chat completion that answers a request, with option probabilities and log-probabilities if asked for."""
    body = chat_body(completions, reasoner.model)
    if asked.request.sampling.logprobs:
        tokenizer: Any = reasoner.engine.loaded.tokenizer  # type: ignore[attr-defined]
        for choice, completion in zip(body["choices"], completions, strict=True):
            choice["logprobs"] = {"content": _logprobs(completion, tokenizer)}
    return body | probabilities_body(asked.options, decision)


def probabilities_body(options: Sequence[str], decision: Decision | None) -> dict[str, Any]:
    """The fields of a reply that say how likely each option is; none where the engine cannot say."""
    if decision is None:
        return {}
    pairs = zip(LABELS, options, decision.probabilities, strict=False)
    rows = [{"label": label, "text": text, "probability": value} for label, text, value in pairs]
    return {"option_probabilities": rows, "mass": decision.mass}


def _logprobs(completion: Completion, tokenizer: Any) -> list[dict[str, Any]]:
    """Every token of the whole reply, thought and tags included."""
    texts = [tokenizer.decode([token]) for token in completion.token_ids]
    return [
        {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
        for text, logprob in zip(texts, completion.logprobs, strict=True)
    ]
