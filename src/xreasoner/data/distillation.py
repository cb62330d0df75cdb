"""Chains of thought from a teacher, kept where the grader says correct: rejection sampling (the paper's for Med).

Every problem's samples are one line of a journal beside the output, written when the last of them is done; what was
sampled before a kill is read back, and no sample is drawn twice.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xreasoner.completion import Completion
from xreasoner.data.decontamination import words
from xreasoner.data.readers import BadRow, Row, json_line, read_records
from xreasoner.data.sources import chain
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.errors import DataError, UserError
from xreasoner.grading import judge
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, chat_messages
from xreasoner.recipe import Recipe
from xreasoner.registry import SOURCES, nearest, resolve
from xreasoner.trace import CLOSE


def distill_stage(
    recipe: Recipe,
    stage: str | None,
    teacher: str,
    out: Path,
    samples: int,
    sampling: Sampling,
    prompt: str | None,
    show: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """`distill` over the problems of a recipe's stage (the first of RL when None), with any engine as the teacher."""
    from xreasoner.engines.opening import open_engine

    chosen = [s for s in recipe.stages if (s.name == stage if stage else s.kind == "rl")]
    if not chosen:
        names = [s.name for s in recipe.stages]
        raise UserError(f"stage {stage or 'of kind rl'!r}: not in {recipe.name}; {nearest(stage or '', names)}")
    if out.is_dir():  # before the teacher has worked for hours
        raise UserError(f"{out} is a folder; expected the JSONL file's name, such as {out / 'chains.jsonl'}")
    asked = prompt or chosen[0].prompt
    if asked not in PROMPTS:
        raise UserError(f"unknown prompt {asked!r}; {nearest(asked, PROMPTS)}")
    problems = [
        problem
        for entry in chosen[0].data
        for problem in resolve(SOURCES, "data source", entry.source)(entry.options).problems(entry.n, recipe.seed)
    ]
    return distill(
        open_engine(teacher),
        problems,
        out,
        teacher=teacher,
        prompt=asked,
        samples=samples,
        sampling=sampling,
        progress=lambda done, total: show("distil", done, total),
    )


def distill(
    engine: Engine,
    problems: Sequence[Problem],
    out: Path,
    *,
    teacher: str,
    prompt: str,
    samples: int,
    sampling: Sampling,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Sample `samples` chains of each problem and write those that are right to a JSONL file; returns the report.

    Kept: judged correct, ended by itself, with a thought and an answer; of chains of the same words for one problem,
    the first. The lines are those that the source `rows` reads. Raises `UserError` where the journal is another
    teacher's, prompt's or sampling's.
    """
    unique = {problem.id: problem for problem in problems}
    if len(unique) < len(problems):
        twice = [name for name, count in Counter(problem.id for problem in problems).items() if count > 1]
        shown = ", ".join(map(repr, twice[:5])) + (f" and {len(twice) - 5:,} more" if len(twice) > 5 else "")
        raise UserError(f"several problems have one id ({shown}); expected an id of its own in every row")
    head = {"teacher": teacher, "prompt": prompt, "samples": samples, "sampling": asdict(sampling)}
    head = json.loads(json.dumps(head))
    journal = out.with_name(out.name + ".samples")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(journal, head)
    missing = [problem for problem in unique.values() if problem.id not in done]
    requests = [
        Request(chat_messages(p, prompt), n=samples, sampling=replace(sampling, seed=_seed(sampling.seed, p.id)))
        for p in missing
    ]
    with journal.open("a", encoding="utf-8") as file:

        def record(k: int, completions: list[Completion]) -> None:
            judged = [_judged(missing[k], completion) for completion in completions]
            file.write(json.dumps({"id": missing[k].id, "samples": judged}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[missing[k].id] = judged
            progress(len(done), len(unique))

        if requests:
            engine.generate(requests, on_done=record)
    return _write(out, unique, done, head)


def _seed(seed: int, name: str) -> int:
    """A problem's own seed, whichever problems are asked beside it."""
    return zlib.crc32(f"{seed}/{name}".encode())


def _judged(problem: Problem, completion: Completion) -> dict[str, Any]:
    """What the journal keeps of a sample. A chain whose opening tag the teacher left out or garbled is one all the
    same: the row that is trained on has it again.
    """
    thought, closed, reply = completion.text.rpartition(CLOSE)
    return {
        "outcome": judge(problem, completion.text, completion.exit).outcome,
        "exit": completion.exit,
        "thought": completion.thought or (thought.strip() if closed else ""),
        "answer": completion.answer,
        "reply": reply,
        "tokens": len(completion.token_ids),
    }


def _resume(journal: Path, head: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The samples of the whole lines of a journal, which is made where there is none; a line cut short is removed."""
    if not journal.exists():
        aside = journal.with_name(journal.name + ".partial")
        aside.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, journal)
        return {}
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(journal, len(whole))
    records = list(read_records(journal.with_suffix(".jsonl"), whole))
    bad = next((record for record in records if isinstance(record, BadRow)), None)
    if bad or not records:
        place = f"{journal}:{bad.number}: {bad.reason}" if bad else f"{journal}: is empty"
        raise DataError(f"{place}; delete that line, or remove the file to start again")
    first, *lines = [dict(record.values) for record in records if isinstance(record, Row)]
    if first != head:
        differ = ", ".join(key for key in head if first.get(key) != head[key])
        raise UserError(f"{journal} holds samples of another run ({differ} differ); choose another --out, or remove it")
    return {line["id"]: line["samples"] for line in lines}


def _write(
    out: Path, problems: dict[str, Problem], done: dict[str, list[dict[str, Any]]], head: dict[str, Any]
) -> dict[str, Any]:
    """Write the kept chains aside, then rename; returns the counts."""
    counts, solved, kept = Counter[str](), 0, 0
    aside = out.with_name(out.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        for name, problem in problems.items():
            counts.update(sample["outcome"] for sample in done[name])
            right = _distinct([sample for sample in done[name] if _is_kept(sample)])
            solved += bool(right)
            kept += len(right)
            for sample in right:
                file.write(json_line(_row(problem, sample, head["teacher"])) + "\n")
    os.replace(aside, out)
    return {"problems": len(problems), "solved": solved, "samples": sum(counts.values()), "kept": kept} | {
        "outcomes": dict(counts)
    }


def _is_kept(sample: dict[str, Any]) -> bool:
    return bool(
        sample["outcome"] == "correct" and sample["exit"] == "natural" and sample["thought"] and sample["answer"]
    )


def _distinct(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for sample in samples:
        found.setdefault(" ".join(words(sample["thought"])), sample)
    return list(found.values())


def _row(problem: Problem, sample: dict[str, Any], teacher: str) -> dict[str, Any]:
    row = {
        "id": problem.id,
        "question": problem.question,
        "options": list(problem.options) or None,
        "gold": problem.gold,
        "answer_type": problem.answer_type,
        "domain": problem.domain,
        "source": problem.source,
        "family": problem.family,
        "meta": dict(problem.meta) or None,
        "response": chain(sample["thought"], sample.get("reply") or sample["answer"]),
        "teacher": teacher,
        "tokens": sample["tokens"],
    }
    return {key: value for key, value in row.items() if value not in (None, "")}
