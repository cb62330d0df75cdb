"""Reading a run's folder for the report. Whatever is not there yet is empty; only results, or a summary, must be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.store import Row, latest, read_rows
from xreasoner.benchmarks.summary import BASES, GROUPS, REASONERS, summary_of
from xreasoner.errors import DataError, UserError

CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")
"""The cells of the matrix in the order in which the page shows them."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder as the report needs it.

    stages: names in the order of the run. metrics, manifests: by trained stage, lines of metrics.jsonl and
    manifest.json. rows: by evaluated stage, the judged completions (blind ones too).
    """

    folder: Path
    summary: dict[str, Any]
    manifest: dict[str, Any]
    stages: tuple[str, ...]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[Row]]
    rows: dict[str, list[Row]]


def in_order(names: Iterable[str]) -> list[str]:
    """The known stages first, in their order, then the others as they come."""
    known, found = (*BASES, *REASONERS), list(dict.fromkeys(names))
    return [name for name in known if name in found] + [name for name in found if name not in known]


def read_run(folder: Path) -> Run:
    """Read a run; without a summary.json it is made from the results. Raises `UserError` where there are neither,
    `DataError` for a file that is damaged.
    """
    rows = {path.parent.name: latest(read_rows(path)) for path in sorted(folder.glob("eval/*/results.jsonl"))}
    if not rows and not (folder / "summary.json").is_file():
        raise UserError(
            f"{folder} holds no results (eval/*/results.jsonl); give the folder of a run that `xreasoner eval` or "
            "`demo` wrote"
        )
    summary = _read_json(folder / "summary.json") or summary_of(rows)
    manifest = _read_json(folder / "manifest.json")
    metrics = {path.parent.name: read_rows(path) for path in sorted(folder.glob("*/metrics.jsonl"))}
    manifests = {path.parent.name: _read_json(path) for path in sorted(folder.glob("*/manifest.json"))}
    recorded = manifest.get("stages")
    if isinstance(recorded, dict):
        manifests = {**{name: entry for name, entry in recorded.items() if isinstance(entry, dict)}, **manifests}
    evaluated = [name for group in GROUPS for name in summary.get(group) or {}]
    stages = in_order([*evaluated, *rows, *metrics, *manifests])
    return Run(
        folder,
        summary,
        manifest,
        tuple(stages),
        {name: manifests[name] for name in stages if name in manifests},
        {name: metrics[name] for name in stages if metrics.get(name)},
        {name: rows[name] for name in stages if rows.get(name)},
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, or {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it anew with the command that made it") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
