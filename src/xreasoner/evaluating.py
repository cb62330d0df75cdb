"""The one evaluator: any model on any engine, some benchmarks, every sample kept with its protocol.

`xreasoner eval` measures one model (`evaluate_model`); a recipe's run measures its base and every stage
(`evaluate_stage`). Both open an engine, name the model by the same identity, and run the same `measure`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.opening import check_name, default_prompt_of, open_benchmark
from xreasoner.benchmarks.protocol import ImageSettings
from xreasoner.benchmarks.running import evaluate
from xreasoner.benchmarks.samples import ensemble
from xreasoner.benchmarks.store import Condition, Row, read_rows
from xreasoner.benchmarks.summary import by_place, summarise
from xreasoner.benchmarks.table import CLOSED_AND_OPEN, TABLE
from xreasoner.checks import check_preprocessing
from xreasoner.engines.base import Engine, Preprocessing, Sampling, sized
from xreasoner.engines.opening import addresses, open_engine
from xreasoner.errors import UserError
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import find
from xreasoner.problem import Problem
from xreasoner.progress import Show, silent
from xreasoner.prompts import PROMPTS, trained_prompt
from xreasoner.reasoner import checked, context, default_pixels, fitted_budget, served_name
from xreasoner.reasoner_settings import ReasonerSettings, read_reasoner_settings, warn_of_fallback
from xreasoner.recipe import Evaluation, Recipe, RLStage, SFTStage
from xreasoner.registry import nearest
from xreasoner.training.run import read_json, write_json

PAPER_BUDGET = 4096
"""Thinking tokens until the forced exit."""
PAPER_TEMPERATURE = 0.3
"""Of several samples an item."""
PAPER_EXIT = "</think>"
"""What the paper appends at the forced exit; the model then writes its answer itself."""
ANSWER_BUDGET = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is asked. None: what the paper does, or, for the embedded models, what suits them.

    n: items of each benchmark; None: all. temperature: 0 for one sample, 0.3 for several. budget: thinking tokens,
    4096. prompt: the benchmark's own. data: a folder in place of the hub. preprocessing: see `engines.base.Request`.
    exit_text, exit_on_repeats: see `Sampling`.
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
    preprocessing: Preprocessing = "processor"
    exit_text: str | None = None
    exit_on_repeats: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured.

    Attributes:
        engine: What runs it.
        stage: The name under which its results are kept.
        model: As the user named it.
        identity: What stands for its weights and chat template; see `identity`.
    """

    engine: Engine
    stage: str
    model: str
    identity: str


@dataclass(frozen=True, slots=True)
class Harness:
    """What is the same for everything that is measured together.

    Attributes:
        n: Items of each benchmark; None: all.
        seed: Seed of the choice of items, and of sampling.
        samples: Samples of each item.
        sampling: Budgets, temperature, exit text.
        images: How images are resized.
        opened: The benchmarks' problems.
    """

    n: int | None
    seed: int
    samples: int
    sampling: Sampling
    images: ImageSettings
    opened: Mapping[str, Sequence[Problem]]


@dataclass(frozen=True, slots=True)
class Part:
    """Some benchmarks that are asked in the same way.

    Attributes:
        benches: Their names.
        prompt: Name of the prompt; None: each benchmark's own.
        condition: What becomes of the images.
        control: Whether the prompt is one that a declared control has by design.
    """

    benches: Sequence[str]
    prompt: str | None
    condition: Condition = "seen"
    control: bool = False


def measure(
    subject: Subject,
    harness: Harness,
    part: Part,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    failures: list[str] | None = None,
) -> list[Row]:
    """Ask a model some benchmarks; their rows go to out/eval/STAGE/results.jsonl, the protocol beside them.

    Args:
        subject: The model.
        harness: What is the same for all that is measured together.
        part: The benchmarks, and how they are asked.
        out: The run's folder.
        progress: Is called with the samples that are done, and all of them.
        failures: Is told of benchmarks that are not whole, in place of raising `XReasonerError`.

    Returns:
        The rows asked for, in the order of the benchmarks.
    """
    folder = out / "eval" / subject.stage
    for bench in part.benches:
        _note(folder / "protocol.json", bench, subject, harness, part)
    return evaluate(
        subject.engine,
        list(part.benches),
        out,
        stage=subject.stage,
        model_hash=subject.identity,
        prompt=part.prompt,
        n=harness.n,
        seed=harness.seed,
        sampling=harness.sampling,
        condition=part.condition,
        samples=harness.samples,
        progress=progress,
        images=harness.images,
        control=part.control,
        opened=harness.opened,
        failures=failures,
    )


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
    temperature, preprocessing = _temperature(settings), check_preprocessing(settings.preprocessing)
    opened = {bench: open_benchmark(bench, settings.n, settings.seed, settings.data) for bench in benches}
    running = open_engine(model, engine=engine, **options)
    carried = _own_settings(model, settings)
    own = carried or ReasonerSettings()
    sampling = checked(
        Sampling(
            temperature=temperature,
            thinking_budget=_budget(running, settings.budget, own),
            answer_budget=own.answer_budget or ANSWER_BUDGET,
            exit_text=settings.exit_text or own.exit_text or PAPER_EXIT,
            exit_on_repeats=settings.exit_on_repeats,
            seed=settings.seed,
        )
    )
    pixels = sized(settings.min_pixels, settings.max_pixels, default_pixels(carried, running))
    images = ImageSettings(*pixels, preprocessing)
    harness = Harness(settings.n, settings.seed, settings.samples, sampling, images, opened)
    subject = Subject(running, name or stage_name(model), model, identity(model, running))
    claim_name(out, subject.stage, model, subject.identity)
    trained = own_prompt(model, carried)
    is_control = settings.prompt is None and bool(trained) and str(trained).endswith("-direct")
    found: dict[str, dict[str, Any]] = {}
    for bench in benches:
        part = Part([bench], settings.prompt or trained, settings.condition, is_control)
        rows = measure(subject, harness, part, out, lambda done, total, bench=bench: show(bench, done, total), failures)  # type: ignore[misc]
        if rows:
            found |= _results(bench, rows)
    if not found and not failures:
        raise UserError(
            f"{', '.join(benches)}: no item has an image, and the {settings.condition} condition is about images; "
            "omit --blind and --swapped"
        )
    return found


def evaluate_stage(
    recipe: Recipe, stage: SFTStage | RLStage | None, out: Path, show: Show = silent, engine: Engine | None = None
) -> dict[str, Any]:
    """Everything that a recipe's base (stage: None) or one of its stages is measured on.

    One harness for all: the same prompt, pixels and budgets, whatever a checkpoint says of itself.

    Args:
        recipe: The run's.
        stage: The stage, whose export is measured; None: the base.
        out: The run's folder.
        show: Where progress goes.
        engine: What runs the model; default: opened as the recipe says.

    Returns:
        model_sha256 (the model's identity) and prompts (of each part).
    """
    evaluation, name = recipe.evaluation, "base" if stage is None else stage.name
    model = recipe.model if stage is None else str(out / stage.name / "export")
    running = engine or open_engine(model)
    names = dict.fromkeys(evaluation.names)
    opened = {bench: open_benchmark(bench, evaluation.n, evaluation.seed) for bench in names}
    harness = recipe_harness(evaluation, running, opened)
    subject = Subject(running, name, model, identity(model, running))
    claim_name(out, name, model, subject.identity)
    parts = stage_parts(evaluation, stage)
    for label, part in parts.items():
        measure(subject, harness, part, out, _progress(show, f"measure {name}: {label}"))
    return {
        "model_sha256": subject.identity,
        "prompts": {label: part.prompt or "the benchmark's own" for label, part in parts.items()},
    }


def recipe_harness(evaluation: Evaluation, engine: Engine, opened: Mapping[str, Sequence[Problem]]) -> Harness:
    """How a recipe measures its base and all of its stages: by the recipe alone."""
    says = "thinking_budget" in evaluation.model_fields_set
    sampling = Sampling(
        thinking_budget=fitted_budget(evaluation.thinking_budget, context(engine), says),
        answer_budget=evaluation.answer_budget,
        exit_text=evaluation.exit_text,
    )
    pixels = sized(evaluation.min_pixels, evaluation.max_pixels, default_pixels(None, engine))
    images = ImageSettings(*pixels, evaluation.preprocessing)
    return Harness(evaluation.n, evaluation.seed, 1, sampling, images, opened)


def stage_parts(evaluation: Evaluation, stage: SFTStage | RLStage | None) -> dict[str, Part]:
    """What a recipe measures of its base (None) or of a stage, by the name that progress shows.

    A declared control has a prompt of its own: the base where the recipe sets `base_prompt`, and a stage that was
    trained on bare answers (`style: direct`). Reading is asked alike at every stage.
    """
    own = evaluation.base_prompt if stage is None else None
    if isinstance(stage, SFTStage) and stage.style == "direct":
        own = stage.prompt
    prompt, is_control = own or evaluation.prompt, own is not None
    parts = {
        "cells": Part(evaluation.benches, prompt, "seen", is_control),
        "blind": Part(evaluation.benches, prompt, "blind", is_control),
        "swapped": Part(evaluation.benches if evaluation.swapped else (), prompt, "swapped", is_control),
        "reading": Part(evaluation.reading, evaluation.base_prompt or evaluation.prompt),
        "others": Part(evaluation.others, prompt, "seen", is_control),
    }
    return {name: part for name, part in parts.items() if part.benches}


def _progress(show: Show, task: str) -> Callable[[int, int], None]:
    return lambda done, total: show(task, done, total)


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


def _note(path: Path, bench: str, subject: Subject, harness: Harness, part: Part) -> None:
    """Write down the protocol of a benchmark's number; those of other benchmarks stay."""
    entry = TABLE.get(bench)
    names = ("hub", "revision", "config", "split", "where", "count", "licence", "note")
    source = {name: getattr(entry, name) for name in names} if entry else {}
    noted = read_json(path)
    protocol = {
        **source,
        "items": len(harness.opened[bench]),
        "prompt": part.prompt or default_prompt_of(bench),
        "control": part.control,
        "condition": part.condition,
        "samples": harness.samples,
        "seed": harness.seed,
        "sampling": asdict(harness.sampling),
        "images": harness.images._asdict(),
        "model": subject.identity,
        "engine": subject.engine.name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    text = json.dumps({**noted, f"{bench} ({part.condition})": protocol}, indent=1)
    aside.write_text(text, encoding="utf-8")
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
