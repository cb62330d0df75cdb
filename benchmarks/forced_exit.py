"""What RL does to thoughts that never end, under each setting of `forced` (`make forced-exit`).

The embedded reasoner first gets the fault that the model card lists: a short SFT in which `--share` of the thoughts
start again where they should close, and are cut. Then the same RL runs under `keep`, `zero` and `mask`, with several
seeds. Before and after, held-out problems are sampled at temperature 1; a thought is endless where it is still open at
`--limit` tokens. The longest sound thought has about 100.

    python benchmarks/forced_exit.py --seeds 5 --out docs/forced-exit.json
    python benchmarks/forced_exit.py --seeds 1 --steps 2 --items 8     # tries it in a minute
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.grading import judge
from xreasoner.models.loading import load
from xreasoner.prompts import chat_messages
from xreasoner.recipe import Recipe
from xreasoner.registry import SOURCES, resolve
from xreasoner.trace import CLOSE, OPEN
from xreasoner.training.run import run_stage

SETTINGS = ("keep", "zero", "mask")
PROMPT = "brief"
HELD_OUT = 900_001
"""Added to the seed of the problems that are measured: no stage draws from it."""


def write_rows(seed: int, out: Path, options: argparse.Namespace) -> Path:
    """Worked problems, of which a share has a thought that starts again and again."""
    examples = resolve(SOURCES, "data source", "tiny")({"domain": "general"}).examples(options.examples, seed, "chain")
    rng, path = Random(seed), out / "rows.jsonl"
    rows = []
    for example in examples:
        problem, response = example.problem, example.response
        if rng.random() < options.share:
            thought, close, answer = response.removeprefix(OPEN).partition(CLOSE)
            response = OPEN + thought * 8 + close + answer
        row = {"question": problem.question, "gold": problem.gold, "answer_type": problem.answer_type}
        row |= {"options": list(problem.options)} if problem.options else {}
        rows.append({**row, "response": response})
    out.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(seed: int, forced: str, rows: Path, options: argparse.Namespace) -> Recipe:
    """Thoughts that start again, then RL under one setting."""
    shared = {"prompt": PROMPT, "embeddings_frozen": True, "checkpoint_seconds": 1000}
    problems = [{"source": "tiny", "n": options.examples, "options": {"domain": "general"}}]
    examples = [{"source": "jsonl", "n": options.examples, "options": {"path": str(rows)}}]
    return Recipe.model_validate(
        {
            "name": f"forced-{forced}",
            "model": "tiny",
            "seed": seed,
            "stages": [
                {
                    **shared,
                    **{"name": "cut", "kind": "sft", "data": examples, "longer": "cut", "max_length": options.cut},
                    "optimizer": {"lr": 2e-4, "schedule": "constant"},
                },
                {
                    **shared,
                    **{"name": forced, "kind": "rl", "from": "cut", "data": problems, "forced": forced},
                    **{"steps": options.steps},
                    **{"prompts_per_step": 32, "group_size": 8, "minibatches": 2, "max_idle_steps": options.steps},
                    **{"thinking_budget": options.budget, "answer_budget": 24},
                    "optimizer": {"lr": 1.2e-4, "schedule": "constant", "betas": [0.9, 0.98]},
                },
            ],
        }
    )


def measure(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Shares over sampled replies to held-out problems, with room for `--limit` tokens of thought."""
    loaded = load(str(folder))
    problems = resolve(SOURCES, "data source", "tiny")({"domain": "general"}).problems(options.items, seed + HELD_OUT)
    sampling = Sampling(temperature=1.0, thinking_budget=options.limit, answer_budget=24)
    requests = [
        Request(chat_messages(problem, PROMPT), n=4, sampling=Sampling(**{**_fields(sampling), "seed": seed + k}))
        for k, problem in enumerate(problems)
    ]
    groups = TorchEngine(loaded).generate(requests)
    replies = [(problem, one) for problem, group in zip(problems, groups, strict=True) for one in group]
    right = [judge(problem, one.text, one.exit).correct for problem, one in replies]
    endless = [any(one.forced) for _, one in replies]
    return {
        "endless": statistics.fmean(endless),
        "accuracy": statistics.fmean(right),
        "accuracy without forced exits": statistics.fmean(a and not b for a, b in zip(right, endless, strict=True)),
        "thought tokens": statistics.fmean(one.thought_tokens for _, one in replies),
    }


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__dataclass_fields__}


def run_seed(seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measurements before RL and after it under each setting; what was trained already is not trained again."""
    out = options.runs / f"seed-{seed}"
    rows, found = write_rows(seed, out, options), {}
    for forced in SETTINGS:
        recipe = recipe_of(seed, forced, rows, options)
        start = run_stage(recipe.model_copy(update={"name": "cut", "stages": recipe.stages[:1]}), recipe.stages[0], out)
        found.setdefault("before RL", measure(start, seed, options))
        found[forced] = measure(run_stage(recipe, recipe.stages[1], out), seed, options)
        print(f"seed {seed}, {forced}: {json.dumps(found[forced])}", flush=True)
    return found


def table(runs: Sequence[dict[str, dict[str, float]]]) -> str:
    """Means over the seeds, with the smallest and the largest."""
    names = list(runs[0]["keep"])
    lines = ["| forced | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for setting in ("before RL", *SETTINGS):
        cells = []
        for name in names:
            values = [run[setting][name] for run in runs]
            scale, unit = (1, "") if name == "thought tokens" else (100, " %")
            mean, low, high = (scale * value for value in (statistics.fmean(values), min(values), max(values)))
            cells.append(f"{mean:.1f}{unit} ({low:.1f}–{high:.1f})")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--steps", type=int, default=30, help="RL steps")
    parser.add_argument("--examples", type=int, default=1600, help="chains of SFT, and problems of RL")
    parser.add_argument("--share", type=float, default=0.7, help="share of thoughts that start again")
    parser.add_argument("--cut", type=int, default=320, help="tokens of an example; longer ones are cut")
    parser.add_argument("--budget", type=int, default=120, help="thinking budget of the rollouts")
    parser.add_argument("--limit", type=int, default=120, help="thinking budget of the measurement")
    parser.add_argument("--items", type=int, default=100, help="held-out problems, 4 replies each")
    parser.add_argument("--runs", type=Path, default=Path("runs/forced-exit"), help="where the stages are kept")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    runs = [run_seed(seed, options) for seed in range(options.seeds)]
    print(table(runs))
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("runs", "out")}
        options.out.write_text(json.dumps({"settings": settings, "seeds": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
