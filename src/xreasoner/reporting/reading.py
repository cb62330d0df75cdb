"""Reading runs' folders for the report. Whatever is not there yet is empty; results, metrics or a summary must be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.store import Row, read_rows
from xreasoner.benchmarks.summary import BASES, GROUPS, REASONERS, main_of, summary_of
from xreasoner.errors import DataError, UserError
from xreasoner.registry import nearest

CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")
"""The cells of the matrix in the order in which the page shows them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One or several runs' folders as the report needs them.

    stages: names in the order of the run; a stage that a second folder has too, of another model, is STAGE@FOLDER.
    metrics, manifests: by trained stage, lines of metrics.jsonl and manifest.json. rows: by evaluated stage, the
    judged completions of its main protocol (`summary.main_rows`), whatever their condition. baseline: the stage that
    all others are compared with, None where each is compared with the better base of its run; reason: why that one.
    """

    folders: tuple[Path, ...]
    summary: dict[str, Any]
    manifest: dict[str, Any]
    stages: tuple[str, ...]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[Row]]
    rows: dict[str, list[Row]]
    baseline: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Folder:
    """What lies in one folder. rows: of all protocols; models: by evaluated stage, what is known of the model."""

    path: Path
    summary: dict[str, Any]
    manifest: dict[str, Any]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[Row]]
    rows: dict[str, list[Row]]
    models: dict[str, dict[str, Any]]


def in_order(names: Iterable[str]) -> list[str]:
    """The known stages first, in their order, a later run's behind the first's, then the others as they come."""
    known, found = (*BASES, *REASONERS), list(dict.fromkeys(names))
    folders = list(dict.fromkeys(name.partition("@")[2] for name in found))

    def rank(name: str) -> tuple[int, int]:
        stage, _, folder = name.partition("@")
        return folders.index(folder), known.index(stage) if stage in known else len(known)

    return sorted(found, key=rank)


def read_runs(paths: Sequence[Path], baseline: str | None = None) -> Run:
    """Read runs' folders as one. baseline: the stage, or one of the folders, that the others are compared with.

    Raises `UserError` for a folder without results, metrics or summary and for an unknown baseline, `DataError` for a
    file that is damaged.
    """
    folders = [_read_folder(path) for path in paths]
    merged = folders[0]
    for folder, label in zip(folders[1:], _labels(paths)[1:], strict=True):
        merged = _merge(merged, folder, label)
    chosen, reason = _baseline(merged, paths, baseline)
    computed = summary_of(merged.rows, chosen) if merged.rows else {}
    if baseline is not None and chosen is not None:
        _check_comparable(computed.get("gains") or [], chosen, in_order(merged.rows))
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
        chosen,
        reason,
    )


_BASE_NAME = re.compile(r"(?<![a-z])(base|before|baseline|original)(?![a-z])")


def _baseline(merged: _Folder, paths: Sequence[Path], asked: str | None) -> tuple[str | None, str]:
    """(the stage that the others are compared with, why). None: the better base of each run, as `summary` chooses it.

    Raises `UserError` for a baseline that is no stage and no folder of the runs.
    """
    stages = in_order(merged.rows)
    if asked is not None:
        return _asked_baseline(stages, paths, asked), "--baseline"
    if len(stages) < 2 or any(stage.partition("@")[0] in BASES for stage in stages):
        return None, ""
    models = {stage: merged.models.get(stage, {}) for stage in stages}
    origins = [model.get("trained_from") for model in models.values()]
    for stage, model in models.items():
        if {stage, model.get("path", stage)} & {origin for origin in origins if origin}:
            return stage, "the others were trained from it"
    for stage in stages:
        if _BASE_NAME.search(stage.lower()):
            return stage, "by its name"
    untrained = [stage for stage, model in models.items() if not model.get("trained_from")]
    if len(untrained) == 1:
        return untrained[0], "the only one that was not trained here"
    first = {stage: float(model["first"]) for stage, model in models.items() if "first" in model}
    if len(first) == len(stages):
        return min(stages, key=lambda stage: first[stage]), "it was measured first"
    reasoners = [stage for stage in stages if stage.partition("@")[0] in REASONERS]
    if reasoners:
        return None, ""
    return stages[0], "no other order is known"


def _asked_baseline(stages: Sequence[str], paths: Sequence[Path], asked: str) -> str:
    """The stage that a user named, or the base (or only stage) of the folder that was named."""
    if asked in stages:
        return asked
    for path, label in zip(paths, _labels(paths), strict=True):
        if asked == label or Path(asked).resolve() == path.resolve():
            own = {file.parent.name for file in path.glob("eval/*/results.jsonl")}
            here = [stage for stage in stages if stage.partition("@")[0] in own]
            mine = [stage for stage in here if stage.endswith(f"@{label}")] or [s for s in here if "@" not in s]
            bases = [stage for stage in mine if stage.partition("@")[0] == BASES[0]]
            if bases or len(mine) == 1:
                return (bases or mine)[0]
            raise UserError(f"--baseline {asked}: the folder holds {', '.join(mine)}; name one of these stages")
    raise UserError(f"--baseline {asked}: not a stage or folder of these runs; {nearest(asked, stages)}")


def _check_comparable(gains: Sequence[Mapping[str, Any]], baseline: str, stages: Sequence[str]) -> None:
    """Raise `UserError` if no number of any other stage can be compared with the baseline's."""
    others = [stage for stage in stages if stage != baseline]
    against = [gain for gain in gains if gain["before"] == baseline and gain["kind"] != "ratio"]
    if not others or any(gain["difference"] is not None for gain in against):
        return
    if not against:
        raise UserError(
            f"--baseline {baseline}: it shares no item with {', '.join(others)}; evaluate both on the same benchmarks "
            "with the same --seed, or choose another baseline"
        )
    fields = dict.fromkeys(
        f"{each['field']} ({gain['after']}: {each['after']}; {baseline}: {each['before']})"
        for gain in against
        for each in gain["differs"]
    )
    raise UserError(
        f"--baseline {baseline}: nothing is comparable with it, for it was measured differently: {', '.join(fields)}; "
        "evaluate both with the same options, or choose another baseline"
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
        {**named(other.models), **first.models},
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
    models = {file.parent.name: _read_json(file) for file in sorted(path.glob("eval/*/model.json"))}
    return _Folder(path, _read_json(path / "summary.json"), manifest, manifests, metrics, rows, models)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, or {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it again with the command that made it") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
