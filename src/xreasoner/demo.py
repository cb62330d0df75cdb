"""The full pipeline in one call: measure the base, post-train on text, measure each stage, write the report.

It is `train`, `eval` and `report` with one recipe, and resumes from whatever is on disk.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.opening import check_name
from xreasoner.benchmarks.store import read_rows
from xreasoner.benchmarks.summary import summary_of
from xreasoner.evaluating import evaluate_stage
from xreasoner.progress import Show, silent
from xreasoner.recipe import Evaluation, Recipe, RLStage, SFTStage
from xreasoner.reporting import write_report
from xreasoner.run_folder import check_run_folder
from xreasoner.training.preflight import check_run_files
from xreasoner.training.run import read_json, run_stage, versions, write_json


def run_demo(recipe: Recipe, out: Path, show: Show = silent) -> dict[str, Any]:
    """Run what is missing of the recipe in a folder; returns the summary.

    Raises `UserError` when the folder belongs to another recipe or seed.
    """
    claim(recipe, out)
    measure_stage(recipe, None, out, show)
    # what the end of the run does, tried on the base alone before hours of training
    gather(recipe, out)
    summarise_run(recipe, out)
    write_report(out)
    for stage in recipe.stages:
        with clock(out, f"train {stage.name}"):
            run_stage(recipe, stage, out, training_note(show))
        measure_stage(recipe, stage, out, show)
    gather(recipe, out)
    summary = summarise_run(recipe, out)
    write_report(out)
    return summary


def known_benches(settings: Evaluation) -> None:
    """Raise `UserError` for a benchmark that nobody registered, before anything is trained."""
    for name in settings.names:
        check_name(name)


def claim(recipe: Recipe, out: Path) -> None:
    """Write the run's manifest. Raises `UserError` for a folder of another recipe, and for unknown benchmarks."""
    known_benches(recipe.evaluation)
    check_run_folder(recipe, out)
    check_run_files(out)
    wanted = recipe.model_dump(mode="json", by_alias=True)
    manifest = read_json(out / "manifest.json")
    if manifest.get("recipe") != wanted:
        write_json(out / "manifest.json", {"seed": recipe.seed, "versions": versions(), **manifest, "recipe": wanted})


def gather(recipe: Recipe, out: Path) -> None:
    """Put what each stage's training and evaluation recorded (hashes, data, versions) into the run's manifest."""
    manifest = read_json(out / "manifest.json")
    trained = {stage.name: read_json(out / stage.name / "manifest.json") for stage in recipe.stages}
    manifest["stages"] = {
        name: {key: value for key, value in found.items() if key != "recipe"} for name, found in trained.items()
    }
    stages = ["base", *(stage.name for stage in recipe.stages)]
    manifest["evaluated"] = {stage: read_json(out / "eval" / stage / "done.json") for stage in stages}
    write_json(out / "manifest.json", manifest)


def measure_stage(recipe: Recipe, stage: SFTStage | RLStage | None, out: Path, show: Show) -> None:
    """Measure the base (None) or a stage, once."""
    name = "base" if stage is None else stage.name
    marker = out / "eval" / name / "done.json"
    if not marker.exists():
        with clock(out, f"eval {name}"):
            write_json(marker, evaluate_stage(recipe, stage, out, show))


def training_note(show: Show) -> Callable[[str, int, int, dict[str, Any]], None]:
    """Training's progress as one line: the loss, or the reward."""

    def progress(stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
        name = "reward" if "reward" in metrics else "loss"
        show(f"train {stage}", step, total, f"{name} {metrics[name]:.3f}")

    return progress


@contextmanager
def clock(out: Path, task: str) -> Iterator[None]:
    """Add the seconds of a task, over all restarts, to OUT/timings.json."""
    start = time.monotonic()
    try:
        yield
    finally:
        timings = read_json(out / "timings.json")
        timings[task] = timings.get(task, 0.0) + time.monotonic() - start
        write_json(out / "timings.json", timings)


def summarise_run(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Write summary.json from the results on disk; returns it."""
    stages = ["base", *(stage.name for stage in recipe.stages)]
    rows = {stage: read_rows(out / "eval" / stage / "results.jsonl") for stage in stages}
    summary = {**summary_of(rows), "timings": read_json(out / "timings.json")}
    write_json(out / "summary.json", summary)
    return summary


def closing(out: Path, last: str, timings: Mapping[str, float]) -> str:
    """What the demo says at its end: where everything is, how long it took, and what to try next."""
    exported = shlex.quote(str(out / last / "export"))
    question = "Ana has 14, Ben has 9, Cara has 20. By how much does the highest score exceed the lowest?"
    lines = {
        "report": out / "report.html",
        "summary": out / "summary.json",
        "reasoner": out / last / "export",
        "time": f"{sum(timings.values()) / 60:.1f} minutes",
        "try next": f'xreasoner ask {exported} "{question}"',
    }
    return "\n".join(f"{name:<11}{value}" for name, value in lines.items())
