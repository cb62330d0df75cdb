"""Run benchmarks with an engine, judge, and store every reply; what the results show is summary.py's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.store import Condition, ResultStore, Row, result_key, sampling_key, save_picture
from xreasoner.benchmarks.summary import group_of
from xreasoner.completion import Completion
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.grading import judge
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.registry import BENCHMARKS, resolve

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class _Item:
    """One problem of one benchmark and the keys of its samples."""

    bench: str
    problem: Problem
    keys: tuple[str, ...]


def evaluate(
    engine: Engine,
    benches: list[str],
    out: Path,
    *,
    stage: str,
    model_hash: str,
    prompt: str,
    n: int,
    seed: int,
    sampling: Sampling,
    condition: Condition = "seen",
    samples: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Judge n problems of each benchmark, `samples` times each; results go to out/eval/STAGE/results.jsonl.

    What the store holds already (same stage, model, prompt, sampling and seed) is not run again. condition:
    whether items are shown their pictures, none ("blind"), or another item's ("swapped"); under the last two, text
    problems are left out. progress(done, total) counts completions. Returns the rows asked for, in the order of
    the benchmarks. Raises `UserError` for an unknown benchmark.
    """
    store = ResultStore(out / "eval" / stage / "results.jsonl")
    base = {"stage": stage, "model": model_hash, "condition": condition, "prompt": prompt, "seed": seed}
    base["sampling"] = sampling_key(sampling)
    budgets = {name: getattr(sampling, name) for name in ("thinking_budget", "answer_budget", "temperature")}
    items = list(_items(benches, n, seed, samples, base))
    keys = [key for item in items for key in item.keys]
    done = store.done()
    missing = [item for item in items if not done.issuperset(item.keys)]
    finished = len(keys) - sum(len(item.keys) for item in missing)
    if progress:
        progress(finished, len(keys))
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]

        def keep(index: int, completions: list[Completion], chunk: list[_Item] = chunk) -> None:
            nonlocal finished
            item = chunk[index]
            picture = save_picture(item.problem.images[0], out) if item.problem.images else None
            store.append([_row(item, s, c, {**base, **budgets}, picture) for s, c in enumerate(completions)])
            finished += len(completions)
            if progress:
                progress(finished, len(keys))

        engine.generate([_request(item.problem, prompt, samples, sampling) for item in chunk], keep)
    return store.rows(keys)


def _items(benches: Sequence[str], n: int, seed: int, samples: int, base: Mapping[str, Any]) -> Iterator[_Item]:
    """Every problem to run, with the names of its results."""
    for bench in benches:
        problems: list[Problem] = resolve(BENCHMARKS, "benchmark", bench)(n, seed)
        donors = swaps(problems) if base["condition"] == "swapped" else {}
        for problem in problems:
            if base["condition"] != "seen" and problem.modality != "image":
                continue
            donor = donors.get(problem.id)
            if base["condition"] == "swapped" and donor is None:
                continue
            place = {**base, "condition": f"swapped with {donor.id}"} if donor else base
            keys = tuple(result_key(**place, bench=bench, item=problem.id, sample=s) for s in range(samples))
            yield _Item(bench, _shown(problem, base["condition"], donor), keys)


def _shown(problem: Problem, condition: Condition, donor: Problem | None) -> Problem:
    """The problem as the condition shows it: with its pictures, without, or with as many of the donor's."""
    if donor is not None:
        return replace(problem, images=tuple(islice(cycle(donor.images), len(problem.images))))
    return problem.without_images() if condition == "blind" else problem


def swaps(problems: Sequence[Problem]) -> dict[str, Problem]:
    """For each item with pictures another whose pictures it is shown: the next in the order of a hash of the id
    whose pictures differ. An item that no other differs from is left out.
    """
    ring = [problem for problem in problems if problem.images]
    ring.sort(key=lambda problem: hashlib.sha256(problem.id.encode()).digest())
    pixels = [[picture.tobytes() for picture in problem.images] for problem in ring]
    found: dict[str, Problem] = {}
    for index, problem in enumerate(ring):
        others = (other % len(ring) for other in range(index + 1, index + len(ring)))
        donor = next((other for other in others if pixels[other] != pixels[index]), None)
        if donor is not None:
            found[problem.id] = ring[donor]
    return found


def _request(problem: Problem, prompt: str, samples: int, sampling: Sampling) -> Request:
    return Request(chat_messages(problem, prompt), problem.images, samples, sampling)


def _row(item: _Item, sample: int, completion: Completion, base: Mapping[str, Any], picture: str | None) -> Row:
    """One line of results.jsonl."""
    problem = item.problem
    verdict = judge(problem, completion.text, completion.exit)
    group, name = group_of(item.bench)
    return {
        **base,
        "key": item.keys[sample],
        "sample": sample,
        "bench": item.bench,
        "cell": name if group == "cells" else "",
        "id": problem.id,
        "family": problem.family,
        "domain": problem.domain,
        "modality": problem.modality,
        "question": problem.question,
        "options": list(problem.options),
        "gold": problem.gold,
        "answer_type": problem.answer_type,
        "response": completion.text,
        "thought": completion.thought,
        "answer": completion.answer,
        "outcome": verdict.outcome,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "exit": completion.exit,
        "prompt_tokens": completion.prompt_tokens,
        "thought_tokens": completion.thought_tokens,
        "answer_tokens": completion.answer_tokens,
        "image": picture,
        "facts": problem.meta.get("facts"),
    }
