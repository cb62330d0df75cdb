"""OpenAI's chat completions, as objects: from a request's body to a `Request`, and from completions to a reply's body.

The fields of a body are listed in `serving.openai_schema`. The messages are read here: what asks for nothing is
accepted, and what would not be honored is refused by name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image

from xreasoner.completion import Completion
from xreasoner.engines.base import Message, Request, Sampling, sized
from xreasoner.errors import UserError
from xreasoner.media import Guard, pictures
from xreasoner.serving.openai_schema import (
    BATCH_FIELDS,
    Fields,
    Problems,
    check_fields,
    readable,
    readable_name,
    unsupported,
)
from xreasoner.trace import Splitter, split

ROLES = ("system", "developer", "user", "assistant")
SAME = (
    *("temperature", "top_p", "top_k", "seed", "thinking_budget", "answer_budget"),
    *("exit_text", "exit_on_repeats", "stop_in_thought"),
)
"""Fields of a body that are fields of `Sampling` too."""
DETAIL_PIXELS = {"low": 512 * 512, "high": 1024 * 1024}
"""Image area that OpenAI's `detail` asks for: `low` at most, `high` at least as the bound; `auto` is as usual."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where an image is, and OpenAI's `detail` for it."""

    url: str
    detail: str = "auto"


def read_chat(
    body: Any,
    sampling: Sampling,
    guard: Guard,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    *,
    exit_tokens: Callable[[str], int] = lambda text: 0,
    model_pixels: float = float("inf"),
    fields: Fields = BATCH_FIELDS,
) -> Request:
    """The request that a body asks for, with its messages as they are.

    Args:
        body: a chat completion request, parsed.
        sampling: what holds where the body is silent.
        guard: what images may be.
        min_pixels: minimum image area where the body is silent; None: the model's own.
        max_pixels: maximum image area, likewise.
        exit_tokens: how many tokens a text that closes the thought takes.
        model_pixels: the largest image area that the checkpoint itself takes; `detail` never asks for more.
        fields: the fields that the body may hold.

    Raises:
        RequestError: names every field that is wrong.
        MediaError: an image cannot be read.
    """
    problems = Problems()
    given = read_fields(body, fields, problems)
    messages, references = read_messages(given["messages"], problems)
    problems.raise_if_any()
    return build_request(
        given, messages, references, sampling, guard, min_pixels, max_pixels,
        exit_tokens=exit_tokens, model_pixels=model_pixels,
    )  # fmt: skip


def read_fields(body: Any, fields: Fields, problems: Problems) -> dict[str, Any]:
    """A body's fields that ask for something. Raises `UserError` where there are no messages to read."""
    if not isinstance(body, Mapping):
        raise UserError(f"body: found {type(body).__name__}, expected an object")
    given = check_fields(body, fields, problems)
    if "messages" not in given:
        if body.get("messages") is None:
            problems.add("messages", "is missing; expected a list of messages")
        problems.raise_if_any()
    return given


def build_request(
    given: Mapping[str, Any],
    messages: list[Message],
    references: Sequence[ImageReference],
    sampling: Sampling,
    guard: Guard,
    min_pixels: int | None,
    max_pixels: int | None,
    *,
    exit_tokens: Callable[[str], int],
    model_pixels: float,
) -> Request:
    """The request of fields and messages that are good. See `read_chat`.

    `max_tokens` and `max_completion_tokens` hold thought, exit text and answer together: the answer keeps its budget,
    or half of what the exit text leaves where that is less.
    """
    changes = {name: given[name] for name in SAME if name in given}
    if "seed" in changes:
        changes["seed"] %= 2**63  # OpenAI's seeds may be negative
    if "top_k" in changes:
        changes["top_k"] = max(0, changes["top_k"])
    stop = given.get("stop", ())
    stop = tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)
    chosen = replace(sampling, **changes, stop=stop)
    images = pictures([reference.url for reference in references], guard)
    least, most = given.get("min_pixels"), given.get("max_pixels")
    if most is None:
        images, most = apply_detail(images, references, max_pixels, model_pixels)
    limit = given.get("max_completion_tokens", given.get("max_tokens", -1))
    return Request(
        messages,
        images,
        int(given.get("n", 1)),
        _capped(chosen, None if limit == -1 else limit, exit_tokens(chosen.exit_text)),
        *sized(least, most, (min_pixels, max_pixels)),
    )


def apply_detail(
    images: Sequence[Image], references: Sequence[ImageReference], default: int | None, model_pixels: float
) -> tuple[tuple[Image, ...], int | None]:
    """The images and the request's maximum area, as `detail` asks for.

    The bound of a request is its most detailed image's; an image with a lower one is made smaller before. Returns None
    as the bound where the default holds: no image has a detail, or only the service behind knows its model's limit.
    """
    if all(reference.detail == "auto" for reference in references):
        return tuple(images), None
    own = model_pixels or float("inf")  # 0: a service of our own behind, which knows its model's limit
    usual = default or own
    areas = {
        "low": min(DETAIL_PIXELS["low"], usual),
        "auto": usual,
        "high": max(min(DETAIL_PIXELS["high"], own), usual),
    }
    bounds = [areas[reference.detail] for reference in references]
    most = max(bounds)
    if not model_pixels or most == float("inf"):
        return tuple(map(_shrunk, images, bounds)), None
    kept = [own if bound == most else bound for bound in bounds]  # the engine resizes the most detailed ones
    return tuple(map(_shrunk, images, kept)), int(most)


def _shrunk(image: Image, area: float) -> Image:
    """The image with at most that area, its aspect ratio kept."""
    found = image.width * image.height
    if found <= area:
        return image
    scale = (area / found) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _capped(sampling: Sampling, most: int | None, exit_tokens: int) -> Sampling:
    """Budgets that add up to at most `most` tokens with the exit text; an answer has one token whatever `most` is."""
    if most is None or sampling.thinking_budget + exit_tokens + sampling.answer_budget <= most:
        return sampling
    left = max(1, most - exit_tokens)
    answer = min(sampling.answer_budget, max(1, left // 2))
    return replace(sampling, answer_budget=answer, thinking_budget=left - answer)


# --- messages --------------------------------------------------------------------------------------------------------

HINTS = ("name", "id", "status", "type", "created", "created_at", "cache_control", "timestamp", "object")
"""Fields of a message that say who wrote it or how to cache it, and change no reply."""
PART_HINTS = ("cache_control", "prompt_cache_breakpoint", "annotations", "id", "uuid")
"""Fields of a content part of the same kind."""
THOUGHTS = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "exit")
"""Fields of an assistant's message in which its thought is given back. Earlier thoughts are not sent again."""


def read_messages(found: Sequence[Any], problems: Problems) -> tuple[list[Message], list[ImageReference]]:
    """Messages with places for images, and where the images are. What is wrong goes to `problems`.

    `developer` is `system`. An assistant's message without content is an empty one; an empty system message asks for
    nothing and is left out.
    """
    messages: list[Message] = []
    references: list[ImageReference] = []
    role: Any = ""
    for k, message in enumerate(found):
        where = f"messages[{k}]"
        role = message.get("role") if isinstance(message, Mapping) else message
        if role not in ROLES or not isinstance(message, Mapping):
            problems.add(f"{where}.role", f"found {readable(role)}, expected one of {', '.join(ROLES)}")
            continue
        content = _content(message, where, references, problems)
        if role in ("system", "developer"):
            if content:
                messages.append({"role": "system", "content": content})
        else:
            messages.append({"role": role, "content": content})
    if role in ROLES and role != "user":
        problems.add("messages", f"the last one has the role {role!r}; expected 'user'")
    elif messages and role == "user" and not messages[-1]["content"]:
        problems.add(f"messages[{len(found) - 1}].content", "is empty; expected a question, an image or both")
    return messages, references


def _content(
    message: Mapping[str, Any], where: str, references: list[ImageReference], problems: Problems
) -> str | list[dict[str, Any]]:
    """A message's content: a text, or a list of parts where it has images."""
    role, content = message["role"], message.get("content")
    known = ("role", "content", *HINTS, *((*THOUGHTS, "refusal") if role == "assistant" else ()))
    _only(message, where, known, problems)
    if role == "assistant" and not content:
        refusal = message.get("refusal")  # what the assistant said in place of an answer
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        problems.add(f"{where}.content", f"found {readable(content)}, expected a text or a list of parts")
        return " "
    parts = [_part(part, f"{where}.content[{j}]", role, references, problems) for j, part in enumerate(content)]
    if role != "user" and all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return [part for part in parts if part.get("text") != ""]


def _only(found: Mapping[str, Any], where: str, known: Sequence[str], problems: Problems) -> None:
    """Unknown fields are problems; one that asks for nothing (null, "", [], {}, false) is not."""
    for name, value in found.items():
        if value and name not in known:
            shown = readable_name(str(name))
            problems.not_honored(f"{where}.{shown}", unsupported(shown, known, f"supported: {', '.join(known[:3])}"))


def _part(part: Any, where: str, role: str, references: list[ImageReference], problems: Problems) -> dict[str, Any]:
    if isinstance(part, str):  # as vLLM takes it
        return {"type": "text", "text": part}
    fields: Mapping[str, Any] = part if isinstance(part, Mapping) else {}
    kind = fields.get("type")
    if kind == "text" and isinstance(fields.get("text"), str):
        _only(fields, where, ("type", "text", *PART_HINTS), problems)
        return {"type": "text", "text": fields["text"]}
    if kind == "refusal" and role == "assistant" and isinstance(fields.get("refusal"), str):
        return {"type": "text", "text": fields["refusal"]}
    if kind == "image_url":
        _only(fields, where, ("type", "image_url", *PART_HINTS), problems)
        found = fields.get("image_url")
        image: Mapping[str, Any] = found if isinstance(found, Mapping) else {"url": found}
        _only(image, f"{where}.image_url", ("url", "detail", "format"), problems)
        if isinstance(image.get("url"), str):
            detail = _detail(image.get("detail"), f"{where}.image_url.detail", problems)
            references.append(ImageReference(image["url"].strip(), detail))
            return {"type": "image"}
    problems.add(where, f"found {readable(part)}, expected a part of type text (text) or image_url (image_url.url)")
    return {"type": "text", "text": ""}


def _detail(detail: Any, where: str, problems: Problems) -> str:
    if detail in ("low", "high"):
        return str(detail)
    if detail not in (None, "", "auto"):
        problems.not_honored(where, f"found {readable(detail)}, expected auto, low or high")
    return "auto"


# --- replies ---------------------------------------------------------------------------------------------------------


class ReplyRenderer:
    """A reply's text as a chat client gets it: pieces of the thought and of the content, without the tags.

    The whole reply is these pieces joined, so a streamed and a whole reply are equal for every text, however it is cut.
    Spaces around thought and content are left out; spaces at the end of a piece wait for more text.
    """

    def __init__(self) -> None:
        self._splitter = Splitter()

    def feed(self, text: str) -> list[dict[str, str]]:
        """The deltas that this text settles."""
        return _deltas(self._splitter.feed(text))

    def close(self) -> list[dict[str, str]]:
        """The deltas that were held back, now that nothing follows."""
        return _deltas(self._splitter.close()[0])


def _deltas(pieces: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Text outside of all tags belongs to the content."""
    return [
        {"reasoning": text, "reasoning_content": text} if label == "thought" else {"content": text}
        for label, text in pieces
    ]


def rendered_reply(text: str) -> tuple[str, str]:
    """(thought, content) of a whole reply, as its stream gives them."""
    trace = split(text)
    return trace.thought, trace.content


def chat_body(completions: Sequence[Completion], model: str) -> dict[str, Any]:
    """A chat completion. The thought is in `reasoning` and `reasoning_content`; how it ended in `exit`."""
    choices = [_choice(k, completion) for k, completion in enumerate(completions)]
    return {**head("chat.completion", model), "choices": choices, "usage": usage(completions)}


def head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Tokens, over both passes where a thought was ended by force."""
    thought = sum(completion.thought_tokens for completion in completions)
    completion_tokens = thought + sum(completion.answer_tokens for completion in completions)
    return {
        "prompt_tokens": completions[0].prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": completions[0].prompt_tokens + completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


FINISH_REASONS = {"natural": "stop", "forced": "stop", "refused": "content_filter"}
"""`exit` → OpenAI's finish_reason; `length` for the others."""


def finish_reason(completion: Completion) -> str:
    return FINISH_REASONS.get(completion.exit, "length")


def _choice(k: int, completion: Completion) -> dict[str, Any]:
    thought, content = rendered_reply(completion.text)
    message = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "reasoning": thought or None,
        "reasoning_content": thought or None,
    }
    ended = {"finish_reason": finish_reason(completion), "exit": completion.exit}
    return {"index": k, "message": message, "logprobs": None, **ended}
