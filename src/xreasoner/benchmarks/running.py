"""Run benchmarks with an engine, judge, and store every sample; what the results show is summary.py's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from xreasoner.benchmarks.opening import check_name, default_prompt_of, open_benchmark
from xreasoner.benchmarks.protocol import ImageSettings, image_fields, protocol_fields, template_hash
from xreasoner.benchmarks.store import (
    Condition,
    ResultStore,
    Row,
    picture_hash,
    prompt_hash,
    read_rows,
    result_key,
    sample_seed,
    sampling_key,
    save_picture,
)
from xreasoner.benchmarks.summary import group_of
from xreasoner.completion import Completion
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.engines.driving import finished
from xreasoner.errors import DataError, XReasonerError, reason
from xreasoner.grading import judge
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages, template_of

GIVE_UP = 32
"""Requests that fail one after the other before the rest is given up."""
_CARRIED = ("precision", "name", "entry")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample of one problem that is to be run, the fields of its row that are known before, and its pictures'
    files, which are written while it is answered."""

    problem: Problem
    fields: Row
    images: Future[list[str]]


@dataclass(slots=True)
class _Work:
    """What is asked for, and how far it is."""

    store: ResultStore
    out: Path
    writer: Executor
    base: Row
    sampling: Sampling
    samples: int
    prompt: str | None
    images: ImageSettings
    actual: ImageSettings
    """The same with the image processor's own limits in place of None."""
    keys: list[str] = field(default_factory=list)
    done: int = 0
    failures: list[str] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)
    """Rows of `errors.jsonl`: samples that have no reply to be judged."""


def evaluate(
    engine: Engine,
    benches: list[str],
    out: Path,
    *,
    stage: str,
    model_hash: str,
    prompt: str | None,
    n: int | None,
    seed: int,
    sampling: Sampling,
    condition: Condition = "seen",
    samples: int = 1,
    progress: Callable[[int, int], None] | None = None,
    data: Path | None = None,
    images: ImageSettings = ImageSettings(),
    control: bool = False,
    opened: Mapping[str, Sequence[Problem]] | None = None,
    failures: list[str] | None = None,
) -> list[Row]:
    """Judge n problems of each benchmark (None: all), `samples` times each; results go to out/eval/STAGE/results.jsonl.

    What the store holds already (same model, item, prompt, pictures and sampling) is not run again; every sample is a
    request and a line of its own, with a seed that does not depend on how many there are. prompt: None for the paper's
    of each benchmark. condition: whether items are shown their pictures, none ("blind"), or another item's
    ("swapped"); under the last two, text problems are left out. data: a folder in place of the hub. images: how they
    are resized. control: whether the prompt is one that a declared control has by design. progress(done, total) counts
    samples. opened: benchmarks that are open
    already. Returns the rows asked for, in the order of the benchmarks. Raises `UserError` for an unknown benchmark and
    `DataError` for its data before anything is run, and `XReasonerError` at the end where items failed (or tells
    `failures` of it, and returns the other rows); what was finished is kept.
    """
    benches = list(dict.fromkeys(benches))
    for bench in benches:
        check_name(bench)
    sets = {bench: (opened or {}).get(bench) or open_benchmark(bench, n, seed, data) for bench in benches}
    plans = {bench: _plan(problems, condition) for bench, problems in sets.items()}
    total = samples * sum(len(plan) for plan in plans.values())
    store = ResultStore(out / "eval" / stage / "results.jsonl")
    if store.path.exists():
        store.append(())  # drops what a kill cut off, also where nothing is left to run
    base = {"stage": stage, "model": model_hash, "condition": condition, "seed": seed}
    base["sampling"] = sampling_key(sampling)
    base |= protocol_fields(sampling, samples, control)
    work = _Work(store, out, ThreadPoolExecutor(1), base, sampling, samples, prompt, images, _actual(images, engine))
    todo = (each for bench in benches for each in _samples(work, bench, sets[bench], plans[bench]))
    first = list(islice(todo, 1))  # by now what is stored before it is counted, and the pace begins
    if progress:
        progress(work.done, total)
    in_a_row = 0
    with work.writer:
        for sample, found in finished(engine, chain(first, todo)):
            in_a_row = 0 if _keep(work, sample, found) else in_a_row + 1
            if in_a_row >= GIVE_UP:
                break
            if progress:
                progress(work.done, total)
    _note_errors(store.path.with_name("errors.jsonl"), benches, work.errors)
    if work.failures and failures is None:
        raise _failed(work)
    if work.failures and failures is not None:
        failures.append(str(_failed(work)))
    return store.rows(key for key in work.keys if key in store)


def _actual(images: ImageSettings, engine: Engine) -> ImageSettings:
    """The settings with the image processor's own limits, where they are known, in place of None."""
    info = engine.info
    least = info.min_pixels if images.min_pixels is None else images.min_pixels
    most = info.max_pixels if images.max_pixels is None else images.max_pixels
    return images._replace(min_pixels=least, max_pixels=most)


def _plan(problems: Sequence[Problem], condition: Condition) -> list[tuple[int, int | None]]:
    """(place, the place of the item whose pictures are shown instead) of each problem to run."""
    if condition == "seen":
        return [(place, None) for place in range(len(problems))]
    modality = getattr(problems, "modality", None)
    if modality == "text":
        return []
    if condition == "swapped":
        places = {problem.id: place for place, problem in enumerate(problems)}
        donors = swaps(problems)
        return sorted((places[name], places[donor.id]) for name, donor in donors.items())
    return [(k, None) for k in range(len(problems)) if modality == "image" or problems[k].modality == "image"]


def swaps(problems: Sequence[Problem]) -> dict[str, Problem]:
    """For each item with pictures another whose pictures it is shown: the next in the order of a hash of the id
    whose pictures differ. An item that no other differs from is left out.
    """
    ring = [problem for problem in problems if problem.images]
    ring.sort(key=lambda problem: hashlib.sha256(problem.id.encode()).digest())
    pixels = [[picture.tobytes() for picture in problem.images] for problem in ring]
    found: dict[str, Problem] = {}
    for index, problem in enumerate(ring):
        others = (other % len(ring) for other in range(index + 1, index + len(ring)))
        donor = next((other for other in others if pixels[other] != pixels[index]), None)
        if donor is not None:
            found[problem.id] = ring[donor]
    return found


def _shown(problem: Problem, condition: Condition, donor: Problem | None) -> Problem:
    """The problem as the condition shows it: with its pictures, without, or with as many of the donor's."""
    if donor is not None:
        return replace(problem, images=tuple(islice(cycle(donor.images), len(problem.images))))
    return problem.without_images() if condition == "blind" else problem


def prompt_of(bench: str, problem: Problem, asked: str | None) -> str:
    """The prompt's name: what was asked for, else the paper's for the benchmark; one without options has no "below"."""
    name = asked or default_prompt_of(bench)
    return "paper-train" if not asked and name == "paper-mc" and not problem.options else name


def _samples(
    work: _Work, bench: str, problems: Sequence[Problem], plan: Sequence[tuple[int, int | None]]
) -> Iterator[tuple[_Sample, Request]]:
    """Every sample of a benchmark that is not there yet, with its request. Problems are made as they are needed."""
    for place, other in plan:
        try:
            donor = None if other is None else problems[other]
            own = problems[place]
            problem = _shown(own, work.base["condition"], donor)
        except DataError as error:
            work.failures.append(str(error))
            continue
        # each image is hashed once: its hash names it, and items about one image are one cluster
        hashes = [picture_hash(image) for image in own.images]
        shown = hashes if problem is own else [picture_hash(image) for image in problem.images]
        fields = {"cluster": own.cluster or "+".join(hashes) or own.id, "picture_hashes": shown}
        fields["data_revision"] = getattr(problems, "revision", "")
        yield from _samples_of(work, bench, problem, fields)


def _samples_of(work: _Work, bench: str, problem: Problem, fields: Row) -> Iterator[tuple[_Sample, Request]]:
    prompt = prompt_of(bench, problem, work.prompt)
    messages = chat_messages(problem, prompt)
    asked, pictures = prompt_hash(messages), fields["picture_hashes"]
    asked_size = [str(bound) for bound in (work.images.min_pixels, work.images.max_pixels) if bound and pictures]
    if pictures and work.images.preprocessing != "processor":
        asked_size.append(work.images.preprocessing)
    shared = {"prompt": prompt, "prompt_asked": work.prompt, "prompt_hash": asked, **fields}
    shared |= {"template_hash": template_hash(template_of(problem, prompt))}
    shared |= image_fields(work.actual, bool(pictures))
    for k in range(work.samples):
        sampling = work.sampling
        if sampling.temperature:
            sampling = replace(sampling, seed=sample_seed(sampling.seed, f"{bench}/{problem.id}", k))
        key = result_key(
            model=work.base["model"],
            bench=bench,
            item=problem.id,
            prompt=asked,
            pictures=[*pictures, *asked_size],
            sampling=work.base["sampling"],
            sample=k,
        )
        work.keys.append(key)
        if key in work.store:
            work.done += 1
            continue
        known = {**work.base, "key": key, "sample": k, "sample_seed": sampling.seed, "bench": bench, **shared}
        images = work.writer.submit(_save, problem, pictures, work.out)
        yield _Sample(problem, known, images), Request(messages, problem.images, 1, sampling, *work.images)


def _save(problem: Problem, hashes: Sequence[str], out: Path) -> list[str]:
    return [save_picture(picture, out, hashed) for picture, hashed in zip(problem.images, hashes, strict=True)]


def _keep(work: _Work, sample: _Sample, found: list[Completion] | Exception) -> bool:
    """Store a sample that was finished; False where it failed, which is written down and ends no other."""
    name = f"{sample.fields['bench']}/{sample.problem.id}"
    if isinstance(found, Exception):
        work.failures.append(f"item {name}: {reason(found)}")
        known = {name: sample.fields[name] for name in ("key", "stage", "bench", "condition", "sample")}
        work.errors.append({**known, "id": sample.problem.id, "outcome": "error", "note": reason(found)})
        return False
    if found[0].exit == "aborted":
        work.failures.append(f"item {name}: its sample {sample.fields['sample']} was stopped before its end")
        return False
    work.store.append([_row(sample, found[0], sample.images.result())])
    work.done += 1
    return True


def _note_errors(path: Path, benches: Sequence[str], errors: Sequence[Row]) -> None:
    """Write down which samples of these benchmarks failed, in the place of what was written of them before."""
    others = [row for row in read_rows(path) if row["bench"] not in benches]
    if others or errors:
        aside = path.with_suffix(".part")
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text("".join(json.dumps(row) + "\n" for row in [*others, *errors]), encoding="utf-8")
        aside.replace(path)
    else:
        path.unlink(missing_ok=True)


def _failed(work: _Work) -> XReasonerError:
    first, more = work.failures[0], len(work.failures) - 1
    others = f" (and {more} more)" if more else ""
    return XReasonerError(
        f"{first}{others}; the {work.done} samples that were finished are kept in {work.store.path}, "
        "the same command runs what is missing"
    )


def _carried(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a later grader needs beyond the gold, as far as JSON can hold it."""
    found = {name: meta[name] for name in _CARRIED if name in meta}
    try:
        return dict(json.loads(json.dumps(found)))
    except (TypeError, ValueError):
        return {}


def _row(sample: _Sample, completion: Completion, images: Sequence[str]) -> Row:
    """One line of results.jsonl."""
    problem = sample.problem
    verdict = judge(problem, completion.text, completion.exit)
    group, name = group_of(sample.fields["bench"])
    return {
        **sample.fields,
        "cell": name if group == "cells" else "",
        "id": problem.id,
        "family": problem.family,
        "domain": problem.domain,
        "modality": problem.modality,
        "question": problem.question,
        "options": list(problem.options),
        "gold": problem.gold,
        "answer_type": problem.answer_type,
        "meta": _carried(problem.meta),
        "response": completion.text,
        "thought": completion.thought,
        "answer": completion.answer,
        "outcome": verdict.outcome,
        "extracted": verdict.extracted,
        "normalised": verdict.normalised,
        "correct": verdict.correct,
        "exit": completion.exit,
        "prompt_tokens": completion.prompt_tokens,
        "thought_tokens": completion.thought_tokens,
        "answer_tokens": completion.answer_tokens,
        "image": images[0] if images else None,
        "images": list(images),
        "facts": problem.meta.get("facts"),
    }
