"""`make evidence`: the embedded recipe with five seeds, and whether each bar holds in all of them.

Post-training and evaluation items both follow the seed. Results go to docs/evidence.md and docs/evidence.json; a
run that was stopped goes on from runs/evidence.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xreasoner.demo import run_demo
from xreasoner.progress import CELLS, Screen
from xreasoner.recipe import load_recipe
from xreasoner.training.run import write_json

Summary = Mapping[str, Any]
FINAL, DIRECT = "sft+rl", ("base", "base-direct")


def over_direct(summary: Summary, cell: str) -> Mapping[str, Any]:
    """What summary.json says of both stages over the better of the two direct bases, paired on the items."""
    (found,) = [
        g
        for g in summary["gains"]
        if (g["kind"], g["cell"], g["after"]) == ("cell", cell, FINAL) and g["before"] in DIRECT
    ]
    entry: Mapping[str, Any] = found
    return entry


def gain(summary: Summary, cell: str) -> float:
    """Points over the better direct base; for pictures also over the blind floor, whichever is higher."""
    found = over_direct(summary, cell)
    return min(float(found["difference"]), float(found.get("above_blind", 1.0)))


def lowest_end(summary: Summary) -> float:
    """The lowest lower end of the four cells' 95 % intervals."""
    return min(float(over_direct(summary, cell)["low"]) for cell in CELLS)


def rl_gain(summary: Summary, cell: str) -> float:
    found: float = summary["cells"][FINAL][cell]["accuracy"] - summary["cells"]["sft"][cell]["accuracy"]
    return found


def reading_loss(summary: Summary) -> float:
    """Points of picture transcription lost by both stages, in the worse domain."""
    before, after = summary["perception"]["base"], summary["perception"][FINAL]
    pictures = [name for name in before if name.startswith("image/")]
    return max(float(before[name]["accuracy"] - after[name]["accuracy"]) for name in pictures)


def cut_short(summary: Summary, stage: str) -> float:
    """Mean share of forced and truncated replies over the cells."""
    cells = [summary["cells"][stage][cell] for cell in CELLS]
    return statistics.fmean(found["forced"] + found["truncated"] for found in cells)


def fewer_cut_short(summary: Summary) -> float:
    """RL's share of forced and truncated replies less SFT's; a hair below 0 where neither has any."""
    after = cut_short(summary, FINAL)
    return after - cut_short(summary, "sft") if after else min(-1e-9, -cut_short(summary, "sft"))


def ratio(summary: Summary) -> float:
    return gain(summary, "image/general") / gain(summary, "text/general")


BARS: tuple[tuple[str, Callable[[Summary], float], Callable[[float], bool], str], ...] = (
    ("image/general over the best direct", lambda s: gain(s, "image/general"), lambda v: v >= 0.35, "≥ +35 points"),
    ("image/clinical over the best direct", lambda s: gain(s, "image/clinical"), lambda v: v >= 0.25, "≥ +25 points"),
    ("text/general over the best direct", lambda s: gain(s, "text/general"), lambda v: v >= 0.50, "≥ +50 points"),
    ("text/clinical over the best direct", lambda s: gain(s, "text/clinical"), lambda v: v >= 0.40, "≥ +40 points"),
    ("lowest end of the four 95 % intervals", lowest_end, lambda v: v > 0, "above 0"),
    ("image gain ÷ text gain, general", ratio, lambda v: v >= 0.75, "≥ 0.75"),
    ("RL over SFT, text/general", lambda s: rl_gain(s, "text/general"), lambda v: v >= 0.03, "≥ +3 points"),
    ("RL over SFT, image/general", lambda s: rl_gain(s, "image/general"), lambda v: v >= 0.0, "no worse"),
    ("forced and truncated, RL − SFT", fewer_cut_short, lambda v: v < 0, "down, or none after RL"),
    ("transcription of pictures lost", reading_loss, lambda v: v <= 0.05, "at most 5 points"),
)


def _shown(name: str, value: float) -> str:
    if "÷" in name:
        return f"{value:.2f}"
    if "truncated" in name:
        return "none, before or after" if abs(value) < 1e-8 else f"{100 * value:+.2f}"
    return f"{100 * value:+.1f}"


def table(summaries: Sequence[Summary]) -> str:
    """Markdown: each bar with every seed's value, and each cell's median and range."""
    seeds = " | ".join(f"seed {k}" for k in range(len(summaries)))
    lines = [f"| what | bar | {seeds} | holds |", "|---|---|" + "---|" * (len(summaries) + 1)]
    for name, value, holds, bar in BARS:
        found = [value(summary) for summary in summaries]
        shown = " | ".join(_shown(name, v) for v in found)
        lines.append(f"| {name} | {bar} | {shown} | {sum(map(holds, found))} of {len(found)} |")
    lines += ["", "| stage | " + " | ".join(CELLS) + " |", "|---|" + "---|" * len(CELLS)]
    for stage in summaries[0]["cells"]:
        row = []
        for cell in CELLS:
            found = [100 * summary["cells"][stage][cell]["accuracy"] for summary in summaries]
            blind = [100 * summary["cells"][stage][cell].get("blind", float("nan")) for summary in summaries]
            floor = f", blind {statistics.median(blind):.1f}" if cell.startswith("image") else ""
            row.append(f"{statistics.median(found):.1f} ({min(found):.1f}–{max(found):.1f}{floor})")
        lines.append(f"| {stage} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def others(summaries: Sequence[Summary]) -> str:
    """Markdown: perception and the other benchmarks, medians over the seeds."""
    stages = list(summaries[0]["cells"])
    lines = ["| | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
    for group in ("perception", "benchmarks"):
        for name in summaries[0][group]["base"]:
            found = [[100 * s[group][stage][name]["accuracy"] for s in summaries] for stage in stages]
            medians = [statistics.median(values) for values in found]
            label = f"reading {name}" if group == "perception" else name
            lines.append(f"| {label} | " + " | ".join(f"{m:.1f}" for m in medians) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    summaries = []
    for seed in range(arguments.seeds):
        recipe = load_recipe("demo", [f"seed={seed}", f"evaluation.seed={seed}", "evaluation.n=500"])
        with Screen() as screen:
            summaries.append(run_demo(recipe, arguments.out / f"seed-{seed}", screen.show))
    text = (
        f"# Evidence: the embedded recipe, {len(summaries)} seeds\n\nMade by `make evidence` "
        f"(n = {recipe.evaluation.n} fresh problems a cell and seed, greedy; points are differences in per cent "
        f"correct on the same items).\n\n{table(summaries)}\n\n"
        f"Medians over the seeds, per cent correct:\n\n{others(summaries)}\n"
    )
    (arguments.docs / "evidence.md").write_text(text)
    write_json(arguments.docs / "evidence.json", {"seeds": summaries})
    print(text)


if __name__ == "__main__":
    main()
