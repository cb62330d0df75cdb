"""A plan as text, with its assumptions."""

from __future__ import annotations

from collections.abc import Sequence

from xreasoner.planning.lengths import SPREAD
from xreasoner.planning.machine import EXCHANGING, GB, READING, RESERVE, Machine
from xreasoner.planning.plan import StagePlan, evaluation_hours
from xreasoner.planning.shape import shape
from xreasoner.recipe import Recipe


def told(
    plans: Sequence[StagePlan], recipe: Recipe, machine: Machine, length: int | None, spread: float = SPREAD
) -> str:
    """Every stage, the evaluation, the totals and what was assumed."""
    found = shape(recipe.model)
    gpus = f"{machine.gpus} × {machine.name} ({machine.memory / GB:.0f} GB)"
    lines = [
        f"{recipe.name}: {recipe.model}, {found.text + found.vision:,} parameters "
        f"({found.text:,} language model, {found.vision:,} vision tower, frozen) on {gpus}"
    ]
    for each in plans:
        lines += _stage_lines(each, machine)
    lines += _total_lines(plans, recipe, machine, length, spread)
    lines += _assumption_lines(machine, length, spread)
    return "\n".join(lines)


def _stage_lines(each: StagePlan, machine: Machine) -> list[str]:
    lines = [f"\n{each.stage} ({each.kind})", *_memory_lines(each)]
    verdict = "fits" if each.peak <= machine.usable else f"does NOT fit in {machine.memory / GB:.0f} GB"
    lines.append(f"  {'peak':<24}{each.peak / GB:>9.2f} GB per GPU: {verdict}")
    lines.append(f"  {'main memory':<24}{sum(each.host.values()) / GB:>9.2f} GB per machine")
    if each.reasons:
        lines += [f"  cannot run: {reason}" for reason in each.reasons]
        if each.fixes:
            lines.append(f"  it runs with: {'  '.join(each.fixes)}")
        else:
            lines.append("  no known change makes it run: use larger GPUs or a smaller model")
        return lines
    lines += [f"  note: {note}" for note in each.notes]
    lines += [f"  {'tokens ' + name:<24}{count:>9.3g}" for name, count in each.tokens.items()]
    lines.append(f"  {'FLOPs':<24}{each.flops:>9.3g}")
    hours = each.hours or {}
    several = " + ".join(f"{value:.1f} {name}" for name, value in hours.items())
    lines.append(f"  {'hours':<24}{sum(hours.values()):>9.1f}" + (f" ({several})" if len(hours) > 1 else ""))
    if each.cost is not None:
        lines.append(f"  {'cost':<24}{each.cost:>9,.0f}")
    return lines


def _memory_lines(each: StagePlan) -> list[str]:
    """What is there in every phase, and what each phase takes besides."""
    first, *others = each.memory.values()
    always = [part for part in first if all(parts.get(part) == first[part] for parts in others)]
    lines = [_memory_line(part, first[part]) for part in always]
    for phase, parts in each.memory.items():
        lines.append(f"  {phase}: {sum(parts.values()) / GB:.2f} GB in all")
        lines += ["  " + _memory_line(part, size) for part, size in parts.items() if part not in always]
    return lines


def _memory_line(part: str, size: float) -> str:
    return f"  {part:<24}{size / GB:>9.2f} GB"


def _total_lines(
    plans: Sequence[StagePlan], recipe: Recipe, machine: Machine, length: int | None, spread: float
) -> list[str]:
    """Evaluation and sums, where every stage can run."""
    if any(each.hours is None for each in plans):
        return ["\nNo total: a stage cannot run as it is."]
    lines, measuring = [], evaluation_hours(recipe, machine, length, spread)
    hours = sum(sum((each.hours or {}).values()) for each in plans)
    if recipe.evaluation.measures:
        lines.append(f"\nevaluation of the base and {len(plans)} stages, by rank 0 on one GPU: {measuring:.1f} hours")
    total = f"\nin all: {hours + measuring:.1f} hours"
    if machine.price is not None:
        # the other ranks have ended; whoever keeps their GPUs pays for them too
        cost = sum(each.cost or 0.0 for each in plans) + measuring * machine.price
        total += f", cost {cost:,.0f} (evaluation on one GPU)"
    return [*lines, total]


def _assumption_lines(machine: Machine, length: int | None, spread: float) -> list[str]:
    mean = (
        f"mean length {length:,} tokens, standard deviation {spread:g} of the mean (lognormal)"
        if length
        else "every text has the recipe's limit, so the work is an upper bound (--length)"
    )
    rates = f"{machine.name}'s {machine.flops / 1e12:.0f} TFLOP/s, {100 * READING:.0f} % of its memory's "
    rates += f"{machine.bandwidth / 1e12:.2f} TB/s, {100 * EXCHANGING:.0f} % of {machine.link / GB:.0f} GB/s within "
    rates += f"a machine and {machine.network * 8 / GB:.0f} Gbit/s per GPU between machines"
    return [
        f"\nAn estimate. Assumed: {mean}; {100 * machine.utilization:.0f} % of {rates}; "
        f"{100 * RESERVE:.0f} % of the memory kept free."
    ]
