"""What long work shows: a bar with the time left for each task, and the table at the end."""

from __future__ import annotations

import time
from typing import Any, Protocol

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

from xreasoner.benchmarks.listing import plain

CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")


LINE_SECONDS = 30.0


class Show(Protocol):
    """Where progress goes: show(task, done, total, note)."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None: ...


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """A `Show` that shows nothing."""


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
        self._begun: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, note=note)
            self._begun[task] = (time.monotonic(), done)
        self._progress.update(self._tasks[task], completed=done, total=total, note=note)
        if self.console.is_terminal or not total:
            return
        now = time.monotonic()
        if done == total or now - self._written > LINE_SECONDS:
            self._written = now
            left = time_left(now - self._begun[task][0], done - self._begun[task][1], total - done)
            line = " ".join(part for part in (f"{task}: {done}/{total}", note, left) if part)
            self.console.print(line, highlight=False, markup=False)

    def training(self, stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
        name = "reward" if "reward" in metrics else "loss"
        self.show(f"train {stage}", step, total, f"{name} {metrics[name]:.3f}")


def time_left(seconds: float, done: int, remaining: int) -> str:
    """ "left 1:02:03" at the pace so far; "" where nothing is left or nothing was done."""
    if not remaining or done <= 0:
        return ""
    minutes, second = divmod(round(seconds / done * remaining), 60)
    return f"left {minutes // 60}:{minutes % 60:02}:{second:02}"


def ensembles(found: dict[str, dict[str, Any]]) -> str:
    """A line for each benchmark: accuracy with its 95 % interval, exits, and with several samples their ensembles."""
    several = any(result["ensemble"]["samples"] > 1 for result in found.values())
    heads = ["benchmark", "items", "correct %", "95 %", "forced %", "cut off %", "no answer %"]
    rows = []
    for name, result in found.items():
        together = result["ensemble"]
        items = result["n"] // max(together["samples"], 1) if not together["incomplete"] else result["n"]
        silent = sum(result["outcomes"].get(outcome, 0) for outcome in ("unparsed", "refused")) / result["n"]
        bounds = f"{100 * result['low']:.1f}–{100 * result['high']:.1f}"
        shares = (f"{100 * share:.1f}" for share in (result["forced"], result["truncated"], silent))
        rows.append([name, str(items), f"{100 * result['accuracy']:.1f}", bounds, *shares])
        if several:
            passes = " ".join(f"{k}: {100 * value:.1f}" for k, value in together["pass"].items())
            rows[-1] += [str(together["samples"]), f"{100 * together['majority']:.1f}", passes]
    return plain(rows, [*heads, "samples", "majority %", "pass@k %"] if several else heads)


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
