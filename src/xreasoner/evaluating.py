"""What `xreasoner eval` does: one model on any engine, some benchmarks, every sample kept."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.opening import check_name, default_prompt_of, open_benchmark
from xreasoner.benchmarks.running import evaluate
from xreasoner.benchmarks.samples import ensemble
from xreasoner.benchmarks.store import Condition, Row, read_rows
from xreasoner.benchmarks.summary import by_place, summarise
from xreasoner.benchmarks.table import CLOSED_AND_OPEN, TABLE
from xreasoner.demo import Show, silent
from xreasoner.engines.base import Engine, Sampling, sized
from xreasoner.engines.opening import addresses, open_engine
from xreasoner.errors import UserError
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import find
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, trained_prompt
from xreasoner.reasoner import EXIT_TEXT, checked, context, default_pixels, fitted_budget, served_name
from xreasoner.reasoner_settings import ReasonerSettings, read_reasoner_settings, warn_of_fallback
from xreasoner.registry import nearest
from xreasoner.training.run import read_json, write_json

PAPER_BUDGET = 4096
"""Thinking tokens until the forced exit."""
PAPER_TEMPERATURE = 0.3
"""Of several samples an item."""
ANSWER_BUDGET = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is asked. None: what the paper does, or, for the embedded models, what suits them.

    n: items of each benchmark; None: all. temperature: 0 for one sample, 0.3 for several. budget: thinking tokens,
    4096. prompt: the benchmark's own. data: a folder in place of the hub. exit_text, exit_on_repeats: see `Sampling`.
    """

    n: int | None = None
    samples: int = 1
    temperature: float | None = None
    condition: Condition = "seen"
    prompt: str | None = None
    seed: int = 0
    budget: int | None = None
    data: Path | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    exit_text: str | None = None
    exit_on_repeats: bool = False


def evaluate_model(
    model: str,
    benches: Sequence[str],
    out: Path,
    settings: Settings,
    show: Show = silent,
    *,
    engine: str | None = None,
    name: str | None = None,
    failures: list[str] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """{benchmark: {accuracy, n, low, high, …, "ensemble": see `samples.ensemble`}}.

    engine, options: as `engines.opening.open_engine` takes them. name: under which the results are kept; default: the
    model's (`stage_name`). failures: is told of benchmarks that are not whole, in
    place of raising `XReasonerError`. Raises `UserError` for unknown names and for data that is not there, before
    anything is run.
    """
    benches = list(dict.fromkeys(benches))
    for bench in benches:
        check_name(bench)
    if settings.prompt is not None and settings.prompt not in PROMPTS:
        raise UserError(f"unknown prompt {settings.prompt!r}; {nearest(settings.prompt, PROMPTS)}")
    temperature = _temperature(settings)
    opened = {bench: open_benchmark(bench, settings.n, settings.seed, settings.data) for bench in benches}
    running = open_engine(model, engine=engine, **options)
    carried = _own_settings(model, settings)
    own = carried or ReasonerSettings()
    sampling = checked(
        Sampling(
            temperature=temperature,
            thinking_budget=_budget(running, settings.budget, own),
            answer_budget=own.answer_budget or ANSWER_BUDGET,
            exit_text=settings.exit_text or own.exit_text or EXIT_TEXT,
            exit_on_repeats=settings.exit_on_repeats,
            seed=settings.seed,
        )
    )
    pixels = sized(settings.min_pixels, settings.max_pixels, default_pixels(carried, running))
    stage, known = name or stage_name(model), identity(model, running)
    claim_name(out, stage, model, known)
    prompt = settings.prompt or own_prompt(model, carried)
    found: dict[str, dict[str, Any]] = {}
    for bench in benches:
        _note(out / "eval" / stage / "protocol.json", bench, opened[bench], settings, sampling, prompt, known, running)
        rows = evaluate(
            running,
            [bench],
            out,
            stage=stage,
            model_hash=known,
            prompt=prompt,
            n=settings.n,
            seed=settings.seed,
            sampling=sampling,
            condition=settings.condition,
            samples=settings.samples,
            progress=lambda done, total, bench=bench: show(bench, done, total),  # type: ignore[misc]
            pixels=pixels,
            opened=opened,
            failures=failures,
        )
        if rows:
            found |= _results(bench, rows)
    if not found and not failures:
        raise UserError(
            f"{', '.join(benches)}: no item has an image, and the {settings.condition} condition is about images; "
            "omit --blind and --swapped"
        )
    return found


def _results(bench: str, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """One result a benchmark; of medical visual questions one for the closed and one for the open ones."""
    results = {}
    for (group, name), members in by_place(rows).items():
        result = summarise([{**row, "condition": "seen"} for row in members])[group][name]
        shown = name if bench in CLOSED_AND_OPEN else bench
        results[shown] = {**result, "ensemble": ensemble(members)}
    return results


def _temperature(settings: Settings) -> float:
    if settings.temperature is None:
        return PAPER_TEMPERATURE if settings.samples > 1 else 0.0
    if settings.temperature == 0 and settings.samples > 1:
        raise UserError(
            f"--samples {settings.samples} with --temperature 0: greedy samples are all alike; "
            f"expected a temperature above 0 (the paper's is {PAPER_TEMPERATURE})"
        )
    return settings.temperature


def _own_settings(model: str, settings: Settings) -> ReasonerSettings | None:
    """What the checkpoint carries; of a server's model nothing is known."""
    if addresses(model):
        return None
    own = read_reasoner_settings(model)
    if own is None and settings.prompt is None and trained_prompt(model, own) is None:
        budgets = f"thinking budget {PAPER_BUDGET:,}, answer budget {ANSWER_BUDGET}"
        warn_of_fallback(model, f"each benchmark's own prompt is used, {budgets}")
    return own


def _budget(engine: Engine, asked: int | None, own: ReasonerSettings) -> int:
    budget = asked or own.thinking_budget or PAPER_BUDGET
    return fitted_budget(budget, context(engine), asked is not None)


def claim_name(out: Path, stage: str, model: str, known: str) -> None:
    """Write down which model a name stands for in a folder.

    Raises:
        UserError: where the name's results are another model's: other weights, or another server.
    """
    path = out / "eval" / stage / "model.json"
    noted = read_json(path)
    rows = [] if noted else read_rows(path.with_name("results.jsonl"))
    before = noted.get("identity") or (rows[-1]["model"] if rows else None)
    if before is not None and not _same(before, known):
        whose = f" ({noted['path']}, {before[:16]})" if noted else f" ({before[:16]})"
        raise UserError(
            f"{out} holds results of another model under the name {stage!r}{whose}, and {model} is {known[:16]}; "
            "give this one a name by --name, or choose another --out"
        )
    where = str(Path(model).resolve()) if Path(model).exists() else model
    write_json(path, {"identity": known, "path": where, **_provenance(model), "first": noted.get("first", time.time())})


def _same(before: str, now: str) -> bool:
    """Whether two identities are one model's: where both name a chat template, those too."""
    (a, _, b), (c, _, d) = before.partition("-"), now.partition("-")
    return before == now or (a == c and not (b and d))


def _provenance(model: str) -> dict[str, str]:
    """What a checkpoint says of the model that it was trained from, if anything."""
    settings = read_reasoner_settings(model, hub=False)
    base = {} if settings is None else settings.provenance.get("base")
    if isinstance(base, dict) and base.get("model"):
        return {"trained_from": str(base["model"])}
    path = Path(model).parent / "manifest.json"
    recipe = read_json(path).get("recipe") if path.is_file() else None
    named = recipe.get("model") if isinstance(recipe, dict) else None
    return {"trained_from": named} if isinstance(named, str) and named else {}


def own_prompt(model: str, own: ReasonerSettings | None) -> str | None:
    """The brief prompt of a model that was trained on nothing else; None where the benchmarks' own suit it."""
    name = trained_prompt(model, own)
    return name if name and name.startswith("brief") else None


def identity(model: str, engine: Engine) -> str:
    """What stands for a model in the results' keys: a hash of its weights and its chat template.

    Behind a URL neither can be seen: the served name stands for it, so another model under that name needs another
    `--out`.
    """
    loaded = getattr(engine, "loaded", None)
    if loaded is not None:
        weights = fingerprint(sorted(loaded.model.state_dict().items()))[:16]
        return f"{weights}-{_sha(str(loaded.tokenizer.chat_template).encode())[:8]}"
    if addresses(model):
        return f"served {served_name(engine) or model}"
    folder = Path(find(model))
    if not folder.is_dir():
        return f"hub {model}"
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.jinja"), *folder.glob("tokenizer*.json")])
    return _sha("".join(_sha_file(path) for path in files).encode())[:16]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(
    path: Path,
    bench: str,
    problems: Sequence[Problem],
    settings: Settings,
    sampling: Sampling,
    prompt: str | None,
    model: str,
    engine: Engine,
) -> None:
    """Write down the protocol of a benchmark's number; those of other benchmarks stay."""
    entry = TABLE.get(bench)
    names = ("hub", "revision", "config", "split", "where", "count", "licence", "note")
    source = {name: getattr(entry, name) for name in names} if entry else {}
    noted = read_json(path)
    protocol = {
        **source,
        "items": len(problems),
        "prompt": prompt or default_prompt_of(bench),
        "condition": settings.condition,
        "samples": settings.samples,
        "seed": settings.seed,
        "sampling": asdict(sampling),
        "model": model,
        "engine": engine.name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({**noted, f"{bench} ({settings.condition})": protocol}, indent=1), encoding="utf-8")
    aside.replace(path)


def stage_name(model: str) -> str:
    """Under which name a model's results are kept: a run's `STAGE/export` is its stage's."""
    if addresses(model):
        return re.sub(r"[^\w.+-]+", "-", model.partition("://")[2]).strip("-")
    path = Path(model)
    if not path.exists():
        return model.replace("/", "--")
    path = path.resolve()
    return path.parent.name if path.name == "export" else path.name
