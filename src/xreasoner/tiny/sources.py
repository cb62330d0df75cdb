"""The text that post-training learns from: the general half of the world, and reasoning-gym's training families.

Nothing here can hold a picture or a clinical word: `world` refuses any other domain, and builds text problems only.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from xreasoner.data.sources import Example, Style
from xreasoner.errors import RecipeError
from xreasoner.problem import LABELS, Problem
from xreasoner.registry import nearest
from xreasoner.tiny import chains, lessons, outside
from xreasoner.tiny.benchmarks import gym_problem, reading_problem
from xreasoner.tiny.world import make_scene, make_task, write_scene


class World:
    """Text problems of the general domain, with the teacher's chains."""

    def problems(self, n: int, seed: int) -> list[Problem]:
        return [example.problem for example in self.examples(n, seed, "direct")]

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        rng = Random(f"train/{seed}")
        return [self._example(rng, f"train-{seed}-{i}", style) for i in range(n)]

    def _example(self, rng: Random, name: str, style: Style) -> Example:
        scene = make_scene(rng, "general")
        task = make_task(rng, scene)
        options = lessons.options_for(rng, task)
        problem = Problem(
            id=name,
            question=f"{write_scene(rng, scene)}\n{task.question}",
            gold=LABELS[options.index(task.answer)] if options else task.answer,
            answer_type="choice" if options else "text" if task.family == "compare" else "integer",
            options=options,
            domain="general",
            modality="text",
            source="tiny",
            family=task.family,
        )
        chain = chains.chain(rng, scene, task, options)
        return Example(problem, chain if style == "chain" else chains.direct(task.answer, options))


class Reading:
    """Transcription of general text, behind a question or bare: the base's own skill, so that SFT keeps it alive."""

    def problems(self, n: int, seed: int) -> list[Problem]:
        rng = Random(f"read/{seed}")
        return [reading_problem(rng, "general", "text", f"read-train-{seed}-{i}", bare=i % 7 == 0) for i in range(n)]

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        return [Example(problem, chains.direct(problem.gold, ())) for problem in self.problems(n, seed)]


class Gym:
    """reasoning-gym's training families, evenly mixed."""

    def __init__(self, families: Sequence[str]) -> None:
        for family in families:
            if family not in outside.TRAIN_FAMILIES:
                near = nearest(str(family), outside.TRAIN_FAMILIES)
                raise RecipeError(f"data.options.families: no teacher for {family!r}; {near}")
        self.families = tuple(families)

    def problems(self, n: int, seed: int) -> list[Problem]:
        return [example.problem for example in self.examples(n, seed, "direct")]

    def examples(self, n: int, seed: int, style: Style) -> list[Example]:
        rng = Random(f"gym/{seed}")
        share = -(-n // len(self.families))
        found = []
        for family in self.families:
            for i, entry in enumerate(outside.gym_entries(family, share, seed)):
                problem = gym_problem(family, entry, f"{family}-train-{seed}-{i}")
                chain = outside.gym_chain(rng, entry)
                found.append(Example(problem, chain if style == "chain" else chains.direct(entry["answer"], ())))
        rng.shuffle(found)
        return found[:n]


def world(options: dict[str, Any]) -> World:
    """The source `tiny`. options: {"domain": "general"}; no other domain may enter post-training."""
    _general_only(options)
    return World()


def reading(options: dict[str, Any]) -> Reading:
    """The source `tiny-read`. options: {"domain": "general"}, as for `tiny`."""
    _general_only(options)
    return Reading()


def _general_only(options: dict[str, Any]) -> None:
    _known(options, "domain")
    if options.get("domain", "general") != "general":
        raise RecipeError(
            f"data.options.domain: found {options['domain']!r}, expected 'general'; "
            "the clinical half is kept for evaluation"
        )


def gym(options: dict[str, Any]) -> Gym:
    """The source `gym`. options: {"families": [names]}; all training families when left out."""
    _known(options, "families")
    families = options.get("families", list(outside.TRAIN_FAMILIES))
    if not isinstance(families, list) or not families:
        raise RecipeError(f"data.options.families: found {families!r}, expected a list of names")
    return Gym(families)


def _known(options: dict[str, Any], taken: str) -> None:
    """A misspelt option must not pass for its default: what is trained on would not be what the recipe says."""
    for name in options:
        if name != taken:
            raise RecipeError(f"data.options.{name}: unknown option; {nearest(str(name), [taken])}")
