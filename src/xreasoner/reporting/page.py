"""Putting the page together: numbers and pictures into one template, one file out."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xreasoner.benchmarks.store import Row
from xreasoner.benchmarks.summary import GROUPS, REASONERS
from xreasoner.checks import remedy
from xreasoner.errors import UserError, XReasonerError
from xreasoner.reporting import exports, findings, model_card, svg, traces
from xreasoner.reporting.reading import CELLS, Run, read_runs

STAGE_NOTES = {
    "base": "answers directly",
    "base-direct": "after SFT on the bare answers to the same problems: a control",
    "sft": "after SFT on chains of thought",
    "sft+rl": "after SFT, then RL with verifiable rewards",
}
EXIT_TONES = {"natural": 2, "forced": 4, "truncated": 3}
_Chart = tuple[str, tuple[tuple[str, str, int | None], ...]]
_CURVES: tuple[_Chart, ...] = (
    ("Loss", (("loss", "loss", None),)),
    ("Reward", (("reward", "reward", None),)),
    ("pass@k of the groups", (("pass_at_k", "pass@k", None),)),
    ("Length in tokens", (("length", "length", None),)),
    ("Entropy in nats", (("entropy", "entropy", None),)),
    ("Clipped share", (("clip_low", "low", 2), ("clip_high", "high", 3))),
    ("Log-prob gap to the engine", (("logprob_gap", "gap", None),)),
    ("Groups without variance", (("zero_variance", "share", None),)),
)
_UPKEEP: tuple[_Chart, ...] = (
    ("Gradient norm", (("grad_norm", "norm", None),)),
    ("Learning rate", (("lr", "rate", None),)),
    ("Padding share", (("padding_share", "padding", None),)),
    ("Tokens a second", (("tokens_per_s", "tokens/s", None),)),
)
"""Title, and the metrics in it: key, name, tone (None: the stage's own). _UPKEEP is folded on the page."""


def write_report(runs: Path | Sequence[Path], out: Path | None = None, baseline: str | None = None) -> Path:
    """Write the report of one or several runs' folders as one HTML page (default: report.html in the first) and
    return its path; the same numbers stand beside it as Markdown, CSV and a model card (report.md, .csv, .card.md).

    baseline: the stage, or one of the folders, that the others are compared with; default: the base.
    Stages that are not there yet are left out. The page asks for nothing from outside and is the same for the
    same folders. Raises `UserError` without a summary or for a place that no page can have, `DataError` for a damaged
    file, `XReasonerError` where the disk refuses.
    """
    paths = [runs] if isinstance(runs, Path) else list(runs)
    path = out or paths[0] / "report.html"
    if path.is_dir() or path.suffix in (".md", ".csv"):
        raise UserError(f"--out {path}: expected the page's file, such as {path.with_suffix('')}.html")
    run = read_runs(paths, baseline)
    write_text(path, render(run))
    write_text(path.with_suffix(".md"), exports.markdown(run))
    write_text(path.with_suffix(".csv"), exports.as_csv(run))
    write_text(path.with_suffix(".card.md"), model_card.model_card(run))
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: aside, then renamed. Raises `XReasonerError` where the disk refuses."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text.encode("utf-8", "replace"))
        aside.replace(path)
    except OSError as error:
        raise XReasonerError(f"cannot write {path}: {error.strerror}; {remedy(error)}") from error


def render(run: Run) -> str:
    """The page's HTML. Everything that is not `Markup` from svg.py is escaped by the template."""
    environment = Environment(
        loader=PackageLoader("xreasoner", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["hash"] = _hash
    environment.filters |= {"percent": svg.percent, "signed": findings.signed, "p_value": findings.p_value}
    return environment.get_template("page.html.j2").render(_context(run))


def _hash(script: str) -> str:
    """What the page's own policy allows to run: this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _context(run: Run) -> dict[str, Any]:
    gains, tone = run.summary.get("gains") or [], tones(run.stages)
    places = traces.gather(run)
    packed, proof = traces.pack(run, traces.ordered(places)), findings.frozen(run)
    protocol = findings.protocol(run)
    recipe = run.manifest.get("recipe") or _first(run, "recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {"name": recipe}
    return {
        "recipe": recipe.get("name") or "",
        "stages": run.stages,
        "notes": {stage: STAGE_NOTES.get(stage, "") for stage in run.stages},
        "tones": tone,
        "headline": findings.headline(gains, run.baseline),
        "compared": findings.compared_with(run),
        "losses": findings.losses(gains, run.baseline),
        "not_compared": findings.not_compared(gains),
        "tiles": findings.tiles(gains, run.baseline),
        "cells": table(run, "cells"),
        "matrix": panels(run, "cells", tone),
        "perception": table(run, "perception"),
        "perception_panels": panels(run, "perception", tone),
        "benchmarks": table(run, "benchmarks"),
        "benchmark_panels": panels(run, "benchmarks", tone),
        "gains": {kind: strips(findings.of_kind(gains, kind), tone) for kind in ("cell", "perception", "benchmark")},
        "ratios": [{**gain, **findings.ratio(gain)} for gain in findings.of_kind(gains, "ratio")],
        "curves": [learning(run, stage, tone[stage]) for stage in run.metrics],
        "frozen": proof,
        "pure": findings.learnt_from(proof),
        "protocol": protocol,
        "asked": findings.asked(protocol),
        "evaluation": findings.flat(recipe.get("evaluation") or run.manifest.get("evaluation") or {}),
        "timings": findings.flat(run.summary.get("timings") or {}),
        "facts": findings.flat({"seed": recipe.get("seed", run.manifest.get("seed")), "model": recipe.get("model")}),
        "versions": findings.flat(run.manifest.get("versions") or _first(run, "versions")),
        "recipe_lines": findings.flat(recipe),
        "packed": packed,
        "stories": [f"{kind} by {stage}" for stage in traces.predecessors(run.stages) for kind in ("fixed", "broken")],
        "counts": counts(places),
        "can_show": findings.can_show([gain for gain in gains if gain.get("kind") == "cell"] or gains),
        "folders": ", ".join(folder.resolve().name for folder in run.folders),
        "sight": _placed(run, "sight"),
        "swapped_measured": any(entry["swapped"] for entry in run.summary.get("sight") or []),
        "solvable": _placed(run, "solvable"),
        "exits": _placed(run, "exits"),
        "samples": _placed(run, "samples"),
        "budget_curves": budget_curves(run, tone),
        "parsers": parser_tables(run),
        "parser_panels": parser_panels(run),
    }


def _first(run: Run, name: str) -> Any:
    return next((manifest[name] for manifest in run.manifests.values() if manifest.get(name)), {})


def tones(stages: Sequence[str]) -> dict[str, int]:
    """A colour for each stage: 0 and 1 for the bases, 2 for SFT, 3 for RL, then 4, 5, 6 in turn for others."""
    fixed = {name: index for index, name in enumerate(STAGE_NOTES)}
    others = [stage for stage in stages if stage not in fixed]
    return {stage: fixed[stage] if stage in fixed else 4 + others.index(stage) % 3 for stage in stages}


def table(run: Run, group: str) -> dict[str, Any]:
    """One group of the summary as a table: its columns (the cells in their order, then others) and lines by stage."""
    entries = run.summary.get(group) or {}
    names = list(dict.fromkeys(name for stage in entries.values() for name in stage))
    columns = [name for name in CELLS if name in names] + sorted(name for name in names if name not in CELLS)
    lines = {stage: entries[stage] for stage in run.stages if entries.get(stage)}
    families = {
        name: sorted({f for entry in lines.values() for f in entry.get(name, {}).get("families", {})})
        for name in columns
    }
    return {"columns": columns, "lines": lines, "families": families}


def panels(run: Run, group: str, tone: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """A picture of bars for each column of a group."""
    shape = table(run, group)
    found = []
    for name in shape["columns"]:
        entries = [
            svg.Bar(stage, cell["accuracy"], cell["low"], cell["high"], cell.get("blind"), tone[stage])
            for stage, line in shape["lines"].items()
            if (cell := line.get(name))
        ]
        found.append((name, svg.bars(name, entries)))
    return found


def strips(gains: Sequence[findings.Gain], tone: Mapping[str, int]) -> dict[str, Any]:
    """Dots with whiskers on one common axis, a line for each gain; stages over the base first, then RL over SFT."""
    gains = [gain for gain in gains if findings.is_comparable(gain)]
    if not gains:
        return {"lines": [], "axis": ""}
    low, high = min(0.0, *(g["low"] for g in gains)), max(0.0, *(g["high"] for g in gains))
    margin = 0.04 * (high - low) or 0.05
    span = (low - margin, high + margin)
    rank = {cell: index for index, cell in enumerate(CELLS)}
    ordered = sorted(
        gains, key=lambda g: (g["before"].partition("@")[0] in REASONERS, rank.get(g["cell"], 9), g["cell"], g["after"])
    )
    lines = []
    for gain in ordered:
        doubt = findings.doubt(gain)
        colour = tone.get(gain["after"], 0)
        picture = svg.strip(gain["low"], gain["difference"], gain["high"], span, not doubt, colour)
        lines.append({**gain, "doubt": doubt, "picture": picture, "design": findings.by_design(gain)})
    return {"lines": lines, "axis": svg.strip_axis(span, 100)}


def learning(run: Run, stage: str, tone: int) -> dict[str, Any]:
    """One stage's learning curves: those whose metrics were written."""
    rows = run.metrics[stage]
    return {
        "stage": stage,
        "kind": "RL" if any("reward" in row for row in rows) else "SFT",
        "steps": len(rows),
        "seconds": sum(seconds for _, seconds in _points(rows, "seconds")),
        "charts": _charts(rows, _CURVES, tone) + _exits(rows),
        "upkeep": _charts(rows, _UPKEEP, tone),
    }


def _charts(rows: Sequence[Row], specified: Sequence[_Chart], tone: int) -> list[dict[str, Any]]:
    found = []
    for title, series in specified:
        lines = [svg.Line(name, tone if own is None else own, _points(rows, key)) for key, name, own in series]
        kept = [line for line in lines if line.points]
        if kept:
            legend = [(line.name, line.tone) for line in kept] if len(kept) > 1 else []
            found.append({"title": title, "legend": legend, "picture": svg.curves(title, kept)})
    return found


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def _exits(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How rollouts ended, stacked, and their length by that."""
    ended = [row for row in rows if isinstance(row.get("exits"), dict)]
    if not ended:
        return []
    shares = [
        svg.Line(name, tone, [(row["step"], row["exits"].get(name, 0.0)) for row in ended])
        for name, tone in EXIT_TONES.items()
    ]
    lengths = [
        svg.Line(
            name, tone, [(r["step"], r["length_by_exit"][name]) for r in ended if name in r.get("length_by_exit", {})]
        )
        for name, tone in EXIT_TONES.items()
    ]
    legend = list(EXIT_TONES.items())
    charts = [{"title": "How rollouts ended (share)", "legend": legend, "picture": svg.stacked("Exits", shares)}]
    if any(line.points for line in lengths):
        kept = [line for line in lengths if line.points]
        picture = svg.curves("Length by exit", kept)
        charts.append({"title": "Length by exit", "legend": [(n.name, n.tone) for n in kept], "picture": picture})
    return charts


def counts(places: Mapping[tuple[str, str], Sequence[traces.Item]]) -> list[dict[str, Any]]:
    """For each place: how many items the run has, and how many each story holds for."""
    return [
        {
            "label": items[0].label,
            "items": len(items),
            "stories": Counter(story for item in items for story in item.stories),
        }
        for items in places.values()
        if items
    ]


def _placed(run: Run, name: str) -> list[dict[str, Any]]:
    """Entries of the summary by place and stage, in the page's order, each with the `label` of its place."""
    rank = {cell: index for index, cell in enumerate(CELLS)}

    def order(entry: Mapping[str, Any]) -> tuple[int, int, str, int]:
        place = GROUPS.index(entry["group"]), rank.get(entry["name"], len(CELLS)), entry["name"]
        return *place, run.stages.index(entry["stage"])

    named = [{**entry, "label": label(entry["group"], entry["name"])} for entry in run.summary.get(name) or []]
    return sorted(named, key=order)


def label(group: str, name: str) -> str:
    """What a place is called on the page."""
    return f"reading {name}" if group == "perception" else name


def budget_curves(run: Run, tone: Mapping[str, int]) -> list[dict[str, Any]]:
    """A picture for each place that was measured under several thinking budgets: a line a stage, and dashed without
    the forced exit.
    """
    by_place: dict[str, list[dict[str, Any]]] = {}
    for entry in _placed(run, "budgets"):
        by_place.setdefault(entry["label"], []).append(entry)
    return [
        {
            "title": place,
            "legend": [(entry["stage"], tone[entry["stage"]]) for entry in entries],
            "picture": svg.budget_curve(place, [(e["stage"], tone[e["stage"]], e["points"]) for e in entries]),
            "entries": entries,
        }
        for place, entries in by_place.items()
    ]


def parser_tables(run: Run) -> list[dict[str, Any]]:
    """For each kind of answer one table: its rules down, the stages across."""
    found = []
    entries = run.summary.get("parsers") or []
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        by_stage = {e["stage"]: {rule["rule"]: rule for rule in e["rules"]} for e in entries if e["kind"] == kind}
        whole = {entry["stage"]: entry for entry in entries if entry["kind"] == kind}
        rules = list(dict.fromkeys(rule for rules in by_stage.values() for rule in rules))
        found.append({"kind": kind, "rules": rules, "stages": by_stage, "whole": whole})
    return found


def parser_panels(run: Run) -> list[tuple[str, Markup]]:
    """The last stage's replies under each rule, a picture for each kind of answer."""
    entries = run.summary.get("parsers") or []
    last = max((e["stage"] for e in entries), key=run.stages.index, default=None)
    return [
        (f"{entry['kind']} answers of {last}, n {entry['n']}", svg.rules(entry["kind"], entry))
        for entry in entries
        if entry["stage"] == last
    ]
