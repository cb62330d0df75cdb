"""The report's numbers as Markdown for a pull request and as CSV for a spreadsheet. Same numbers, same words."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xreasoner.benchmarks.summary import GROUPS
from xreasoner.reporting import findings
from xreasoner.reporting.reading import CELLS, Run
from xreasoner.reporting.svg import percent

COLUMNS = ("table", "place", "stage", "against", "quantity", "value", "low", "high", "n", "p", "p_holm", "detectable",
           "differs")  # fmt: skip
"""The CSV's columns. Shares from 0 to 1, differences as shares, tokens as tokens."""
_TITLES = {"cells": "The matrix", "perception": "Perception (reading)", "benchmarks": "Other benchmarks"}


def markdown(run: Run) -> str:
    """The whole report's numbers as Markdown tables."""
    gains = run.summary.get("gains") or []
    compared = [gain for gain in gains if gain["kind"] != "ratio"]
    parts = ["# Transfer report", findings.can_show(compared), findings.headline(gains, run.baseline)]
    parts += [findings.losses_sentence(findings.losses(gains, run.baseline)), findings.compared_with(run)]
    parts += findings.not_compared(gains)
    parts += [_matrix(run, group) for group in GROUPS if any((run.summary.get(group) or {}).values())]
    parts += [_gains(gains), _ratios(gains), _sight(run), _solvable(run), _exits(run)]
    parts += [_samples(run), _budgets(run), _parsers(run)]
    parts += [_frozen(run), _protocol(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; "" without lines."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    if not cells:
        return ""
    rows = ["| " + " | ".join(line) + " |" for line in (list(head), *cells)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def _section(title: str, words: str, table: str) -> str:
    return f"## {title}\n\n{words}\n\n{table}" if table else ""


def _share(found: Mapping[str, Any] | None) -> str:
    """ "85.5 (80.0–89.7)", per cent with the interval."""
    if found is None:
        return "—"
    return f"{percent(found['value'])} ({percent(found['low'])}–{percent(found['high'])})"


def _points(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "—"
    return f"{findings.signed(found['value'])} ({findings.interval(found['low'], found['high'])})"


def _names(run: Run, group: str) -> list[str]:
    found = {name for stage in (run.summary.get(group) or {}).values() for name in stage}
    return [name for name in CELLS if name in found] + sorted(found - set(CELLS))


def _matrix(run: Run, group: str) -> str:
    names = _names(run, group)
    lines = [
        [stage, *(_accuracy(entries[name]) if name in entries else "—" for name in names)]
        for stage, entries in run.summary[group].items()
    ]
    return _section(_TITLES[group], "Accuracy in percent, 95 % interval, n.", _table(["stage", *names], lines))


def _accuracy(entry: Mapping[str, Any]) -> str:
    blind = f", blind {percent(entry['blind'])}" if entry.get("blind") is not None else ""
    return f"{percent(entry['accuracy'])} ({percent(entry['low'])}–{percent(entry['high'])}), n {entry['n']}{blind}"


def _gains(gains: Sequence[findings.Gain]) -> str:
    compared = [gain for gain in gains if gain["kind"] != "ratio"]
    head = ("where", "after", "before", "can show", "difference", "95 %", "n", "p", "p (Holm)", "verdict")
    lines = [
        [
            gain["cell"] if gain["kind"] != "perception" else f"reading {gain['cell']}",
            gain["after"],
            gain["before"],
            f"±{percent(gain['detectable'])}" if gain.get("detectable") is not None else "—",
            *_difference(gain),
            gain["n"],
            findings.p_value(gain.get("p")),
            findings.p_value(gain.get("p_holm")),
            findings.verdict(gain),
        ]
        for gain in compared
    ]
    words = "Differences in points, paired on the same items; before each, the smallest that its items can show."
    return _section("Gains", words, _table(head, lines))


def _difference(gain: findings.Gain) -> tuple[str, str]:
    """A difference and its interval in points; dashes where both numbers were measured differently."""
    if not findings.is_comparable(gain):
        return "—", "—"
    return findings.signed(gain["difference"]), findings.interval(gain["low"], gain["high"])


def _ratios(gains: Sequence[findings.Gain]) -> str:
    lines = [
        [g["domain"], f"{g['after']} over {g['before']}", findings.ratio(g)["value"], findings.ratio(g)["note"]]
        for g in findings.of_kind(gains, "ratio")
    ]
    table = _table(("domain", "stage", "ratio", "interval"), lines)
    return _section("Image gain ÷ text gain", "1: images gained as much as text.", table)


def _sight(run: Run) -> str:
    entries = run.summary.get("sight") or []
    measured = [name for name in ("blind", "swapped") if any(entry[name] for entry in entries)]
    shares, points = ("seen", *measured), [f"over_{name}" for name in measured]
    head = ("where", "stage", *shares, *(f"seen − {name}" for name in measured), "where blind misses")
    lines = [
        [e["name"], e["stage"], *(_share(e[k]) for k in shares), *(_points(e[k]) for k in points), _share(e["missed"])]
        for e in entries
    ]
    return _section("Did the images matter?", "Percent and points.", _table(head, lines))


def _solvable(run: Run) -> str:
    lines = [
        [e["name"], e["stage"], e["all"]["n"], _share(e["all"]), e["kept"]["n"] if e["kept"] else 0, _share(e["kept"])]
        for e in run.summary.get("solvable") or []
    ]
    words = "Items that some model solves without the image in each of 3 samples are dropped."
    table = _table(("where", "stage", "n", "all items", "n kept", "kept items"), lines)
    return _section("Without the text-solvable items", words, table)


def _exits(run: Run) -> str:
    head = ("where", "stage", "natural", "forced", "truncated", "with exit", "without", "gained", "tokens", "p90")
    lines = [
        [
            e["name"] if e["group"] != "perception" else f"reading {e['name']}",
            e["stage"],
            *(percent(e[exit]) for exit in ("natural", "forced", "truncated")),
            _share(e["with_exit"]),
            _share(e["without_exit"]),
            _points(e["gained"]),
            f"{e['thought_tokens']['mean']:.0f}",
            e["thought_tokens"]["p90"],
        ]
        for e in run.summary.get("exits") or []
    ]
    words = "Shares in per cent; accuracy with the forced exit and without it (a closed thought counts as cut off)."
    return _section("How replies ended", words, _table(head, lines))


def _samples(run: Run) -> str:
    lines = [
        [
            e["name"] if e["group"] != "perception" else f"reading {e['name']}",
            e["stage"],
            e["n"],
            e["samples"],
            _share(e["average"]),
            _share(e["majority"]),
            ", ".join(f"{k}: {_share(value)}" for k, value in e["pass"].items()),
        ]
        for e in run.summary.get("samples") or []
    ]
    words = "avg@K, majority@K and pass@k (unbiased) of K sampled replies an item, in per cent."
    table = _table(("where", "stage", "items", "K", "avg@K", "majority@K", "pass@k"), lines)
    return _section("Several samples an item", words, table)


def _budgets(run: Run) -> str:
    lines = [
        [
            e["name"],
            e["stage"],
            p["budget"],
            _accuracy(p),
            percent(p["without_exit"]),
            percent(p["forced"]),
            f"{p['thought_tokens']:.0f}",
        ]
        for e in run.summary.get("budgets") or []
        for p in e["points"]
    ]
    head = ("where", "stage", "thinking budget", "accuracy", "without exit", "forced", "tokens")
    return _section("Accuracy by thinking budget", "On the items that all budgets share.", _table(head, lines))


def _parsers(run: Run) -> str:
    lines = [
        [
            e["kind"],
            e["stage"],
            rule["rule"],
            percent(rule["score"]),
            percent(rule["guessed"]),
            percent(rule["read"]),
            percent(rule["empty"]),
            f"±{percent(e['error'])}",
            percent(e["spread"]),
        ]
        for e in run.summary.get("parsers") or []
        for rule in e["rules"]
    ]
    head = ("answers", "stage", "rule", "score", "guessed", "without guesses", "empty replies", "sampling", "spread")
    words = "The same replies under each rule, in per cent; guesses at their expectation."
    return _section("How much is the parser’s", words, _table(head, lines))


def _frozen(run: Run) -> str:
    lines = [[e["stage"], e["state"], e["tensors"], e["before"], e["after"]] for e in findings.frozen(run)]
    table = _table(("stage", "verdict", "tensors", "sha256 before", "sha256 after"), lines)
    return _section("The frozen tower", "Hashes over every frozen tensor.", table)


def _protocol(run: Run) -> str:
    head = ("number", "stage", "benchmark", "split", "items", "n", "prompt", "budget", "answer budget", "exit text",
            "temperature", "samples", "images", "seed", "grader", "model")  # fmt: skip
    lines = [
        [e["name"], e["stage"], e["bench"], e["split"], e["items"], e["entry"]["n"], e["prompt"], e["budget"],
         e["answer_budget"], e["exit_text"], e["temperature"], e["samples"], e["images"], e["seed"], e["grader"],
         e["model"]]
        for e in findings.protocol(run)
    ]  # fmt: skip
    return _section("The protocol of every number", "Intervals: 95 %.", _table(head, lines))


def as_csv(run: Run) -> str:
    """Every number of the report, one a line; see `COLUMNS`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(run))
    return buffer.getvalue()


def _lines(run: Run) -> Iterable[dict[str, Any]]:
    summary = run.summary
    for group in GROUPS:
        for stage, entries in (summary.get(group) or {}).items():
            for name, entry in entries.items():
                place = {"table": group, "place": name, "stage": stage, "quantity": "accuracy"}
                yield {**entry, **place, "value": entry["accuracy"]}
    for gain in summary.get("gains") or []:
        ratio = gain["kind"] == "ratio"
        place = {"table": "gains", "place": gain["cell"], "stage": gain["after"], "against": gain["before"]}
        quantity = "ratio" if ratio else f"difference ({gain['kind']})"
        differs = findings.differing(gain) or findings.by_design(gain)
        value = gain["ratio" if ratio else "difference"]
        yield {**gain, **place, "quantity": quantity, "value": value, "differs": differs}
    for table in ("sight", "solvable", "exits", "samples"):
        for entry in summary.get(table) or []:
            yield from _quantities(table, entry)
    for entry in summary.get("budgets") or []:
        for point in entry["points"]:
            place = {"table": "budgets", "place": entry["name"], "stage": entry["stage"]}
            yield {**point, **place, "quantity": f"accuracy at {point['budget']} tokens", "value": point["accuracy"]}
    for entry in summary.get("parsers") or []:
        for rule in entry["rules"]:
            place = {"table": "parsers", "place": entry["kind"], "stage": entry["stage"], "n": entry["n"]}
            for key in ("score", "guessed", "read", "empty"):
                yield {**place, "quantity": f"{rule['rule']}: {key}", "value": rule[key]}


def _quantities(table: str, entry: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The estimates and plain shares of one entry of sight, solvable, exits or samples."""
    place = {"table": table, "place": entry["name"], "stage": entry["stage"]}
    for key, value in entry.items():
        if isinstance(value, Mapping) and "value" in value:
            yield {**value, **place, "quantity": key}
        elif isinstance(value, Mapping):
            for name, part in value.items():
                numbers = part if isinstance(part, Mapping) else {"value": part}
                yield {**numbers, **place, "quantity": f"{key}: {name}"}
        elif isinstance(value, float):
            yield {**place, "quantity": key, "value": value, "n": entry.get("n", "")}
