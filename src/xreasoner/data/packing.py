"""Examples as token ids with a loss mask, in batches with little padding or none.

Padded rows are filled up on the right: under causal attention no real token can see a pad. Packed ones stand one
after another in a single row, and attention stays within each (models/attention.py). `training.leak_check` proves at
the start of every stage that no example sees another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from xreasoner.data.sources import Example
from xreasoner.models import attention
from xreasoner.models.attention import Documents
from xreasoner.models.loading import Loaded, encode
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.trace import ANSWER_CLOSE, ANSWER_OPEN, CLOSE, OPEN, reply_after


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example: ids [T], and how many of them are the prompt (the rest is learnt)."""

    ids: tuple[int, ...]
    prompt: int


@dataclass(slots=True)
class Lengths:
    """What the length limit did."""

    total: int = 0
    dropped: int = 0
    closed: int = 0
    cut: int = 0
    longest: int = 0


def tokenise(
    loaded: Loaded,
    examples: Sequence[Example],
    prompt: str,
    max_length: int,
    longer: Literal["drop", "close", "cut"],
    exit_text: str,
) -> tuple[list[Tokens], Lengths]:
    """Ids by the chat template, the reply ended by the tokenizer's end of turn; the policy for longer ones applied.

    Prompt and reply are encoded apart, as they are when the model is asked, so that the prompt's ids are a prefix.
    A special token that a reply spells out (`<|im_end|>`) is text, but for the tags, where the checkpoint has tokens
    for them. A chat template that opens the thought has written its `<think>` already.
    """
    lengths, found = Lengths(), []
    tokenizer = loaded.tokenizer
    for example in examples:
        start_prompt = encode(loaded, chat_messages(example.problem, example.prompt or prompt))
        start, response = start_prompt.input_ids.tolist(), reply_after(start_prompt.opening, example.response)
        reply = [*reply_ids(tokenizer, response), tokenizer.eos_token_id]
        lengths.total += 1
        lengths.longest = max(lengths.longest, len(start) + len(reply))
        if len(start) + len(reply) > max_length:
            has_thought = bool(start_prompt.opening) or response.startswith(OPEN)
            kept = _shorten(tokenizer, response, has_thought, max_length - len(start), longer, exit_text)
            if kept is None:
                lengths.dropped += 1
                continue
            lengths.closed += longer == "close"
            lengths.cut += longer == "cut"
            reply = kept
        found.append(Tokens(tuple(start + reply), len(start)))
    return found, lengths


def reply_ids(tokenizer: Any, text: str) -> list[int]:
    """A reply's ids. Its tags are the checkpoint's own tokens where it has them; other special tokens are text."""
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    own = [tag for tag in (OPEN, CLOSE, ANSWER_OPEN, ANSWER_CLOSE) if tag in special]
    if not own:
        return _text_ids(tokenizer, text)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(own)})", text):
        ids += [tokenizer.convert_tokens_to_ids(part)] if part in own else _text_ids(tokenizer, part) if part else []
    return ids


def _text_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return ids


def _shorten(
    tokenizer: Any, response: str, has_thought: bool, room: int, longer: str, exit_text: str
) -> list[int] | None:
    """The reply in at most `room` tokens by the policy, or None to drop it."""
    if longer == "cut" and room > 0:
        return reply_ids(tokenizer, response)[:room]
    thought, tag, answer = response.partition(CLOSE)
    if longer == "close" and tag and has_thought:
        end = [*reply_ids(tokenizer, exit_text + answer.lstrip()), tokenizer.eos_token_id]
        left = room - len(end)
        if left > 0:
            return reply_ids(tokenizer, thought)[:left] + end
    return None


def askable(
    loaded: Loaded, problems: Sequence[Problem], prompt: str, longest: int, exit_text: str
) -> tuple[list[Problem], list[int]]:
    """The problems whose prompt has at most `longest` tokens, and leaves room in the model for closing the thought; and
    the tokens of every prompt.
    """
    most = min(longest, loaded.positions - len(reply_ids(loaded.tokenizer, exit_text)) - 1)
    counts = [len(encode(loaded, chat_messages(problem, prompt)).input_ids) for problem in problems]
    kept = [problem for problem, count in zip(problems, counts, strict=True) if count <= most]
    return kept, counts


def digest(items: Sequence[Tokens]) -> str:
    """sha256 of the training data as the model sees it."""
    found = hashlib.sha256()
    for item in items:
        found.update(repr((item.ids, item.prompt)).encode())
    return found.hexdigest()


def schedule(lengths: Sequence[int], batch: int, epochs: float, seed: int) -> list[list[int]]:
    """Indices of each step's batch: shuffled, then neighbours in length within a window of eight batches.

    Each pass has every example once, in batches of like size and at most `batch`: what a cut into full ones would
    leave over is the longest of a window, and of few examples the same ones in every pass.
    """
    count = -(-len(lengths) // batch)
    ends = [k * len(lengths) // count for k in range(count + 1)]
    steps = max(1, round(epochs * count))
    rng = Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        for first in range(0, count, 8):
            begin, *rest = ends[first : first + 9]
            window = sorted(order[begin : rest[-1]], key=lambda i: lengths[i])
            parts = [window[a - begin : b - begin] for a, b in pairwise((begin, *rest))]
            rng.shuffle(parts)
            batches += parts
    return batches[:steps]


def chunks(items: Sequence[int], lengths: Sequence[int], most_tokens: int, packed: bool = False) -> Iterator[list[int]]:
    """Parts of a batch in order of length, each of at most `most_tokens` tokens, padding included."""
    part: list[int] = []
    held = 0
    for i in sorted(items, key=lambda i: lengths[i]):
        held = held + lengths[i] if packed else (len(part) + 1) * lengths[i]
        if part and held > most_tokens:
            yield part
            part, held = [], lengths[i]
        part.append(i)
    if part:
        yield part


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids [B, T], padded on the right with 0."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)


def flat(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids [1, T], one row after the other."""
    return torch.tensor([[token for row in rows for token in row]], device=device)


def hidden_states(model: Any, ids_BT: Tensor, documents: Documents | None = None) -> Tensor:
    """The language model's last hidden states [B, T, D] for text; the vision tower is not called.

    documents: where those of a packed row [1, T] lie; the model must have been made `ready_to_pack`.
    """
    language = model.model.language_model
    if documents is None:
        hidden: Tensor = language(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden
    hidden = language(
        input_ids=ids_BT,
        position_ids=documents.positions.expand(3, 1, -1),
        # Positions with three axes and no cache make no family build a mask; `document_attention` needs none.
        attention_mask=None,
        documents=documents,
        use_cache=False,
    ).last_hidden_state
    return hidden


def ready_to_pack(model: Any) -> None:
    """Let the language model's attention take documents; without them it computes what it did."""
    model.model.language_model.config._attn_implementation = attention.NAME
