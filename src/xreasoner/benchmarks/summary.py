"""What results show: accuracies by place, gains paired on the items, how replies ended, what blindness explains.

A benchmark named `tiny-MODALITY-DOMAIN` is a cell of the transfer matrix, `tiny-read-MODALITY-DOMAIN` measures
perception in that cell, and any other stands for itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xreasoner.benchmarks import statistics
from xreasoner.benchmarks.store import Condition, Row, condition_of

BASES = ("base", "base-direct")
REASONERS = ("sft", "sft+rl")
GROUPS = ("cells", "perception", "benchmarks")
_CELL = re.compile(r"tiny-(read-)?(text|image)-([a-z]+)")


def group_of(bench: str) -> tuple[str, str]:
    """Where a benchmark's number stands in the summary: ("cells" | "perception" | "benchmarks", its name there)."""
    match = _CELL.fullmatch(bench)
    if match is None:
        return "benchmarks", bench
    return "perception" if match[1] else "cells", f"{match[2]}/{match[3]}"


def _grouped(results: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results:
        groups.setdefault(group_of(row["bench"]), []).append(row)
    return groups


def _accuracy(rows: Sequence[Row]) -> statistics.Estimate:
    return statistics.accuracy([row["correct"] for row in rows], [(row["bench"], row["id"]) for row in rows])


def _describe(rows: Sequence[Row], blind: Sequence[Row]) -> dict[str, Any]:
    """One entry of the summary. Shares are of the rows with their pictures; outcomes are counts."""
    estimate = _accuracy(rows)
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    described: dict[str, Any] = {
        "accuracy": estimate.value,
        "n": len(rows),
        "low": estimate.low,
        "high": estimate.high,
        "forced": sum(row["exit"] == "forced" for row in rows) / len(rows),
        "truncated": sum(row["exit"] == "truncated" for row in rows) / len(rows),
        "thought_tokens": sum(row["thought_tokens"] for row in rows) / len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "families": {
            name: {"accuracy": _accuracy(members).value, "n": len(members)}
            for name, members in sorted(families.items())
        },
    }
    if blind:
        floor = _accuracy(blind)
        described |= {"blind": floor.value, "blind_n": len(blind), "blind_low": floor.low, "blind_high": floor.high}
        for name, entry in described["families"].items():
            unseen = [row for row in blind if row["family"] == name]
            if unseen:
                entry["blind"] = _accuracy(unseen).value
    return described


def summarise(results: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """What one stage's results show: {"cells": {CELL: …}, "perception": {CELL: …}, "benchmarks": {NAME: …}}.

    Each entry holds accuracy, n, low, high (95 %), the shares `forced` and `truncated`, mean `thought_tokens`,
    `outcomes` (counts), `families`, and, where there are blind rows, `blind` (accuracy) with its n and interval.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in GROUPS}
    for (group, name), rows in _grouped(results).items():
        seen = under(rows, "seen")
        if seen:
            summary[group][name] = _describe(seen, under(rows, "blind"))
    return summary


def under(rows: Sequence[Row], condition: Condition) -> list[Row]:
    """The rows of one condition."""
    return [row for row in rows if condition_of(row) == condition]


def _by_item(rows: Sequence[Row], condition: Condition = "seen") -> dict[tuple[str, str], float]:
    """Mean correctness of each item."""
    found: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if condition_of(row) == condition:
            found.setdefault((row["bench"], row["id"]), []).append(row["correct"])
    return {item: sum(values) / len(values) for item, values in found.items()}


def _mean(items: Mapping[Any, float]) -> float:
    return sum(items.values()) / len(items) if items else 0.0


def _difference(after: Mapping[Any, float], before: Mapping[Any, float]) -> dict[str, Any] | None:
    """After − before on the items that both have, or None where there are none."""
    shared = [item for item in after if item in before]
    if not shared:
        return None
    a, b = [after[item] for item in shared], [before[item] for item in shared]
    estimate = statistics.paired_difference(a, b, shared)
    binary = all(value in (0.0, 1.0) for value in [*a, *b])
    discordant = sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(shared)
    return {
        "n": len(shared),
        "accuracy_after": sum(a) / len(a),
        "accuracy_before": sum(b) / len(b),
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": statistics.mcnemar(a, b) if binary else None,
        "detectable": statistics.detectable_paired(len(shared), discordant),
    }


def _best_base(stages: Mapping[str, Mapping[Any, float]]) -> str | None:
    """The more accurate of the two bases that answer directly: the stronger control."""
    bases = [stage for stage in BASES if stages.get(stage)]
    return max(bases, key=lambda stage: _mean(stages[stage]), default=None)


def _pairs(stages: Mapping[str, Mapping[Any, float]], group: str) -> list[tuple[str, str]]:
    """(after, before): each reasoner over the better base (perception: over the base itself), RL over SFT."""
    before = _best_base({"base": stages.get("base", {})} if group == "perception" else stages)
    pairs = [(stage, before) for stage in REASONERS if before is not None and stages.get(stage)]
    if stages.get("sft") and stages.get("sft+rl"):
        pairs.append(("sft+rl", "sft"))
    return pairs


def gains(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """What each stage added, paired on the items.

    Entries of kind "cell", "perception" and "benchmark": {"kind", "cell" (or the benchmark's name), "after",
    "before" (stages), "n", "accuracy_after", "accuracy_before", "difference", "low", "high" (95 %), "p" (exact
    McNemar; None with several samples an item), "detectable" (the smallest difference these items show with
    power 0.8), and for image cells with blind rows "above_blind" (accuracy after − the larger of the accuracy
    before and the blind floor)}. Entries of kind "ratio": {"kind", "cell" (the domain), "domain", "after",
    "before", "ratio", "low", "high"}, None where undefined or unbounded. `before` is the better base.
    """
    grouped = {stage: _grouped(rows) for stage, rows in results_by_stage.items()}
    names = sorted({key for groups in grouped.values() for key in groups}, key=lambda k: (GROUPS.index(k[0]), k[1]))
    found: list[dict[str, Any]] = []
    for group, name in names:
        stages = {stage: _by_item(groups.get((group, name), [])) for stage, groups in grouped.items()}
        for after, before in _pairs(stages, group):
            entry = _difference(stages[after], stages[before])
            if entry is None:
                continue
            blind = _by_item(grouped[after].get((group, name), []), "blind")
            if blind:
                floor = max(entry["accuracy_before"], _mean(blind))
                entry["above_blind"] = entry["accuracy_after"] - floor
            kind = group.removesuffix("s")
            found.append({"kind": kind, "cell": name, "after": after, "before": before, **entry})
    return found + _ratios(grouped)


def summary_of(results_by_stage: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What summary.json says of results: {"cells" | "perception" | "benchmarks": {stage: {name: {}}}, "gains": []}."""
    found: dict[str, Any] = {group: {} for group in GROUPS}
    for stage, rows in results_by_stage.items():
        for group, entries in summarise(rows).items():
            found[group][stage] = entries
    return {**found, "gains": gains(results_by_stage)}


def _ratios(grouped: Mapping[str, Mapping[tuple[str, str], list[Row]]]) -> list[dict[str, Any]]:
    """Image gain ÷ text gain over the better base, for each domain and reasoner."""
    domains = {name.split("/")[1] for groups in grouped.values() for group, name in groups if group == "cells"}
    found: list[dict[str, Any]] = []
    for domain in sorted(domains, reverse=True):
        for after in REASONERS:
            image, text = (_gain_over_base(grouped, f"{modality}/{domain}", after) for modality in ("image", "text"))
            if image and text:
                estimate = statistics.gain_ratio(list(image.values()), list(image), list(text.values()), list(text))
                ratio, low, high = (value if math.isfinite(value) else None for value in estimate)
                entry = {"kind": "ratio", "cell": domain, "domain": domain, "after": after, "before": "best base"}
                found.append({**entry, "ratio": ratio, "low": low, "high": high})
    return found


def _gain_over_base(
    grouped: Mapping[str, Mapping[tuple[str, str], list[Row]]], cell: str, after: str
) -> dict[str, float]:
    """after − the better base for each shared item, by its id alone: text and image cells share their scenes."""
    stages = {stage: _by_item(groups.get(("cells", cell), [])) for stage, groups in grouped.items()}
    before = _best_base(stages)
    if before is None or after not in stages:
        return {}
    return {item[1]: value - stages[before][item] for item, value in stages[after].items() if item in stages[before]}
