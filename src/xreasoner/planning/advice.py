"""Whether a stage can run on a machine, why not, and the smallest change that makes it run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from xreasoner.errors import RecipeError
from xreasoner.planning import memory, work
from xreasoner.planning.lengths import Lengths
from xreasoner.planning.machine import GB, Machine
from xreasoner.planning.memory import Stage
from xreasoner.planning.shape import Shape, shape
from xreasoner.recipe import LoRA, Recipe, RLStage, Servers, SFTStage
from xreasoner.registry import nearest

ADDRESS = "http://HOST:8000/v1"
"""Stands for the address of `vllm serve` on another GPU."""
MOST_GPUS = 64
"""Times as many GPUs as were given that are tried."""


def check_recipe(recipe: Recipe) -> None:
    """Raise `RecipeError` with every field that contradicts the model: layers, adapters, budgets.

    The stage itself would refuse them too, after those before it have been trained.
    """
    problems = [problem for stage in recipe.stages for problem in _stage_problems(recipe, stage)]
    settings = recipe.evaluation
    if settings.measures:
        positions = shape(recipe.model).positions
        if settings.thinking_budget + settings.answer_budget >= positions:
            problems.append(
                f"evaluation.thinking_budget: found {settings.thinking_budget} and answer_budget "
                f"{settings.answer_budget}, expected less than the model's {positions} tokens together with a prompt; "
                f"set evaluation.thinking_budget={_room(positions, settings.answer_budget)}"
            )
    if problems:
        raise RecipeError("\n".join(problems))


def _stage_problems(recipe: Recipe, stage: Stage) -> Iterator[str]:
    found, where = shape(recipe.model), f"stages.{stage.name}"
    if stage.lower_layers_frozen >= found.layers:
        yield (
            f"{where}.lower_layers_frozen: found {stage.lower_layers_frozen}, expected less than the model's "
            f"{found.layers} layers"
        )
    for target in stage.lora.targets if stage.lora else ():
        if target not in found.linear:
            yield f"{where}.lora.targets: no linear layer is named {target!r}; {nearest(target, found.linear)}"
    if isinstance(stage, SFTStage):
        default = SFTStage.model_fields["max_length"].default  # nobody's wish: training keeps to the model's length
        if stage.max_length > found.positions and stage.max_length != default:
            yield (
                f"{where}.max_length: found {stage.max_length}, expected at most the {found.positions} tokens that the "
                f"model takes; set {where}.max_length={found.positions}"
            )
    elif stage.thinking_budget + stage.answer_budget >= found.positions:
        yield (
            f"{where}.thinking_budget: found {stage.thinking_budget} and answer_budget {stage.answer_budget}, expected "
            f"less than the model's {found.positions} tokens together with a prompt; set "
            f"{where}.thinking_budget={_room(found.positions, stage.answer_budget)}"
        )


def _room(positions: int, answer: int) -> int:
    """A thinking budget that leaves room for a prompt and the answer."""
    return max(1, positions - answer - memory.PROMPT_TOKENS)


def reasons(found: Shape, stage: Stage, machine: Machine, lengths: Lengths | None = None) -> list[str]:
    """Why a stage cannot run; empty where it can."""
    problems = []
    parts = memory.phases(found, stage, machine)
    phase = memory.largest_phase(parts)
    needed = memory.peak(parts)
    if needed > machine.usable:
        part = max(parts[phase], key=lambda name: parts[phase][name])
        problems.append(
            f"memory: {phase} needs {_gb(needed)} per GPU and {_gb(machine.usable)} of {_gb(machine.memory)} are "
            f"usable; the largest part is {part} ({_gb(parts[phase][part])})"
        )
    if isinstance(stage, RLStage):
        problems += _rollout_reasons(found, stage, machine, lengths or work.lengths_of(stage))
    main = sum(memory.host_memory(found, stage, machine).values())
    if machine.host is not None and main > machine.host:
        problems.append(f"main memory: {_gb(main)} per machine are needed and --host-memory has {_gb(machine.host)}")
    return problems


def _rollout_reasons(found: Shape, stage: RLStage, machine: Machine, lengths: Lengths) -> Iterator[str]:
    size = memory.rollout_bytes(stage)
    if stage.rollouts is not None:
        room = work.server_room(found, machine)
        one = size * found.kv * memory.longest(stage)
        if room < one:
            yield (
                f"rollouts: on a server's GPU of {_gb(machine.memory)} {_left(room)} for the cache beside the weights, "
                f"and one reply of {memory.longest(stage):,} tokens takes {_gb(one)}; serve on larger GPUs, or with "
                "--tensor-parallel-size"
            )
        return
    group = size * found.kv * memory.longest(stage) * stage.group_size
    room = memory.cache_room(found, stage, machine)
    if room < group:
        yield (
            f"rollouts: a group of {stage.group_size} replies of up to {memory.longest(stage):,} tokens takes "
            f"{_gb(group)} of cache, and {_left(room)} for it"
        )


def notes(stage: Stage, machine: Machine) -> list[str]:
    """What runs and is wasteful."""
    if isinstance(stage, SFTStage):
        field, count = "batch_examples", stage.batch_examples
    else:
        field, count = "prompts_per_step", stage.prompts_per_step
    if count >= machine.gpus or (isinstance(stage, RLStage) and stage.rollouts is not None):
        return []
    return [
        f"{field} {count} on {machine.gpus} GPUs leaves {machine.gpus - count} without work; set "
        f"--set stages.{stage.name}.{field}={machine.gpus}, or --gpus {count}"
    ]


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of the recipe. text: as it is given to `--set`."""

    text: str
    fields: dict[str, Any]


def smallest_change(found: Shape, stage: Stage, machine: Machine) -> tuple[str, ...] | None:
    """The fewest `--set` changes, and only where none suffice more GPUs, that make a stage run.

    Returns:
        The options; None where nothing known helps.
    """
    changes = list(_changes(stage))
    times = 1
    while times <= MOST_GPUS:
        cards = replace(machine, gpus=machine.gpus * times)
        for count in range(len(changes) + 1):
            for chosen in combinations(changes, count):
                changed = stage
                for change in chosen:
                    changed = changed.model_copy(update=change.fields)
                if not reasons(found, changed, cards):
                    return tuple(change.text for change in chosen) + ((f"--gpus {cards.gpus}",) if times > 1 else ())
        times *= 2
    return None


def _changes(stage: Stage) -> Iterator[_Change]:
    """What can be changed, that first which changes no result."""
    where = f"--set stages.{stage.name}"
    if not stage.activation_checkpointing:
        fields: dict[str, Any] = {"activation_checkpointing": True}
        if stage.kind == "rl":
            fields["batching"] = "packed"
        yield _Change(" ".join(f"{where}.{k}={str(v).lower()}" for k, v in fields.items()), fields)
    least = memory.pass_tokens(stage.model_copy(update={"chunk_tokens": 1}))
    if stage.chunk_tokens > least:
        yield _Change(f"{where}.chunk_tokens={least}", {"chunk_tokens": least})
    if stage.precision == "float32":
        yield _Change(f"{where}.precision=bfloat16", {"precision": "bfloat16"})
    if isinstance(stage, RLStage) and stage.rollouts is None:
        servers = Servers.model_validate({"urls": [ADDRESS]})
        yield _Change(f"{where}.rollouts='{{urls: [\"{ADDRESS}\"]}}'", {"rollouts": servers})
    if stage.lora is None:
        yield _Change(f"{where}.lora='{{rank: 16}}'", {"lora": LoRA.model_validate({"rank": 16})})


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"


def _left(room: float) -> str:
    return f"{_gb(room)} are left" if room > 0 else "nothing is left"
