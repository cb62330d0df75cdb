"""The embedded world as benchmarks: four cells, reading, recall, arithmetic, and reasoning-gym's families.

Evaluation draws from seeds of its own: every item and every picture is fresh.
"""

from __future__ import annotations

from random import Random

from xreasoner.problem import LABELS, Modality, Problem
from xreasoner.tiny import lessons, outside, world
from xreasoner.tiny.drawing import draw_scene
from xreasoner.tiny.world import Domain

EVALUATION = 7_000_003
"""Added to the seed, so that no evaluation item comes from the stream that training draws from."""


def _rng(kind: str, n: int, seed: int) -> Random:
    return Random(f"{kind}/{EVALUATION + seed}")


def task_problem(rng: Random, domain: Domain, modality: Modality, name: str) -> Problem:
    """One question on a fresh scene, as text or as a fresh picture."""
    scene = world.make_scene(rng, domain)
    task = world.make_task(rng, scene)
    options = lessons.options_for(rng, task)
    shown = world.write_scene(rng, scene)
    drawing, again = draw_scene(rng, scene), Random(name)
    while drawing.cards and "just below" in task.question:  # what stands below on cards is not what comes next
        drawing = draw_scene(again, scene)  # not by `rng`: other problems keep their pictures
    return Problem(
        id=name,
        question=task.question if modality == "image" else f"{shown}\n{task.question}",
        gold=LABELS[options.index(task.answer)] if options else task.answer,
        answer_type="choice" if options else "text" if task.family == "compare" else "integer",
        options=options,
        images=(drawing.image,) if modality == "image" else (),
        domain=domain,
        modality=modality,
        source="tiny",
        family=task.family,
        cluster=name,  # its text and its image form are one scene
        meta={"facts": scene.facts},
    )


def cell(domain: Domain, modality: Modality, n: int, seed: int) -> list[Problem]:
    """n problems of a cell. The same seed gives the same scenes and questions in both modalities."""
    rng = _rng(f"cell/{domain}", n, seed)
    return [task_problem(rng, domain, modality, f"{domain}-{seed}-{i}") for i in range(n)]


def reading(domain: Domain, modality: Modality, n: int, seed: int) -> list[Problem]:
    """n transcriptions, each behind the question of another family (or none)."""
    rng = _rng(f"read/{domain}", n, seed)
    return [reading_problem(rng, domain, modality, f"read-{domain}-{seed}-{i}", bare=i % 7 == 0) for i in range(n)]


def reading_problem(rng: Random, domain: Domain, modality: Modality, name: str, bare: bool) -> Problem:
    """The transcription of a fresh scene, asked behind a question unless bare."""
    scene = world.make_scene(rng, domain)
    task = world.make_task(rng, scene)
    prefix = "" if bare else lessons.with_options(task.question, lessons.options_for(rng, task)) + "\n"
    asked = prefix + rng.choice(lessons.READ_PROMPTS)
    shown, picture = world.write_scene(rng, scene), draw_scene(rng, scene).image
    return Problem(
        id=name,
        question=asked if modality == "image" else f"{shown}\n{asked}",
        gold=scene.facts,
        answer_type="text",
        images=(picture,) if modality == "image" else (),
        domain=domain,
        modality=modality,
        source="tiny",
        family="bare" if bare else task.family,
        cluster=name,
        meta={"facts": scene.facts},
    )


def recall(domain: Domain, modality: Modality, n: int, seed: int) -> list[Problem]:
    """n single entries asked by name (a gate of the base)."""
    rng = _rng(f"recall/{domain}", n, seed)
    problems = []
    for i in range(n):
        scene = world.table_scene(rng, domain)
        name, value = rng.choice(scene.entries)
        asked = lessons.recall_question(rng, scene, name)
        shown, picture = world.write_scene(rng, scene), draw_scene(rng, scene).image
        problems.append(
            Problem(
                id=f"recall-{domain}-{seed}-{i}",
                question=asked if modality == "image" else f"{shown}\n{asked}",
                gold=value,
                answer_type="integer",
                images=(picture,) if modality == "image" else (),
                domain=domain,
                modality=modality,
                source="tiny",
                family="recall",
                cluster=f"recall-{domain}-{seed}-{i}",
            )
        )
    return problems


def _gym(families: dict[str, dict[str, object]], n: int, seed: int) -> list[Problem]:
    share = -(-n // len(families))
    problems = [
        gym_problem(family, entry, f"{family}-{seed}-{i}")
        for family in families
        for i, entry in enumerate(outside.gym_entries(family, share, EVALUATION + seed))
    ]
    return problems[:n]


def gym_problem(family: str, entry: dict[str, object], name: str) -> Problem:
    """A reasoning-gym entry, judged by its own scorer."""
    return Problem(
        id=name,
        question=str(entry["question"]).strip(),
        gold=str(entry["answer"]),
        answer_type="gym",
        source="reasoning-gym",
        family=family,
        meta={"name": family, "entry": entry},
    )


def text_general(n: int, seed: int) -> list[Problem]:
    return cell("general", "text", n, seed)


def text_clinical(n: int, seed: int) -> list[Problem]:
    return cell("clinical", "text", n, seed)


def image_general(n: int, seed: int) -> list[Problem]:
    return cell("general", "image", n, seed)


def image_clinical(n: int, seed: int) -> list[Problem]:
    return cell("clinical", "image", n, seed)


def read_text_general(n: int, seed: int) -> list[Problem]:
    return reading("general", "text", n, seed)


def read_text_clinical(n: int, seed: int) -> list[Problem]:
    return reading("clinical", "text", n, seed)


def read_image_general(n: int, seed: int) -> list[Problem]:
    return reading("general", "image", n, seed)


def read_image_clinical(n: int, seed: int) -> list[Problem]:
    return reading("clinical", "image", n, seed)


def gym_train(n: int, seed: int) -> list[Problem]:
    """The families that post-training uses. Their numbers are small, so many of its items were trained on too."""
    return _gym(outside.TRAIN_FAMILIES, n, seed)


def gym_held_out(n: int, seed: int) -> list[Problem]:
    """Families that nothing here was ever trained on."""
    return _gym(outside.HELD_OUT_FAMILIES, n, seed)
