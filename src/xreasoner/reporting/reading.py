"""Reading runs' folders for the report. Whatever is not there yet is empty; results, metrics or a summary must be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.store import Row, read_rows
from xreasoner.benchmarks.summary import BASES, GROUPS, REASONERS, main_of, summary_of
from xreasoner.errors import DataError, UserError

CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")
"""The cells of the matrix in the order in which the page shows them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One or several runs' folders as the report needs them.

    stages: names in the order of the run; a stage that a second folder has too, of another model, is STAGE@FOLDER.
    metrics, manifests: by trained stage, lines of metrics.jsonl and manifest.json. rows: by evaluated stage, the
    judged completions of its main protocol (`summary.main_rows`), whatever their condition.
    """

    folders: tuple[Path, ...]
    summary: dict[str, Any]
    manifest: dict[str, Any]
    stages: tuple[str, ...]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[Row]]
    rows: dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class _Folder:
    """What lies in one folder. rows: of all protocols."""

    path: Path
    summary: dict[str, Any]
    manifest: dict[str, Any]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[Row]]
    rows: dict[str, list[Row]]


def in_order(names: Iterable[str]) -> list[str]:
    """The known stages first, in their order, a later run's behind the first's, then the others as they come."""
    known, found = (*BASES, *REASONERS), list(dict.fromkeys(names))
    folders = list(dict.fromkeys(name.partition("@")[2] for name in found))

    def rank(name: str) -> tuple[int, int]:
        stage, _, folder = name.partition("@")
        return folders.index(folder), known.index(stage) if stage in known else len(known)

    return sorted(found, key=rank)


def read_runs(paths: Sequence[Path]) -> Run:
    """Read runs' folders as one. Raises `UserError` for a folder without results, metrics or summary, `DataError` for
    a file that is damaged.
    """
    folders = [_read_folder(path) for path in paths]
    merged = folders[0]
    for folder, label in zip(folders[1:], _labels(paths)[1:], strict=True):
        merged = _merge(merged, folder, label)
    computed = summary_of(merged.rows) if merged.rows else {}
    summary = {**merged.summary, **computed}
    for group in GROUPS:
        summary[group] = {**(merged.summary.get(group) or {}), **(computed.get(group) or {})}
    evaluated = [name for group in GROUPS for name in summary[group]]
    stages = in_order([*evaluated, *merged.rows, *merged.metrics, *merged.manifests])
    main = main_of(merged.rows)
    return Run(
        tuple(paths),
        summary,
        merged.manifest,
        tuple(stages),
        {name: merged.manifests[name] for name in stages if name in merged.manifests},
        {name: merged.metrics[name] for name in stages if merged.metrics.get(name)},
        {name: main[name] for name in stages if main.get(name)},
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with its parents' where two are alike."""
    for depth in range(1, 1 + max(len(path.resolve().parts) for path in paths)):
        labels = ["-".join(path.resolve().parts[-depth:]).strip("/") for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError(f"the same folder is given twice: {', '.join(map(str, paths))}")


def _merge(first: _Folder, other: _Folder, label: str) -> _Folder:
    """Two folders as one. Rows of a stage that is the same model in both go together, a sample that lies in both once;
    other stages of a name that is taken are renamed.
    """
    taken = {*first.rows, *first.manifests, *(name for group in GROUPS for name in first.summary.get(group) or {})}
    same = {stage for stage in other.rows if _models(first.rows.get(stage, [])) & _models(other.rows[stage])}

    def named(found: Mapping[str, Any]) -> dict[str, Any]:
        return {stage if stage in same or stage not in taken else f"{stage}@{label}": v for stage, v in found.items()}

    rows = {**first.rows}
    for stage, more in named(other.rows).items():
        there = {row["key"] for row in rows.get(stage, []) if "key" in row}
        rows[stage] = [*rows.get(stage, []), *(row for row in more if row.get("key") not in there)]
    groups = {group: {**named(other.summary.get(group) or {}), **(first.summary.get(group) or {})} for group in GROUPS}
    return _Folder(
        first.path,
        {**first.summary, **groups},
        first.manifest,
        {**named(other.manifests), **first.manifests},
        {**named(other.metrics), **first.metrics},
        rows,
    )


def _models(rows: Sequence[Row]) -> set[str]:
    return {row["model"] for row in rows}


def _read_folder(path: Path) -> _Folder:
    rows = {file.parent.name: read_rows(file) for file in sorted(path.glob("eval/*/results.jsonl"))}
    metrics = {file.parent.name: read_rows(file) for file in sorted(path.glob("*/metrics.jsonl"))}
    if not any(rows.values()) and not any(metrics.values()) and not (path / "summary.json").is_file():
        raise UserError(
            f"{path} holds no results (eval/*/results.jsonl) and no metrics (*/metrics.jsonl); give the folder of a "
            "run that `xreasoner eval`, `train` or `demo` wrote"
        )
    manifest = _read_json(path / "manifest.json")
    manifests = {file.parent.name: _read_json(file) for file in sorted(path.glob("*/manifest.json"))}
    recorded = manifest.get("stages")
    if isinstance(recorded, dict):
        manifests = {**{name: entry for name, entry in recorded.items() if isinstance(entry, dict)}, **manifests}
    return _Folder(path, _read_json(path / "summary.json"), manifest, manifests, metrics, rows)


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
