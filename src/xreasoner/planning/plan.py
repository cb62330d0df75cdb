"""A plan of every stage: memory, and where it can run, tokens, FLOPs, hours and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xreasoner.errors import UserError
from xreasoner.planning import advice, memory, work
from xreasoner.planning.lengths import SPREAD
from xreasoner.planning.machine import Machine
from xreasoner.planning.memory import Stage
from xreasoner.planning.shape import shape
from xreasoner.recipe import Recipe


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage.

    memory: bytes on one GPU by part, for each phase of a step. peak: of the phase that needs the most. host: bytes of a
    machine's main memory by part. tokens, flops: in all. hours: wall-clock by what they are spent on, and cost of
    all GPUs; None where the stage cannot run. reasons: why it cannot. fixes: the smallest change that makes it run; ()
    where it does, None where nothing known helps. notes: what runs and is wasteful.
    """

    stage: str
    kind: str
    memory: Mapping[str, Mapping[str, float]]
    peak: float
    host: Mapping[str, float]
    tokens: Mapping[str, float]
    flops: float
    hours: Mapping[str, float] | None
    cost: float | None
    reasons: tuple[str, ...]
    fixes: tuple[str, ...] | None
    notes: tuple[str, ...]


def plan(recipe: Recipe, machine: Machine, length: int | None = None, spread: float = SPREAD) -> list[StagePlan]:
    """Every stage's plan.

    Args:
        recipe: whose stages are planned.
        machine: where they run.
        length: mean tokens of an example or a reply; default: the stage's limits.
        spread: standard deviation of these lengths over their mean.

    Raises:
        RecipeError: fields contradict the model; all of them are named.
        UserError: the length is beyond the limits of every stage.
    """
    advice.check_recipe(recipe)
    _check_length(recipe, length)
    return [plan_stage(recipe, stage, machine, length, spread) for stage in recipe.stages]


def plan_stage(
    recipe: Recipe, stage: Stage, machine: Machine, length: int | None = None, spread: float = SPREAD
) -> StagePlan:
    """One stage's plan; see `plan`."""
    found, lengths = shape(recipe.model), work.lengths_of(stage, length, spread)
    phases = memory.phases(found, stage, machine)
    reasons = advice.reasons(found, stage, machine, lengths)
    hours = cost = None
    if not reasons:
        hours = {name: s / 3600 for name, s in work.stage_seconds(found, stage, machine, lengths).items()}
        cost = None if machine.price is None else sum(hours.values()) * billed_gpus(stage, machine) * machine.price
    return StagePlan(
        stage=stage.name,
        kind=stage.kind,
        memory=phases,
        peak=memory.peak(phases),
        host=memory.host_memory(found, stage, machine),
        tokens=work.count_tokens(stage, lengths),
        flops=work.training_flops(found, stage, lengths),
        hours=hours,
        cost=cost,
        reasons=tuple(reasons),
        fixes=advice.smallest_change(found, stage, machine) if reasons else (),
        notes=tuple(advice.notes(stage, machine)),
    )


def billed_gpus(stage: Stage, machine: Machine) -> int:
    """GPUs that are paid for while a stage runs: the trainer's, and one for each rollout server."""
    servers = getattr(stage, "rollouts", None)
    return machine.gpus + (len(servers.urls) if servers is not None else 0)


def evaluation_hours(recipe: Recipe, machine: Machine, length: int | None = None, spread: float = SPREAD) -> float:
    """Hours of measuring the base and each stage."""
    limit = recipe.evaluation.thinking_budget + recipe.evaluation.answer_budget
    mean = None if length is None else min(length, limit)
    return work.evaluation_seconds(shape(recipe.model), recipe, machine, mean, spread) / 3600


def _check_length(recipe: Recipe, length: int | None) -> None:
    limits = {stage.name: work.limit_of(stage) for stage in recipe.stages}
    if length is None or length <= max(limit for limit, _ in limits.values()):
        return
    name = max(limits, key=lambda stage: limits[stage][0])
    limit, field = limits[name]
    raise UserError(
        f"--length {length}: expected at most {limit}, the most tokens that stages.{name} takes ({field}); lower "
        "--length, or raise them with --set"
    )
