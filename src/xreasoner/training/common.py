"""What both stages share: the optimiser, its schedule, metrics on disk, and the loop's bookkeeping."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from xreasoner.errors import TrainingError
from xreasoner.recipe import AdamW
from xreasoner.training import checkpoints

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called as progress(stage, step, total, metrics)."""


def make_optimiser(model: Any, settings: AdamW) -> torch.optim.AdamW:
    """AdamW over the parameters that train; frozen ones stay outside, where weight decay cannot reach them."""
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(moving, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def rate(settings: AdamW, step: int, total: int, epochs: float = 1.0) -> float:
    """Learning rate of a step counted from 0."""
    warm = settings.warmup * total
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    left = (total - step) / max(1.0, total - warm)
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "epoch-decay": 0.8 ** math.floor(step / total * epochs),
    }[settings.schedule]
    return settings.lr * factor


def update(optimiser: torch.optim.Optimizer, lr: float, clip: float, out: Path, batch: Any) -> float:
    """One optimiser step; returns the gradient's norm before clipping. Stops on a NaN, with the batch saved."""
    moving = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(moving, clip).item()
    stop_on_nan(norm, "gradient's norm", out, batch)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends: a step is taken whole or not at all, and so is what is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for awaited in handlers:
        signal.signal(awaited, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        for received, handler in handlers.items():
            signal.signal(received, handler)
    for number, frame in waiting[:1]:
        handlers[signal.Signals(number)](number, frame)


class Journal:
    """metrics.jsonl (each step once, also after a resume), checkpoints, and the clock of one stage."""

    def __init__(self, out: Path, model: Any, optimiser: torch.optim.Optimizer, every: float) -> None:
        self.out, self.model, self.optimiser, self.every = out, model, optimiser, every
        self.step, self.seconds, self._saved = 0, 0.0, time.monotonic()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; later lines of metrics.jsonl are dropped."""
        state = checkpoints.latest(self.out / "checkpoints")
        if state is not None:
            moving = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, tensor in state["parameters"].items():
                    moving[name].copy_(tensor)
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]
            checkpoints.restore_rng(state["rng"])
        path = self.out / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= self.step]
        aside = path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(aside, path)

    def write(self, metrics: dict[str, Any]) -> None:
        """One finished step: its line, and a checkpoint when it is time."""
        self.step += 1
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **metrics}) + "\n")
        self.seconds += metrics["seconds"]
        if time.monotonic() - self._saved > self.every:
            self.save()

    def save(self) -> None:
        parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        state = {"parameters": parameters, "optimiser": self.optimiser.state_dict(), "seconds": self.seconds}
        checkpoints.save(self.out / "checkpoints", self.step, state)
        self._saved = time.monotonic()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line that a kill cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def stop_on_nan(value: float, what: str, out: Path, batch: Any) -> None:
    """Raise `TrainingError` for a value that is no number, with the batch saved beside the metrics."""
    if not math.isfinite(value):
        torch.save(batch, out / "offending-batch.pt")
        raise TrainingError(f"the {what} is {value}; the batch is in {out / 'offending-batch.pt'}; lower optimiser.lr")
