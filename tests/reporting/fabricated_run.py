"""A fabricated run's folder for the report's tests: invented traces, but the project's own statistics over them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from xreasoner.benchmarks.store import save_picture
from xreasoner.benchmarks.summary import summary_of

STAGES = ("base", "base-direct", "sft", "sft+rl")
CELLS = ("text/general", "text/clinical", "image/general", "image/clinical")
SKILL = {
    "text/general": (0.09, 0.13, 0.80, 0.86),
    "text/clinical": (0.07, 0.09, 0.72, 0.78),
    "image/general": (0.10, 0.12, 0.66, 0.71),
    "image/clinical": (0.08, 0.10, 0.53, 0.57),
    "read": (0.98, 0.97, 0.94, 0.945),
    "easy-vqa": (0.62, 0.60, 0.61, 0.63),
    "gym-held-out": (0.05, 0.06, 0.14, 0.19),
}
WORDS = {"general": ("pear", "bread", "milk", "cake"), "clinical": ("Wong", "Park", "Bell", "Ruiz")}
FAMILIES = ("sum", "difference", "compare")


def _picture(facts: Sequence[tuple[str, int]], rng: Random) -> Image.Image:
    picture = Image.new("RGB", (140, 112), rng.choice(["#fff8e7", "#eef6ff", "#ffffff"]))
    draw = ImageDraw.Draw(picture)
    for line, (name, value) in enumerate(facts):
        draw.text((12, 10 + 24 * line), f"{name}  {value}", fill="#223344")
    return picture


def _problem(cell: str, index: int, out: Path) -> dict[str, Any]:
    """The fields of a result that all stages share. Text and image cells of a domain share their scenes."""
    modality, domain = cell.split("/")
    rng = Random(f"{domain}/{index}")
    facts = [(name, rng.randint(1, 24)) for name in WORDS[domain][: rng.randint(3, 4)]]
    family, values = rng.choice(FAMILIES), [value for _, value in facts]
    question = {
        "sum": f"What do {facts[0][0]} and {facts[1][0]} add up to?",
        "difference": "By how much does the highest exceed the lowest?",
        "compare": "Which is the highest?",
    }[family]
    gold = {
        "sum": str(values[0] + values[1]),
        "difference": str(max(values) - min(values)),
        "compare": max(facts, key=lambda fact: fact[1])[0],
    }[family]
    options = sorted({gold, *rng.sample(["3", "17", "28", "9", "14"], 3)}) if index % 2 and family != "compare" else []
    shown = "\n".join(f"- {name} = {value}" for name, value in facts) + "\n"
    return {
        "id": f"{domain}-0-{index}",
        "family": family,
        "domain": domain,
        "modality": modality,
        "question": question if modality == "image" else shown + question,
        "options": options,
        "gold": "ABCDEF"[options.index(gold)] if options else gold,
        "answer_type": "choice" if options else "integer",
        "image": save_picture(_picture(facts, rng), out) if modality == "image" else None,
        "facts": ", ".join(f"{name} {value}" for name, value in facts),
    }


def _row(problem: dict[str, Any], stage: str, bench: str, right: bool, condition: str = "seen") -> dict[str, Any]:
    """One line of results.jsonl; the thought is as right or wrong as the answer."""
    rng = Random(f"{stage}/{bench}/{problem['id']}/{condition}")
    reasons = stage in ("sft", "sft+rl") and "read" not in bench
    exit_ = "natural" if right or not reasons else rng.choice(["natural"] * 5 + ["forced", "truncated"])
    outcome = "correct" if right else "truncated" if exit_ == "truncated" else rng.choice(["wrong"] * 8 + ["unparsed"])
    said = problem["gold"] if right else "" if outcome == "truncated" else rng.choice(["7", "12", "perhaps"])
    chain = f"I see: {problem['facts']}. Plan: go through the list, step by step. So it is {said or '…'}."
    thought = chain if reasons else ""
    return {
        "key": f"{stage}/{bench}/{problem['id']}/{condition}",
        "stage": stage,
        "model": f"{STAGES.index(stage):x}" * 16,
        "bench": bench,
        "condition": condition,
        "prompt": "brief" if reasons else "brief-direct",
        "sampling": "5f3a9c0de1b2a487",
        "seed": 0,
        "sample": 0,
        "cell": "" if "read" in bench or "tiny" not in bench else f"{problem['modality']}/{problem['domain']}",
        **problem,
        "image": None if condition == "blind" else problem["image"],
        "thinking_budget": 112,
        "answer_budget": 16,
        "temperature": 0.0,
        "response": (f"<think> {thought} </think> " if thought else "") + f"<answer>{said}</answer>",
        "thought": thought,
        "answer": said,
        "outcome": outcome,
        "extracted": said,
        "correct": right,
        "exit": exit_,
        "prompt_tokens": 70,
        "thought_tokens": len(thought.split()),
        "answer_tokens": 3 if said else 0,
    }


def _results(stage: str, n: int, out: Path) -> list[dict[str, Any]]:
    """All rows of a stage. An item's difficulty is the same at each stage, so results are correlated as in life."""
    level, rows = STAGES.index(stage), []
    for cell in CELLS:
        dashed = cell.replace("/", "-")
        for index in range(n):
            problem = _problem(cell, index, out)
            hard, luck = Random(f"{cell}/{index}").random(), Random(f"{stage}/{cell}/{index}").random()
            right = 0.75 * hard + 0.25 * luck < SKILL[cell][level]
            rows.append(_row(problem, stage, f"tiny-{dashed}", right))
            if cell.startswith("image"):
                rows.append(_row(problem, stage, f"tiny-{dashed}", luck < 0.08, "blind"))
                rows.append(_row(problem, stage, f"tiny-{dashed}", luck < 0.06, "swapped"))
            read = {**problem, "id": f"read-{problem['id']}", "gold": problem["facts"], "answer_type": "text"}
            read["options"] = []
            rows.append(_row(read, stage, f"tiny-read-{dashed}", luck < SKILL["read"][level]))
    for bench in ("easy-vqa", "gym-held-out"):
        for index in range(n // 2):
            problem = _problem("image/general" if bench == "easy-vqa" else "text/general", index, out)
            problem |= {"id": f"{bench}-test-{index}", "family": ("shape", "color")[index % 2], "domain": bench}
            luck = Random(f"{stage}/{bench}/{index}").random()
            rows.append(_row(problem, stage, bench, luck < SKILL[bench][level]))
    return rows


def _metrics(stage: str, steps: int) -> list[dict[str, Any]]:
    rng, lines = Random(stage), []
    for step in range(1, steps + 1):
        done, noise = step / steps, rng.gauss(0, 0.03)
        line = {"step": step, "lr": 4e-4 * (1 - done), "grad_norm": 0.8 + 5 * noise * noise}
        line |= {"tokens_per_s": 6500 + 900 * noise, "seconds": 1.2, "loss": 2.5 * math.exp(-5 * done) + 0.2 + noise}
        if stage == "sft+rl":
            forced = 0.12 * (1 - done) + 0.01
            line |= {"loss": noise / 10, "reward": 0.6 + 0.12 * done + noise, "entropy": 0.35 - 0.1 * done + noise / 3}
            line |= {"clip_low": 0.002 + 0.001 * noise, "clip_high": 0.004 * done, "length": 74 - 9 * done + 30 * noise}
            line |= {"exits": {"natural": 1 - 1.5 * forced, "forced": forced, "truncated": forced / 2}}
            line |= {"length_by_exit": {"natural": 66.0 - 4 * done, "forced": 128.0}}
            line |= {"outcomes": {"correct": 0.7, "wrong": 0.3}, "pass_at_k": 0.85 + noise}
            line |= {"zero_variance": 0.3 + 0.2 * done, "logprob_gap": 1e-6, "ratio_max": 1.3}
        else:
            line |= {"tokens": 4000, "padding_share": 0.03 + abs(noise) / 10}
        lines.append(line)
    return lines


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fabricate(out: Path, n: int = 60, stages: Sequence[str] = STAGES) -> Path:
    """Write the folder of a run that went through these stages, n items a cell, and return it."""
    results = {stage: _results(stage, n, out) for stage in stages}
    for stage, rows in results.items():
        write_lines(out / "eval" / stage / "results.jsonl", rows)
    timings = {"sft": 81.5, "evaluation": {"base": 20.25}}
    write_json(out / "summary.json", {**summary_of(results), "timings": timings})
    evaluation = {"benches": ["tiny-text-general"], "n": n, "seed": 0, "thinking_budget": 112, "answer_budget": 16}
    recipe = {"name": "demo", "model": "tiny-base", "seed": 7, "evaluation": evaluation}
    write_json(out / "manifest.json", {"recipe": recipe, "versions": {"torch": "2.13.0", "python": "3.11.2"}})
    for stage in stages[1:]:
        frozen = {"tensors": 41, "before": "ab12" * 16, "after": "ab12" * 16}
        facts = {"problems": {"tiny/sum": 6000, "gym/gcd": 900}, "pictures": 0, "domains": ["general"]}
        write_json(out / stage / "manifest.json", {"stage": stage, "frozen": frozen, **facts, "done": True})
        write_lines(out / stage / "metrics.jsonl", _metrics(stage, 70 if stage == "sft+rl" else 180))
    return out
