"""OpenAI's chat completions, as objects: from a request's body to a `Request`, and from completions to a reply's body.

What a body may hold is listed here; a field that is unknown, or that would not be honoured, is refused by name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xreasoner.completion import Completion
from xreasoner.engines.base import Message, Request, Sampling
from xreasoner.errors import UserError
from xreasoner.media import Guard, pictures

ROLES = ("system", "user", "assistant")
Check = Callable[[Any], bool]


def _whole(least: int, most: int = 10**9) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(least: float, most: float) -> Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _texts(value: Any) -> bool:
    found = [value] if isinstance(value, str) else value
    return isinstance(found, list) and len(found) <= 16 and all(isinstance(text, str) and text for text in found)


FIELDS: dict[str, tuple[Check, str]] = {
    "model": (lambda value: isinstance(value, str), "a text"),
    "messages": (lambda value: isinstance(value, list) and len(value) > 0, "a list of messages"),
    "max_tokens": (_whole(1), "a whole number from 1"),
    "max_completion_tokens": (_whole(1), "a whole number from 1"),
    "thinking_budget": (_whole(0), "a whole number from 0"),
    "answer_budget": (_whole(1), "a whole number from 1"),
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (_number(1e-6, 1), "a number above 0, up to 1"),
    "top_k": (_whole(0), "a whole number from 0"),
    "seed": (_whole(0, 2**63 - 1), "a whole number from 0"),
    "stop": (_texts, "a text, or a list of at most 16"),
    "n": (_whole(1, 128), "a whole number from 1 to 128"),
    "min_pixels": (_whole(1), "a whole number from 1"),
    "max_pixels": (_whole(1), "a whole number from 1"),
    "stream": (lambda value: value is False, "false"),
    "user": (lambda value: isinstance(value, str), "a text"),
}
"""field → (is the value good, what was expected). `user` says who asks and changes nothing."""
SAME = ("temperature", "top_p", "top_k", "seed", "thinking_budget", "answer_budget")


def read_chat(
    body: Any,
    sampling: Sampling,
    guard: Guard,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Request:
    """The request that a body stands for; what it leaves out is as given here.

    `max_tokens` (or `max_completion_tokens`) are thinking and answer together: the answer keeps its budget, or half of
    them where that is less. Raises `UserError` that names the field.
    """
    if not isinstance(body, Mapping):
        raise UserError(f"body: found {type(body).__name__}, expected an object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in FIELDS:
            raise UserError(f"{name}: this field is not known here; expected some of {', '.join(FIELDS)}")
        good, expected = FIELDS[name]
        if not good(value):
            raise UserError(f"{name}: found {str(value)[:60]!r}, expected {expected}")
    if "messages" not in given:
        raise UserError("messages: is missing; expected a list of messages")
    messages, references = read_messages(given["messages"])
    changes = {name: given[name] for name in SAME if name in given}
    stop = given.get("stop", ())
    chosen = replace(sampling, **changes, stop=(stop,) if isinstance(stop, str) else tuple(stop))
    return Request(
        messages,
        pictures(references, guard),
        given.get("n", 1),
        _capped(chosen, given.get("max_completion_tokens", given.get("max_tokens"))),
        given.get("min_pixels", min_pixels),
        given.get("max_pixels", max_pixels),
    )


def _capped(sampling: Sampling, most: int | None) -> Sampling:
    """Budgets that add up to at most `most` tokens."""
    if most is None or sampling.thinking_budget + sampling.answer_budget <= most:
        return sampling
    answer = min(sampling.answer_budget, max(1, most // 2))
    return replace(sampling, answer_budget=answer, thinking_budget=most - answer)


def read_messages(found: Sequence[Any]) -> tuple[list[Message], list[str]]:
    """Messages with places for pictures, and where the pictures are. Raises `UserError` that names the message."""
    messages: list[Message] = []
    references: list[str] = []
    for k, message in enumerate(found):
        where = f"messages[{k}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise UserError(f"{where}.role: found {str(role)[:60]!r}, expected one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str | list) or not content:
            raise UserError(f"{where}.content: found {str(content)[:60]!r}, expected a text or a list of parts")
        if isinstance(content, list):
            content = [_part(part, f"{where}.content[{j}]", references) for j, part in enumerate(content)]
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] != "user":
        raise UserError(f"messages: the last one is of {messages[-1]['role']!r}; expected 'user'")
    return messages, references


def _part(part: Any, where: str, references: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str):
            references.append(url)
            return {"type": "image"}
    raise UserError(
        f"{where}: found {str(part)[:60]!r}, expected a part of type text (text) or image_url (image_url.url)"
    )


def chat_body(completions: Sequence[Completion], model: str) -> dict[str, Any]:
    """A chat completion. The thought is in `reasoning` and `reasoning_content`; how it ended in `exit`."""
    thought = sum(completion.thought_tokens for completion in completions)
    said = thought + sum(completion.answer_tokens for completion in completions)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(k, completion) for k, completion in enumerate(completions)],
        "usage": {
            "prompt_tokens": completions[0].prompt_tokens,
            "completion_tokens": said,
            "total_tokens": completions[0].prompt_tokens + said,
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }


def _choice(k: int, completion: Completion) -> dict[str, Any]:
    thought = completion.thought or None
    message = {"role": "assistant", "content": completion.answer, "reasoning": thought, "reasoning_content": thought}
    finish = "stop" if completion.exit in ("natural", "forced") else "length"
    return {"index": k, "message": message, "logprobs": None, "finish_reason": finish, "exit": completion.exit}
