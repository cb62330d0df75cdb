"""reasoning-gym's families: problems made by rule, judged by the family's own scorer, in mixtures and curricula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import reasoning_gym
from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum

from xreasoner.data.sources import Example, Style
from xreasoner.errors import DataError, RecipeError
from xreasoner.problem import Problem
from xreasoner.registry import nearest


@dataclass(frozen=True, slots=True)
class Family:
    """One family's share. weight: relative to the others'. levels: its curriculum's first and last. config: its own."""

    name: str
    weight: float
    levels: tuple[int, int] | None
    config: Mapping[str, Any]


class Procedural:
    """A weighted mixture. With levels, a family grows harder from the first problem to the last."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def problems(self, n: int, seed: int) -> list[Problem]:
        """n problems: each family's exact share, spread evenly, so that any prefix holds the mixture."""
        placed = []
        for family, share in zip(self.families, shares([f.weight for f in self.families], n), strict=True):
            rng = Random(f"{family.name}/{seed}")
            made = _problems(family, share, seed)
            placed += [((k + rng.random()) / share, problem) for k, problem in enumerate(made)]
        return [problem for _, problem in sorted(placed, key=lambda pair: pair[0])]

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        if style == "chain":
            raise DataError(
                "source reasoning-gym: has no chains of thought; make them with `xreasoner data distill`, or set "
                "style: direct"
            )
        found = self.problems(n, seed)
        for problem in found:
            if not problem.gold:
                raise DataError(f"source reasoning-gym: {problem.family} gives no answer to learn; leave it to RL")
        return [Example(problem, f"<answer>{problem.gold}</answer>") for problem in found]


def procedural(options: dict[str, Any]) -> Procedural:
    """The source `reasoning-gym`. options: {"families": [names] or {name: {weight, level, levels, config}}}.

    level: one level of the family's curriculum; levels: [first, last], rising over the n problems (put
    `shuffle: false` into the RL stage, or the order is lost). config: the family's own settings, as in its source.
    """
    families = options.get("families")
    if set(options) - {"families"} or not isinstance(families, list | dict) or not families:
        raise RecipeError(
            f"data.options: found {options!r:.200}, expected families: a list of names, or a mapping of names"
        )
    settings = families.items() if isinstance(families, dict) else [(name, {}) for name in families]
    return Procedural([_family(str(name), {} if given is None else given) for name, given in settings])


def _family(name: str, given: Any) -> Family:
    where = f"data.options.families.{name}"
    if name not in DATASETS:
        raise RecipeError(f"{where}: unknown family; {nearest(name, DATASETS)}")
    known = ("weight", "level", "levels", "config")
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: found {given!r:.200}, expected a mapping of {', '.join(known)}")
    for key in given:
        if key not in known:
            raise RecipeError(f"{where}.{key}: unknown field; {nearest(key, known)}")
    weight, levels = given.get("weight", 1.0), given.get("levels", given.get("level"))
    config = given.get("config") or {}
    if not isinstance(config, dict):
        raise RecipeError(f"{where}.config: found {config!r:.200}, expected a mapping of the family's settings")
    if not isinstance(weight, int | float) or weight <= 0:
        raise RecipeError(f"{where}.weight: found {weight!r}, expected a number above 0")
    if levels is None:
        return Family(name, weight, None, config)
    if name not in CURRICULA:
        raise RecipeError(f"{where}: has no curriculum; leave out level and levels")
    pair = tuple(levels) if isinstance(levels, list) else (levels, levels)
    if len(pair) != 2 or not all(isinstance(k, int) and k >= 0 for k in pair) or pair[0] > pair[1]:
        raise RecipeError(f"{where}.levels: found {levels!r}, expected [first, last] with 0 ≤ first ≤ last")
    return Family(name, weight, (pair[0], pair[1]), config)


def shares(weights: list[float], n: int) -> list[int]:
    """n parted by weight, by the largest remainder: whole numbers whose sum is n."""
    exact = [n * weight / sum(weights) for weight in weights]
    found = [int(part) for part in exact]
    for k in sorted(range(len(exact)), key=lambda k: found[k] - exact[k])[: n - sum(found)]:
        found[k] += 1
    return found


def _problems(family: Family, n: int, seed: int) -> list[Problem]:
    if family.levels is None:
        return [_problem(family.name, entry, k, seed) for k, entry in enumerate(_entries(family, None, n, seed))]
    first, last = family.levels
    steps = shares([1.0] * (last - first + 1), n)
    entries = [entry for k, count in enumerate(steps) for entry in _entries(family, first + k, count, seed * 1_000 + k)]
    return [_problem(family.name, entry, k, seed) for k, entry in enumerate(entries)]


def _entries(family: Family, level: int | None, n: int, seed: int) -> list[dict[str, Any]]:
    """n of the family's entries. Raises `RecipeError` for settings that it refuses."""
    if n == 0:
        return []
    settings = dict(family.config)
    try:
        if level is not None:
            curriculum = create_curriculum(family.name)
            curriculum.set_global_level(level)
            settings = vars(curriculum.generate_configuration(settings)) | settings
        return list(reasoning_gym.create_dataset(family.name, **{**settings, "size": n, "seed": seed}))
    except (AssertionError, TypeError, ValueError) as error:
        raise RecipeError(f"data.options.families.{family.name}: refused its settings: {error}") from None


def _problem(family: str, entry: dict[str, Any], k: int, seed: int) -> Problem:
    answer = entry["answer"]
    return Problem(
        id=f"{family}-{seed}-{k}",
        question=str(entry["question"]).strip(),
        gold="" if answer is None else str(answer),
        answer_type="gym",
        source="reasoning-gym",
        family=family,
        meta={"name": family, "entry": entry},
    )
