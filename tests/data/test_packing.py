"""Examples as token ids, batches with little padding, and the proof that rows do not see each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from xreasoner.data import packing
from xreasoner.data.sources import Example
from xreasoner.models.loading import Loaded
from xreasoner.problem import Problem
from xreasoner.prompts import render

PROBLEM = Problem("p", "What is 1 + 1?", "2", "integer")


def test_ids_are_the_chat_templates(loaded: Loaded) -> None:
    example = Example(PROBLEM, "<think> 1 + 1 = 2 </think> <answer>2</answer>")
    (item,), _ = packing.tokenise(loaded, [example], "brief", 500, "drop", "")
    turns = [
        {"role": "user", "content": [{"type": "text", "text": render(PROBLEM, "brief")}]},
        {"role": "assistant", "content": [{"type": "text", "text": example.response}]},
    ]
    text = loaded.tokenizer.apply_chat_template(turns, tokenize=False)
    assert loaded.tokenizer.decode(item.ids) + "\n" == text
    assert loaded.tokenizer.decode(item.ids[item.prompt :]) == example.response + "<|im_end|>"
    assert list(item.ids) == loaded.tokenizer.encode(text, add_special_tokens=False)[: len(item.ids)]


def test_special_tokens_spelled_in_a_reply_are_text(loaded: Loaded) -> None:
    example = Example(PROBLEM, "<|image_pad|> <|im_end|>")
    (item,), _ = packing.tokenise(loaded, [example], "brief", 500, "drop", "")
    reply = item.ids[item.prompt :]
    assert loaded.model.config.image_token_id not in reply
    assert reply.count(loaded.tokenizer.eos_token_id) == 1
    assert loaded.tokenizer.decode(reply) == example.response + "<|im_end|>"


@pytest.mark.parametrize("policy", ["drop", "close", "cut"])
def test_long_examples_follow_the_policy(loaded: Loaded, policy: Any) -> None:
    example = Example(PROBLEM, "<think> " + "1 + 1 = 2. " * 60 + "</think> <answer>2</answer>")
    items, lengths = packing.tokenise(loaded, [example], "brief", 120, policy, " </think> ")
    found = {"drop": lengths.dropped, "close": lengths.closed, "cut": lengths.cut}
    assert found == {name: int(name == policy) for name in found}
    if policy == "drop":
        assert not items
        return
    text = loaded.tokenizer.decode(items[0].ids)
    assert len(items[0].ids) == 120
    assert ("</think>" in text) == (policy == "close")
    assert text.endswith("</answer><|im_end|>") == (policy == "close")


def test_a_pass_shows_every_example_once_with_little_padding() -> None:
    lengths = [20 + 7 * k % 90 for k in range(640)]
    batches = packing.schedule(lengths, 32, 2.0, seed=3)
    assert batches == packing.schedule(lengths, 32, 2.0, seed=3) != packing.schedule(lengths, 32, 2.0, seed=4)
    assert [len(batch) for batch in batches] == [32] * 40
    for part in (batches[:20], batches[20:]):
        assert Counter(i for batch in part for i in batch) == Counter(range(640))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert sum(lengths[i] for batch in batches for i in batch) / padded > 0.9


@pytest.mark.parametrize("count", [33, 50, 300, 1000])
def test_what_full_batches_would_leave_over_is_learnt_too(count: int) -> None:
    batches = packing.schedule(range(count), 32, 3.0, seed=0)
    assert Counter(i for batch in batches for i in batch) == Counter(3 * list(range(count)))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1


def test_fewer_examples_than_a_batch_end() -> None:
    batches = packing.schedule([5] * 10, 32, 3.0, seed=0)
    assert [sorted(batch) for batch in batches] == [list(range(10))] * 3


def test_chunks_hold_the_limit_and_lose_nothing() -> None:
    lengths = [3, 50, 7, 20, 20, 200]
    parts = list(packing.chunks(range(6), lengths, 100))
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert all(len(part) * max(lengths[i] for i in part) <= 100 for part in parts if len(part) > 1)
