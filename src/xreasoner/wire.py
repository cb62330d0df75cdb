"""OpenAI's chat completions, as objects: from a request's body to a `Request`, and from completions to a reply's body.

What a body may hold is listed here; a field that is unknown, or that would not be honoured, is refused by name.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xreasoner.completion import Completion
from xreasoner.engines.base import Message, Request, Sampling, sized
from xreasoner.errors import UserError
from xreasoner.media import Guard, pictures
from xreasoner.trace import CLOSE

ROLES = ("system", "user", "assistant")
Check = Callable[[Any], bool]


def _whole(least: int, most: int = 10**9) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(least: float, most: float) -> Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _texts(value: Any) -> bool:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > 16:
        return False
    return all(isinstance(text, str) and 0 < len(text) <= 256 for text in found)


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
    "stop": (_texts, "a text of at most 256 characters, or a list of at most 16"),
    "n": (_whole(1, 128), "a whole number from 1 to 128"),
    "min_pixels": (_whole(1), "a whole number from 1"),
    "max_pixels": (_whole(1), "a whole number from 1"),
    "stream": (lambda value: value is False, "false"),
    "exit_text": (
        lambda value: isinstance(value, str) and CLOSE in value and len(value) <= 2000,
        f"a text with {CLOSE}",
    ),
    "exit_on_repeats": (lambda value: isinstance(value, bool), "true or false"),
    "stop_in_thought": (lambda value: isinstance(value, bool), "true or false"),
    "frequency_penalty": (lambda value: value == 0, "0: penalties are not applied here"),
    "presence_penalty": (lambda value: value == 0, "0: penalties are not applied here"),
    "user": (lambda value: isinstance(value, str), "a text"),
}
"""field → (is the value good, what was expected). `user` says who asks and changes nothing."""
SAME = (
    *("temperature", "top_p", "top_k", "seed", "thinking_budget", "answer_budget"),
    *("exit_text", "exit_on_repeats", "stop_in_thought"),
)
Fields = Mapping[str, tuple[Check, str]]


def read_chat(
    body: Any,
    sampling: Sampling,
    guard: Guard,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    fields: Fields = FIELDS,
    exit_tokens: Callable[[str], int] = lambda text: 0,
) -> Request:
    """The request that a body stands for; what it leaves out is as given here.

    `max_tokens` (or `max_completion_tokens`) are thinking, exit text and answer together: the answer keeps its budget,
    or half of what the exit text leaves where that is less. exit_tokens: how many tokens a text that closes the thought
    takes. Raises `UserError` that names the field.
    """
    given = read_fields(body, fields)
    messages, references = read_messages(given["messages"])
    changes = {name: given[name] for name in SAME if name in given}
    stop = given.get("stop", ())
    chosen = replace(sampling, **changes, stop=(stop,) if isinstance(stop, str) else tuple(stop))
    return Request(
        messages,
        pictures(references, guard),
        given.get("n", 1),
        _capped(chosen, given.get("max_completion_tokens", given.get("max_tokens")), exit_tokens(chosen.exit_text)),
        *sized(given.get("min_pixels"), given.get("max_pixels"), (min_pixels, max_pixels)),
    )


def read_fields(body: Any, fields: Fields = FIELDS) -> dict[str, Any]:
    """A body's fields that are not null. Raises `UserError` that names the one that is unknown or wrong."""
    if not isinstance(body, Mapping):
        raise UserError(f"body: found {type(body).__name__}, expected an object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{ascii(name)[1:-1][:60]}: holds half of a surrogate pair; expected text as UTF-8"
            ) from None
        if name not in fields:
            raise UserError(f"{name[:60]}: this field is not known here; expected some of {', '.join(fields)}")
        good, expected = fields[name]
        if not good(value):
            raise UserError(f"{name}: found {str(value)[:60]!r}, expected {expected}")
    if "messages" not in given:
        raise UserError("messages: is missing; expected a list of messages")
    return given


def _capped(sampling: Sampling, most: int | None, exit_tokens: int) -> Sampling:
    """Budgets that add up to at most `most` tokens with the exit text; an answer has one token whatever `most` is."""
    if most is None or sampling.thinking_budget + exit_tokens + sampling.answer_budget <= most:
        return sampling
    left = max(1, most - exit_tokens)
    answer = min(sampling.answer_budget, max(1, left // 2))
    return replace(sampling, answer_budget=answer, thinking_budget=left - answer)


def read_messages(found: Sequence[Any]) -> tuple[list[Message], list[str]]:
    """Messages with places for pictures, and where the pictures are. Raises `UserError` that names the message."""
    messages: list[Message] = []
    references: list[str] = []
    for k, message in enumerate(found):
        where = f"messages[{k}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise UserError(f"{where}.role: found {str(role)[:60]!r}, expected one of {', '.join(ROLES)}")
        role, content = message["role"], message.get("content")
        _only(message, where, ("role", "content", *(("reasoning", "reasoning_content") if role == "assistant" else ())))
        if not isinstance(content, str | list) or not (content or role == "assistant"):
            raise UserError(f"{where}.content: found {str(content)[:60]!r}, expected a text or a list of parts")
        if isinstance(content, list):
            content = [_part(part, f"{where}.content[{j}]", references) for j, part in enumerate(content)]
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "user":
        raise UserError(f"messages: the last one is of {messages[-1]['role']!r}; expected 'user'")
    return messages, references


def _only(found: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    """Raises `UserError` for a field that is not known; one that says nothing (null, []) is let by."""
    for name, value in found.items():
        if value and name not in known:
            raise UserError(f"{where}.{name[:60]}: this field is not known here; expected {', '.join(known)}")


def _part(part: Any, where: str, references: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        _only(part, where, ("type", "text"))
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        _only(part, where, ("type", "image_url"))
        url = part.get("image_url")
        if isinstance(url, Mapping):
            _only(url, f"{where}.image_url", ("url", "detail"))
            if url.get("detail", "auto") not in (None, "auto"):
                raise UserError(
                    f"{where}.image_url.detail: found {str(url['detail'])[:60]!r}, expected auto; min_pixels and "
                    "max_pixels say how large pictures are"
                )
            url = url.get("url")
        if isinstance(url, str):
            references.append(url)
            return {"type": "image"}
    raise UserError(
        f"{where}: found {str(part)[:60]!r}, expected a part of type text (text) or image_url (image_url.url)"
    )


def chat_body(completions: Sequence[Completion], model: str) -> dict[str, Any]:
    """A chat completion. The thought is in `reasoning` and `reasoning_content`; how it ended in `exit`."""
    choices = [_choice(k, completion) for k, completion in enumerate(completions)]
    return {**head("chat.completion", model), "choices": choices, "usage": usage(completions)}


def head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Tokens, over both passes where a thought was ended by force."""
    thought = sum(completion.thought_tokens for completion in completions)
    said = thought + sum(completion.answer_tokens for completion in completions)
    return {
        "prompt_tokens": completions[0].prompt_tokens,
        "completion_tokens": said,
        "total_tokens": completions[0].prompt_tokens + said,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def finish_reason(completion: Completion) -> str:
    return "stop" if completion.exit in ("natural", "forced") else "length"


def _choice(k: int, completion: Completion) -> dict[str, Any]:
    thought = completion.thought or None
    message = {"role": "assistant", "content": completion.content, "reasoning": thought, "reasoning_content": thought}
    ended = {"finish_reason": finish_reason(completion), "exit": completion.exit}
    return {"index": k, "message": message, "logprobs": None, **ended}
