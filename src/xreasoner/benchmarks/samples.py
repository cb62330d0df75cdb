"""Several samples an item: their average, their majority, and whether any of them is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from xreasoner.benchmarks.store import Row
from xreasoner.grading import judge
from xreasoner.problem import Problem

_NO_VOTE = ("unparsed", "refused", "truncated", "conflict", "error")


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that k of n samples, drawn without putting back, hold a right one (Chen et al. 2021, equation 1).

    Unbiased for k ≤ n. Raises `ValueError` for others.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {n} samples, {right} of them right; expected 1 ≤ k ≤ n")
    return 1.0 - prod((n - right - i) / (n - i) for i in range(k)) if n - right >= k else 1.0


def majority(rows: Sequence[Row]) -> float:
    """1 where the right answer has the most votes, its share of the first place where several have as many, else 0.

    Right samples vote for one answer, whatever way they write it, and so do wrong ones that the grader takes for each
    other's equal ("8" and "8.0"); replies without an answer do not vote.
    """
    votes = _votes([row for row in rows if row["outcome"] not in _NO_VOTE])
    most = max(votes.values(), default=0)
    first = [answer for answer, n in votes.items() if n == most]
    return 1 / len(first) if ("correct",) in first else 0.0


def _votes(rows: Sequence[Row]) -> Counter[tuple[str, ...]]:
    """How many samples gave each answer."""
    votes = Counter[tuple[str, ...]]({("correct",): sum(bool(row["correct"]) for row in rows)})
    wrong: list[str] = []
    for row in rows:
        if not row["correct"]:
            answer = str(row.get("normalised") or row["extracted"])
            same = next((other for other in wrong if _equal(row, other, answer)), None)
            if same is None:
                wrong.append(answer)
            votes[("wrong", same if same is not None else answer)] += 1
    return +votes


def _equal(row: Row, one: str, other: str) -> bool:
    """Whether two answers to a row's question are one answer, by the grader's own comparison."""
    if one.casefold() == other.casefold():
        return True
    kind = row.get("answer_type", "choice")
    if kind in ("choice", "gym") or not one.strip():
        return False
    problem = Problem("vote", row.get("question") or "?", one, kind, meta=row.get("meta") or {})
    return judge(problem, f"<answer>{other}</answer>").correct


def by_item(rows: Sequence[Row]) -> list[list[Row]]:
    """The samples of each item."""
    items: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        items.setdefault((row["bench"], row["id"]), {})[row["sample"]] = row
    return [list(found.values()) for found in items.values()]


def ensemble(rows: Sequence[Row]) -> dict[str, Any]:
    """{"samples": K, "average", "majority", "pass": {k: pass@k}} over items that have K samples, K the most of any.

    average is avg@K. Items of which a part is missing are left out, and counted in "incomplete".
    """
    items = by_item(rows)
    most = max(map(len, items), default=0)
    whole = [found for found in items if len(found) == most]
    if not whole:
        return {"samples": 0, "average": 0.0, "majority": 0.0, "pass": {}, "incomplete": 0}
    right = [sum(bool(row["correct"]) for row in found) for found in whole]
    ks = sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})
    return {
        "samples": most,
        "average": sum(right) / (most * len(whole)),
        "majority": sum(majority(found) for found in whole) / len(whole),
        "pass": {k: sum(pass_at(k, most, r) for r in right) / len(whole) for k in ks},
        "incomplete": len(items) - len(whole),
    }
