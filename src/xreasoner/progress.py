"""What long work shows: a bar with the time left for each task, and the table at the end."""

from __future__ import annotations

from typing import Any

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


class Screen:
    """Live progress on a terminal; one line a finished task elsewhere."""

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

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)
        if not self.console.is_terminal and done == total and total:
            self.console.print(f"{task}: {done}/{total} {note}", highlight=False)

    def training(self, stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
        name = "reward" if "reward" in metrics else "loss"
        self.show(f"train {stage}", step, total, f"{name} {metrics[name]:.3f}")


def matrix(summary: dict[str, Any]) -> Table:
    """Stage × cell, in per cent with 95 % intervals."""
    table = Table(title="correct, % (95 % interval)")
    table.add_column("stage")
    for cell in CELLS:
        table.add_column(cell, justify="right")
    for stage, cells in summary["cells"].items():
        row = []
        for cell in CELLS:
            found = cells.get(cell)
            bounds = f"{100 * found['low']:.1f}–{100 * found['high']:.1f}" if found else ""
            row.append(f"{100 * found['accuracy']:.1f} ({bounds})" if found else "")
        table.add_row(stage, *row)
    return table
