"""What `xreasoner eval` does: one model, some benchmarks, every reply kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.running import evaluate, summarise
from xreasoner.demo import Show, silent
from xreasoner.engines.base import Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import UserError
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import load
from xreasoner.prompts import PROMPTS, default_prompt
from xreasoner.registry import BENCHMARKS, nearest, resolve


def evaluate_model(
    model: str,
    benches: Sequence[str],
    out: Path,
    *,
    n: int,
    samples: int,
    temperature: float,
    blind: bool,
    prompt: str | None,
    seed: int,
    budget: int,
    show: Show = silent,
) -> dict[str, dict[str, Any]]:
    """{benchmark: {accuracy, n, low, high, …}}. Raises `UserError` for unknown names."""
    for bench in benches:
        resolve(BENCHMARKS, "benchmark", bench)
    chosen = prompt or default_prompt(model, ("A", "B"))
    if chosen not in PROMPTS:
        raise UserError(f"unknown prompt {chosen!r}; {nearest(chosen, PROMPTS)}")
    loaded = load(model)
    stage = stage_name(model)
    found = {}
    for bench in benches:
        rows = evaluate(
            TorchEngine(loaded),
            [bench],
            out,
            stage=stage,
            model_hash=fingerprint(sorted(loaded.model.state_dict().items()))[:16],
            prompt=chosen,
            n=n,
            seed=seed,
            sampling=Sampling(temperature=temperature, thinking_budget=budget, answer_budget=64, seed=seed),
            blind=blind,
            samples=samples,
            progress=lambda done, total, bench=bench: show(bench, done, total),  # type: ignore[misc]
        )
        (result,) = [
            entry for group in summarise([{**row, "blind": False} for row in rows]).values() for entry in group.values()
        ]
        found[bench] = result
    return found


def stage_name(model: str) -> str:
    """Under which name a model's results are kept: a run's `STAGE/export` is its stage's."""
    path = Path(model)
    if not path.exists():
        return model.replace("/", "--")
    path = path.resolve()
    return path.parent.name if path.name == "export" else path.name
