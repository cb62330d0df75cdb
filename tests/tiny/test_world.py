"""The embedded world: deterministic, solvable, the same in text and picture, and split between the domains."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest

from xreasoner.errors import RecipeError
from xreasoner.grading import judge
from xreasoner.tiny import architecture, benchmarks, chains, eyes, lessons, outside, sources, world
from xreasoner.tiny.drawing import CELL, draw_scene

EQUATION = re.compile(r"(?:[A-Za-z]+ )?(\d+) ([-+x]) (?:[A-Za-z]+ )?(\d+) = (\d+)\.")
EXTREMES = re.compile(r"\w+ (\d+) high (\d+) low (\d+)\.")
MARK = re.compile(r"\w+ (\d+) (above|below) (\d+) (yes|no) (\d+)\.")
SHAPE = re.compile(r"(\w+) (\w+) (\w+)(?: or (\w+))? (yes|no) (\d+)\.")
GAP = re.compile(r"(\w+) (\d+) to (\d+) gap (\d+) low (\w+) (\d+)\.")
NEXT = re.compile(r"After (\w+): (\w+)\.")


def _value(a: str, sign: str, b: str) -> int:
    return {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]


def check_steps(scene: world.Scene, steps: tuple[str, ...]) -> None:
    """Every step is right by itself, and counts and extremes are those of all entries so far."""
    seen: list[int] = []
    count = 0
    for step in steps:
        if match := EQUATION.fullmatch(step):
            assert _value(*match.group(1, 2, 3)) == int(match[4])
        elif match := EXTREMES.fullmatch(step):
            seen.append(int(match[1]))
            assert (int(match[2]), int(match[3])) == (max(seen), min(seen))
        elif match := MARK.fullmatch(step):
            value, threshold = int(match[1]), int(match[3])
            hit = value > threshold if match[2] == "above" else value < threshold
            count += hit
            assert (match[4] == "yes", int(match[5])) == (hit, count)
        elif match := SHAPE.fullmatch(step):
            hit = bool({match[1], match[2]} & {match[3], match[4]})
            count += hit
            assert (match[5] == "yes", int(match[6])) == (hit, count)
        elif match := GAP.fullmatch(step):
            assert int(match[4]) == abs(int(match[2]) - int(match[3]))
            seen.append(int(match[4]))
            assert int(match[6]) == min(seen) == abs(scene.number(match[5]) - int(match[3]))
        elif match := NEXT.fullmatch(step):
            names = [name for name, _ in scene.entries]
            assert names.index(match[2]) == names.index(match[1]) + 1
        else:
            assert step.rstrip(".") in [f"{a} {b}" for a, b in scene.entries], step


@pytest.mark.parametrize("domain", world.DOMAINS)
def test_problems_are_deterministic_and_share_golds_across_modalities(domain: world.Domain) -> None:
    text, again = benchmarks.cell(domain, "text", 60, 3), benchmarks.cell(domain, "text", 60, 3)
    image = benchmarks.cell(domain, "image", 60, 3)
    assert [p.question for p in text] == [p.question for p in again]
    assert [(p.id, p.gold, p.options, p.family) for p in text] == [(p.id, p.gold, p.options, p.family) for p in image]
    assert all(not p.images for p in text)
    assert all(len(p.images) == 1 for p in image)
    assert {p.family for p in text} == {"lookup", "sum", "difference", "count", "two-step", "compare"}


@pytest.mark.parametrize("domain", world.DOMAINS)
def test_every_chain_is_right_step_by_step_and_judged_correct(domain: world.Domain) -> None:
    rng = Random(1)
    for i in range(300):
        scene = world.make_scene(rng, domain)
        task = world.make_task(rng, scene)
        options = lessons.options_for(rng, task)
        assert task.answer not in task.distractors
        check_steps(scene, task.steps)
        reply = chains.chain(rng, scene, task, options, slip_rate=0.0)
        problem = benchmarks.task_problem(Random(i), domain, "text", "x")
        gold = chains.final_answer(task.answer, options)
        assert reply.endswith(f"<answer>{gold}</answer>")
        assert scene.facts in reply
        assert judge(problem, f"<think> x </think> <answer>{problem.gold}</answer>").correct


def test_sums_and_differences_agree_with_the_facts() -> None:
    rng = Random(2)
    for _ in range(200):
        scene = world.table_scene(rng, "general")
        values = [int(v) for _, v in scene.entries]
        assert world.difference(rng, scene).answer == str(max(values) - min(values))
        task = world.total(rng, scene)
        named = [scene.number(n) for n, _ in scene.entries if re.search(rf"\b{n}\b", task.question)] or values
        assert task.answer == str(sum(named))
        task = world.closest(rng, scene)
        target = int(re.findall(r"\d+", task.question)[0])
        assert task.answer == min(scene.entries, key=lambda e: abs(int(e[1]) - target))[0]


def test_slips_are_mended() -> None:
    rng = Random(3)
    steps = chains.with_slips(rng, ("3 + 4 = 7.",), 1.0)
    assert re.fullmatch(r"3 \+ 4 = (\d+)\. Wait, 3 \+ 4 = 7\.", steps[0])
    assert "= 7. Wait" not in steps[0]


def test_post_training_text_has_no_picture_and_no_clinical_word() -> None:
    clinical = {name for theme in world.THEMES["clinical"] for name in (*theme.names, theme.entity)}
    clinical |= {*world.COLOURS["clinical"], *world.FORMS["clinical"]}
    for source in (sources.world({"domain": "general"}), sources.reading({}), sources.gym({})):
        for style in ("chain", "direct"):
            for example in source.examples(400, 5, style):
                assert not example.problem.images
                assert example.problem.modality == "text"
                words = set(re.findall(r"\w+", example.problem.question + " " + example.response))
                assert not words & clinical
    with pytest.raises(RecipeError, match="clinical"):
        sources.world({"domain": "clinical"})
    with pytest.raises(RecipeError, match="clinical"):
        sources.reading({"domain": "clinical"})
    for seed in range(200):  # and the words are those that every clinical text has
        scene = world.make_scene(Random(seed), "clinical")
        assert set(re.findall(r"\w+", world.write_scene(Random(seed), scene))) & clinical


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (sources.world, {"domian": "clinical"}, r"options\.domian: unknown option; did you mean 'domain'"),
        (sources.reading, {"n": 3}, r"options\.n: unknown option"),
        (sources.gym, {"familys": ["products"]}, "did you mean 'families'"),
        (sources.gym, {"families": []}, r"found \[\], expected a list of names"),
        (sources.gym, {"families": "products"}, "found 'products', expected a list"),
        (sources.gym, {"families": [3]}, "no teacher for 3"),
        (sources.gym, {"families": ["gcd"]}, "no teacher for 'gcd'"),  # held out
    ],
)
def test_a_mistaken_option_of_the_data_is_named(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source(options)


def test_evaluation_items_are_not_training_items() -> None:
    trained = {p.question for p in sources.world({}).problems(3000, 0)}
    fresh = benchmarks.cell("general", "text", 500, 0)
    assert sum(p.question in trained for p in fresh) == 0


def test_gym_chains_are_judged_correct_by_the_package() -> None:
    source = sources.gym({})
    for example in source.examples(120, 4, "chain"):
        assert judge(example.problem, example.response).correct, example
    assert {p.family for p in benchmarks.gym_held_out(30, 0)} == set(outside.HELD_OUT_FAMILIES)
    assert not set(outside.HELD_OUT_FAMILIES) & set(outside.TRAIN_FAMILIES)
    with pytest.raises(RecipeError, match="chain_sum"):
        sources.gym({"families": ["chain_sums"]})


def test_pictures_are_whole_cells_differ_every_time_and_match_the_processor() -> None:
    rng = Random(4)
    scene = world.table_scene(rng, "general")
    one, two = draw_scene(rng, scene), draw_scene(rng, scene)
    assert one.image.tobytes() != two.image.tobytes()
    images = [draw_scene(rng, world.make_scene(rng, domain)).image for domain in world.DOMAINS for _ in range(8)]
    assert all(image.width % CELL == 0 and image.height % CELL == 0 for image in images)
    patches, grids = eyes.pixels(images)
    official = architecture.image_processor()(images, return_tensors="pt")
    assert (official["image_grid_thw"] == grids).all()
    np.testing.assert_allclose(official["pixel_values"].numpy(), patches.numpy(), atol=1e-6)


def test_the_base_is_never_taught_a_chain() -> None:
    rng, gym = Random(5), list(outside.gym_direct(5, 1))
    easy = outside.easy_train()[:20]
    for i in range(400):
        lesson = lessons.lesson(rng, lessons.all_words(), easy, gym, progress=i / 400)
        assert "<think>" not in "".join(text for text, _ in lesson.pieces)


def test_single_steps_are_right_in_plain_text_and_never_a_whole_chain() -> None:
    rng, words = Random(6), lessons.all_words()
    for _ in range(300):
        lesson = lessons.step_lesson(rng, words)
        assert lesson.drawing is None
        assert not lesson.chat
        assert not lesson.pieces[0][1]
        # nothing follows from something learnt: each learnt piece answers a given one
        assert all(not before or not after for (_, before), (_, after) in pairwise(lesson.pieces))
        for said, learnt in lesson.pieces:
            if learnt and " - " in said:
                high, low, gap = map(int, re.findall(r"\d+", said))
                assert high - low == gap


def test_what_stands_just_below_is_below_in_the_picture_too() -> None:
    asked = [problem for problem in benchmarks.cell("general", "image", 600, 5) if "just below" in problem.question]
    assert len(asked) > 20
    assert {problem.images[0].width for problem in asked} == {4 * CELL}  # cards are five wide
