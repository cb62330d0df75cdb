"""The gates that a base must pass before anybody post-trains it, measured on fresh text and drawings."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from xreasoner.benchmarks.statistics import wilson
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.grading import judge
from xreasoner.models.loading import load
from xreasoner.problem import AnswerType, Problem
from xreasoner.prompts import chat_messages
from xreasoner.tiny import benchmarks, lessons
from xreasoner.tiny.world import DOMAINS

BARS = {"reading": 0.97, "recall": 0.95, "arithmetic": 0.97}


def arithmetic(n: int, seed: int) -> list[Problem]:
    """n facts of the kinds that a chain needs."""
    rng, words = Random(f"arithmetic/{seed}"), lessons.all_words()
    problems = []
    for i in range(n):
        asked, answer = lessons.arithmetic_fact(rng, words if i % 2 else ())
        text = answer.strip().removesuffix(".")
        kind: AnswerType = "yesno" if text in ("yes", "no") else "integer"
        problems.append(Problem(f"fact-{i}", asked.strip(), text, kind, source="tiny", family="arithmetic"))
    return problems


def accuracy(engine: TorchEngine, problems: list[Problem], prompt: str = "brief-direct") -> dict[str, Any]:
    """Share of correct answers, greedy, with its interval and the share by family."""
    sampling = Sampling(thinking_budget=64, answer_budget=0)
    requests = [Request(chat_messages(p, prompt), p.images, sampling=sampling) for p in problems]
    replies = [completions[0] for completions in engine.generate(requests)]
    right = [judge(p, reply.text, reply.exit).correct for p, reply in zip(problems, replies, strict=True)]
    families: dict[str, list[bool]] = {}
    for problem, correct in zip(problems, right, strict=True):
        families.setdefault(problem.family, []).append(correct)
    _, low, high = wilson(sum(right), len(right))
    return {
        "accuracy": sum(right) / len(right),
        "n": len(right),
        "low": low,
        "high": high,
        "families": {name: sum(hits) / len(hits) for name, hits in sorted(families.items())},
    }


def measure(folder: Path, *, n: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every gate of a checkpoint's folder: {gate: {accuracy, n, low, high, families}}."""
    engine = TorchEngine(load(str(folder)))
    found = {"arithmetic": accuracy(engine, arithmetic(n, seed))}
    for domain in DOMAINS:
        for modality in ("text", "image"):
            found[f"reading/{modality}/{domain}"] = accuracy(engine, benchmarks.reading(domain, modality, n, seed))
            found[f"recall/{modality}/{domain}"] = accuracy(engine, benchmarks.recall(domain, modality, n, seed))
            found[f"direct/{modality}/{domain}"] = accuracy(engine, benchmarks.cell(domain, modality, n, seed))
    return found


def missed(measured: dict[str, dict[str, Any]]) -> list[str]:
    """The gates below their bars, in words; reading must hold behind every family's question too."""
    lines = []
    for name, result in measured.items():
        bar = BARS.get(name.split("/")[0])
        if bar is None:
            continue
        if result["accuracy"] < bar:
            lines.append(f"{name}: {result['accuracy']:.3f} of {result['n']}, expected at least {bar}")
    return lines
