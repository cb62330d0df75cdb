"""What is asked of every engine: text and pictures, with budgets that are kept, forced and cut."""

from __future__ import annotations

from dataclasses import replace

from xreasoner.engines.base import Request, Sampling
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks

BUDGETS = {
    "natural": Sampling(thinking_budget=400, answer_budget=64),
    "forced": Sampling(thinking_budget=20, answer_budget=12),
    "truncated": Sampling(thinking_budget=20, answer_budget=1),
}


def cases(budget: str, n: int = 8, seed: int = 5) -> list[Request]:
    text, image = benchmarks.cell("general", "text", n // 2, seed), benchmarks.cell("clinical", "image", n // 2, seed)
    mixed = [problem for pair in zip(text, image, strict=True) for problem in pair]
    return [Request(chat_messages(p, "brief"), p.images, 1, BUDGETS[budget]) for p in mixed]


def answered(question: str) -> Request:
    """A question that is answered also where the turn ends inside the thought."""
    content = question + "\nThink, then answer."
    return Request([{"role": "user", "content": content}], sampling=replace(BUDGETS["natural"], exit_on_end=True))
