"""The last stage's numbers as a Hugging Face model card, with `model-index` metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from xreasoner.benchmarks.summary import GROUPS
from xreasoner.benchmarks.table import TABLE
from xreasoner.reporting import findings
from xreasoner.reporting.reading import Run

TASKS = {"text": ("text-generation", "Text generation"), "image": ("image-text-to-text", "Image and text to text")}


def model_card(run: Run) -> str:
    """The card of the last evaluated stage: YAML with `model-index`, then what was done and what was found."""
    stage = next((name for name in reversed(run.stages) if run.rows.get(name)), run.stages[-1])
    recipe = run.manifest.get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {"name": recipe}
    name = f"{recipe.get('name') or run.folders[0].resolve().name}-{stage}".replace("+", "-").replace("@", "-")
    results = _results(run, stage)
    base = str(recipe.get("model") or "")
    tags = ["reasoning", "xreasoner", "model-index"]
    data = ModelCardData(
        pipeline_tag="image-text-to-text", tags=tags, model_name=name, eval_results=results or None, language="en"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(run, stage, name, base)}"


def _results(run: Run, stage: str) -> list[EvalResult]:
    """One result for each benchmark of the stage: accuracy in per cent with its interval among the arguments."""
    found = []
    for line in findings.protocol(run):
        if line["stage"] == stage and line["bench"] and ", " not in line["bench"]:
            source = TABLE.get(line["bench"])
            entry: Mapping[str, Any] = line["entry"]
            kind, words = TASKS[line["modality"]]
            arguments = {"n": entry["n"], "low": round(100 * entry["low"], 2), "high": round(100 * entry["high"], 2)}
            asked = {
                key: line[key] for key in ("prompt", "samples", "temperature", "seed", "budget") if line[key] != ""
            }
            found.append(
                EvalResult(
                    task_type=kind,
                    task_name=words,
                    dataset_type=source.hub if source else line["bench"],
                    dataset_name=line["bench"],
                    dataset_config=(source.config or None) if source else None,
                    dataset_split=source.split if source else "test",
                    dataset_revision=source.revision if source else None,
                    metric_type="accuracy",
                    metric_name="accuracy, per cent",
                    metric_value=round(100 * entry["accuracy"], 2),
                    metric_args={**arguments, **asked},
                )
            )
    return found


def _body(run: Run, stage: str, name: str, base: str) -> str:
    gains = run.summary.get("gains") or []
    trained = findings.learnt_from(findings.frozen(run))
    lines = [
        f"# {name}",
        findings.headline(gains, run.baseline),
        findings.losses_sentence(findings.losses(gains, run.baseline)),
        *findings.not_compared(gains),
    ]
    lines += [findings.compared_with(run), findings.can_show(gains)]
    if base:
        lines.append(f"Made from `{base}`" + (f", post-trained on {trained} text and no images." if trained else "."))
    lines.append("## Evaluation")
    lines.append(_table(run, stage))
    lines.append(
        "Per cent correct with 95 % intervals; replies that were cut off or hold no answer count as not correct."
    )
    return "\n\n".join(line for line in lines if line) + "\n"


def _table(run: Run, stage: str) -> str:
    rows = ["| | accuracy | 95 % | n | forced | truncated |", "|---|---|---|---|---|---|"]
    for group in GROUPS:
        for name, entry in ((run.summary.get(group) or {}).get(stage) or {}).items():
            keys = ("accuracy", "low", "high", "forced", "truncated")
            right, low, high, forced, truncated = (f"{100 * entry.get(key, 0):.1f}" for key in keys)
            place = f"reading {name}" if group == "perception" else name
            rows.append(f"| {place} | {right} | {low}–{high} | {entry['n']} | {forced} | {truncated} |")
    return "\n".join(rows)
