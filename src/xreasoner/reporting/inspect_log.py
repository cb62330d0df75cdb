"""Stored results as logs of Inspect AI (https://inspect.aisi.org.uk), one a benchmark and condition, for its viewer.

The writer needs nothing of that package: the format is its JSON log, version 2. Pictures go in as data URIs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xreasoner import __version__
from xreasoner.benchmarks.statistics import Estimate, accuracy
from xreasoner.benchmarks.store import Row, condition_of, read_rows
from xreasoner.benchmarks.summary import main_rows
from xreasoner.errors import UserError
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, render
from xreasoner.reporting.page import write_text

STOP = {
    **{"natural": "stop", "forced": "stop", "truncated": "max_tokens", "aborted": "unknown"},
    "refused": "content_filter",
}
REASONS = {
    "unparsed": "invalid_response_format",
    "refused": "refusal",
    "truncated": "no_response",
    "error": "grader_failed",
}
SCORER = "xreasoner"


def write_logs(runs: Sequence[Path], out: Path, stages: Sequence[str] | None = None) -> list[Path]:
    """Write the logs of runs' folders (all stages, or those named) to a folder; returns their files.

    Of a benchmark that was measured under several protocols, the main one is written (`summary.main_rows`).
    `inspect view --log-dir OUT` shows them. Raises `UserError` where there are no results.
    """
    written = []
    for run in runs:
        for path in sorted(run.glob("eval/*/results.jsonl")):
            if stages is None or path.parent.name in stages:
                when = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
                for rows in _by_log(main_rows(read_rows(path))):
                    log = log_of(rows, run, when)
                    file = out / f"{when:%Y-%m-%dT%H-%M-%S}+00-00_{log['eval']['task']}_{log['eval']['task_id']}.json"
                    write_text(file, json.dumps(log, ensure_ascii=False))
                    written.append(file)
    if not written:
        raise UserError(
            f"{', '.join(map(str, runs))}: no results (eval/*/results.jsonl) to log; run `xreasoner eval` first"
        )
    return written


def _by_log(rows: Sequence[Row]) -> Iterator[list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["bench"], condition_of(row)), []).append(row)
    yield from found.values()


def log_of(rows: Sequence[Row], folder: Path, when: datetime) -> dict[str, Any]:
    """One log: rows of one stage, benchmark and condition. when: the time that the log is given, in UTC."""
    first, samples = rows[0], 1 + max(row["sample"] for row in rows)
    condition = condition_of(first)
    task = first["bench"] if condition == "seen" else f"{first['bench']}-{condition}"
    named = hashlib.sha256(f"{first['stage']}/{task}/{first['model']}/{first['sampling']}".encode()).hexdigest()[:22]
    stamp = when.isoformat()
    ids = list(dict.fromkeys(row["id"] for row in rows))
    estimate = accuracy([row["correct"] for row in rows], [row["id"] for row in rows])
    config = {"max_tokens": first.get("thinking_budget"), "temperature": first.get("temperature")}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": named,
            "run_id": named,
            "created": stamp,
            "task": task,
            "task_id": named,
            "dataset": {"name": first["bench"], "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": f"xreasoner/{first['stage']}",
            "model_generate_config": {key: value for key, value in config.items() if value is not None},
            "config": {"limit": len(ids), "epochs": samples},
            "packages": {"xreasoner": __version__},
            "metadata": {key: first[key] for key in ("prompt", "seed", "sampling", "model")} | {"condition": condition},
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {"prompt": first["prompt"]}}]},
        "results": _results(rows, estimate),
        "stats": {
            "started_at": stamp,
            "completed_at": stamp,
            "model_usage": {f"xreasoner/{first['stage']}": _usage(rows)},
        },
        "samples": [_sample(row, folder) for row in rows],
    }


def _results(rows: Sequence[Row], estimate: Estimate) -> dict[str, Any]:
    values = {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
    values |= {f"share {name}": count / len(rows) for name, count in Counter(row["outcome"] for row in rows).items()}
    metrics = {name: {"name": name, "value": value} for name, value in values.items()}
    scores = [
        {"name": SCORER, "scorer": SCORER, "scored_samples": len(rows), "unscored_samples": 0, "metrics": metrics}
    ]
    return {"total_samples": len(rows), "completed_samples": len(rows), "scores": scores}


def _usage(rows: Sequence[Row]) -> dict[str, int]:
    prompt = sum(row["prompt_tokens"] for row in rows)
    thought = sum(row["thought_tokens"] for row in rows)
    answer = sum(row["answer_tokens"] for row in rows)
    counts = {"input_tokens": prompt, "output_tokens": thought + answer, "reasoning_tokens": thought}
    return {**counts, "total_tokens": prompt + thought + answer}


def _sample(row: Row, folder: Path) -> dict[str, Any]:
    """One reply. The thought is reasoning content, so that the viewer folds it."""
    usage, model = _usage([row]), f"xreasoner/{row['stage']}"
    content: list[dict[str, Any]] = [{"type": "text", "text": _asked(row)}]
    picture, attachments = _picture(folder, row.get("image")), {}
    if picture:  # once in the sample, though it stands in its input and in its messages
        name = hashlib.sha256(picture.encode()).hexdigest()[:32]
        attachments[name] = picture
        content.insert(0, {"type": "image", "image": f"attachment://{name}"})
    said = [{"type": "reasoning", "reasoning": row["thought"]}] if row["thought"] else []
    answer = {"role": "assistant", "source": "generate", "model": model}
    answer["content"] = [*said, {"type": "text", "text": row["answer"]}]  # type: ignore[assignment]
    asked = [{"role": "user", "content": content}]
    score: dict[str, Any] = {"value": "C" if row["correct"] else "I", "answer": row["extracted"]}
    score |= {"explanation": row["response"], "metadata": {"outcome": row["outcome"], "exit": row["exit"]}}
    if row["outcome"] in REASONS:
        score["reason"] = REASONS[row["outcome"]]
    return {
        "id": row["id"],
        "epoch": row["sample"] + 1,
        "input": asked,
        "choices": list(row["options"]) or None,
        "target": str(row["gold"]),
        "messages": [*asked, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": STOP[row["exit"]]}],
            "completion": row["answer"],
            "usage": usage,
        },
        "scores": {SCORER: score},
        "metadata": {key: row[key] for key in ("family", "domain", "modality")} | {"facts": row.get("facts")},
        "model_usage": {model: usage},
        "attachments": attachments,
        "uuid": row["key"],
    }


def _asked(row: Row) -> str:
    """The text that the model was given; the bare question where the prompt is unknown here."""
    if row["prompt"] not in PROMPTS:
        return str(row["question"])
    return render(Problem(row["id"], row["question"], row["gold"], "text", tuple(row["options"])), row["prompt"])


def _picture(folder: Path, name: str | None) -> str | None:
    """A stored picture as it is, as a data URI."""
    if not name or not (folder / name).is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"
