"""What long work shows: a bar with the time left for each task, and the table at the end."""

from __future__ import annotations

import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")


LINE_SECONDS = 30.0


class Screen:
    """Live progress on a terminal; elsewhere a line every half a minute and one for each finished task."""

    def __init__(self) -> None:
        self.console = Console()
        self._progress = Progress(
            TextColumn("{task.description:30}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._written = time.monotonic()

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)
        if self.console.is_terminal or not total:
            return
        now = time.monotonic()
        if done == total or now - self._written > LINE_SECONDS:
            self._written = now
            self.console.print(f"{task}: {done}/{total} {note}".rstrip(), highlight=False, markup=False)

    def training(self, stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
        name = "reward" if "reward" in metrics else "loss"
        self.show(f"train {stage}", step, total, f"{name} {metrics[name]:.3f}")


def matrix(summary: dict[str, Any]) -> Table:
    """Stage × cell, in per cent with 95 % intervals; fits 80 columns."""
    table = Table(title="correct, % (95 % interval)", box=SIMPLE_HEAD)
    table.add_column("stage")
    for cell in CELLS:
        table.add_column(cell, justify="right")
    for stage, cells in summary["cells"].items():
        row = []
        for cell in CELLS:
            found = cells.get(cell)
            bounds = f"{100 * found['low']:.0f}–{100 * found['high']:.0f}" if found else ""
            row.append(f"{100 * found['accuracy']:.1f} ({bounds})" if found else "")
        table.add_row(stage, *row)
    return table
