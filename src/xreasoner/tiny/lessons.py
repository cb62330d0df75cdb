"""What the base is taught: reading, recall, arithmetic, and answering directly. Never reasoning.

A `Lesson` is one document in the chat template, or a plain one: pieces of text of which some are learnt. Both
domains, text and pictures; no document shows a chain of steps from facts to an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from xreasoner.problem import LABELS
from xreasoner.tiny.chains import direct, facts_line, plan_line
from xreasoner.tiny.drawing import Drawing, draw_scene
from xreasoner.tiny.world import (
    COLOURS,
    DOMAINS,
    FORMS,
    THEMES,
    Domain,
    Scene,
    Task,
    make_scene,
    make_task,
    write_scene,
)

READ_PROMPTS = ("List the facts.", "What are the facts?", "Read it out.")
PLAN_PROMPT = "Facts and plan."
ANSWER_PROMPT = "Answer."


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pieces (text, learnt); a chat lesson's pieces alternate user and assistant, and its picture stands first."""

    pieces: tuple[tuple[str, bool], ...]
    chat: bool
    drawing: Drawing | None = None


def all_words() -> list[str]:
    """Every entity, colour and form: what a picture's cell can say."""
    words: list[str] = []
    for domain in DOMAINS:
        words += [name for theme in THEMES[domain] for name in theme.names]
        words += [*COLOURS[domain], *FORMS[domain]]
    return [*dict.fromkeys([*words, "teal", "brown", "rectangle"])]  # the last three are easy-vqa's


def options_for(rng: Random, task: Task) -> tuple[str, ...]:
    """Half of the questions are multiple choice (where there are two wrong options at least)."""
    if rng.random() < 0.5 or len(task.distractors) < 2:
        return ()
    options = [task.answer, *task.distractors]
    rng.shuffle(options)
    return tuple(options)


def with_options(question: str, options: Sequence[str]) -> str:
    return question + "".join(f"\n{label}: {option}" for label, option in zip(LABELS, options, strict=False))


def recall_turn(rng: Random, scene: Scene) -> tuple[str, str]:
    """One entry of a table by its name or its number."""
    name, value = rng.choice(scene.entries)
    assert scene.theme is not None
    if rng.random() < 0.75:
        question, answer = recall_question(rng, scene, name), value
        others = [v for _, v in scene.entries if v != value]
    else:
        question, answer = rng.choice((f"Which {scene.theme.entity} is {value}?", f"Which one has {value}?")), name
        others = [n for n, _ in scene.entries if n != name]
    options = [answer, *others]
    rng.shuffle(options)
    chosen = tuple(options) if rng.random() < 0.4 else ()
    return f"{with_options(question, chosen)}\n{ANSWER_PROMPT}", direct(answer, chosen)


def recall_question(rng: Random, scene: Scene, name: str) -> str:
    assert scene.theme is not None
    return rng.choice(
        (f"What is the {scene.theme.value} of {name}?", f"{name}?", f"Give the {scene.theme.value} of {name}.")
    )


def scene_turn(rng: Random, scene: Scene) -> tuple[str, str]:
    """One question and answer on a scene: read it out, plan, recall, or answer directly."""
    draw = rng.random()
    if draw < 0.42 and scene.theme is not None:
        return recall_turn(rng, scene)
    task = make_task(rng, scene)
    question = with_options(task.question, options_for(rng, task))
    if draw < 0.66:
        asked = (question + "\n" if rng.random() < 0.7 else "") + rng.choice(READ_PROMPTS)
        if rng.random() < 0.4:
            return f"{asked}\n{ANSWER_PROMPT}", f"<answer>{scene.facts}</answer>"
        return asked, facts_line(rng, scene)
    if draw < 0.86:
        return f"{question}\n{PLAN_PROMPT}", f"{facts_line(rng, scene)} {plan_line(rng, task)}"
    options = options_for(rng, task)
    return f"{with_options(task.question, options)}\n{ANSWER_PROMPT}", direct(task.answer, options)


def scene_lesson(rng: Random, domain: Domain, image: bool, turns: int) -> Lesson:
    """A scene and several turns on it."""
    scene = make_scene(rng, domain)
    pieces: list[tuple[str, bool]] = []
    for turn in range(turns):
        question, answer = scene_turn(rng, scene)
        if turn == 0 and not image:
            question = f"{write_scene(rng, scene)}\n{question}"
        pieces += [(question, False), (answer, True)]
    return Lesson(tuple(pieces), True, draw_scene(rng, scene) if image else None)


def recall_lesson(rng: Random, words: Sequence[str]) -> Lesson:
    """Plain key–value lists of any words, asked several times over, or repeated as they are."""
    keys = rng.sample(list(words), rng.randint(2, 7))
    joint = rng.choice((" ", ": ", " = ", " is "))
    values = {key: str(rng.randint(1, 40)) for key in keys}
    shown = ", ".join(f"{key}{joint}{value}" for key, value in values.items())
    pieces = [(f" {shown}.", False)]
    if rng.random() < 0.35:
        pieces.append((f" {shown}.", True))
    for key in rng.choices(keys, k=6):
        pieces += [(f" {key}?", False), (f" {values[key]}.", True)]
    return Lesson(tuple(pieces), False)


def arithmetic_fact(rng: Random) -> tuple[str, str]:
    """One fact of the kinds that a chain needs: a sum, a difference, a product, a comparison."""
    kind = rng.random()
    if kind < 0.4:
        a, b = rng.randint(1, 75), rng.randint(1, 25)
        return f" {a} + {b} =", f" {a + b}."
    if kind < 0.75:
        a = rng.randint(1, 75)
        b = rng.randint(1, min(a, 50 if rng.random() < 0.3 else 25))
        return f" {a} - {b} =", f" {a - b}."
    if kind < 0.85:
        a, b = (rng.randint(2, 3), rng.randint(1, 25)) if rng.random() < 0.6 else (rng.randint(1, 9), rng.randint(1, 9))
        return f" {a} x {b} =", f" {a * b}."
    a, b = rng.randint(1, 40), rng.randint(1, 40)
    facts = (
        (f" larger {a} {b}:", f" {max(a, b)}."),
        (f" smaller {a} {b}:", f" {min(a, b)}."),
        (f" {a} above {b}:", f" {'yes' if a > b else 'no'}."),
        (f" {a} below {b}:", f" {'yes' if a < b else 'no'}."),
    )
    return rng.choice(facts)


def arithmetic_lesson(rng: Random) -> Lesson:
    """A dozen facts in a row, or some in a chat."""
    facts = [arithmetic_fact(rng) for _ in range(12)]
    if rng.random() < 0.25:
        turns = [((q.strip() + f"\n{ANSWER_PROMPT}", False), (direct(a.strip(" ."), ()), True)) for q, a in facts[:4]]
        return Lesson(tuple(piece for turn in turns for piece in turn), True)
    if rng.random() < 0.3:
        asked = "Work out:" + ",".join(question.removesuffix(" =") for question, _ in facts[:5])
        return Lesson(((asked, False), ("".join(q + a for q, a in facts[:5]).strip(), True)), True)
    return Lesson(tuple(piece for q, a in facts for piece in ((q, False), (a, True))), False)


def lesson(
    rng: Random, words: Sequence[str], easy: Sequence[tuple[Drawing, str, str]], gym: Sequence[tuple[str, str]]
) -> Lesson:
    """One document of the mix. easy: (picture, question, answer) of easy-vqa's train split; gym: (question, answer)."""
    draw = rng.random()
    if draw < 0.06:
        return recall_lesson(rng, words)
    if draw < 0.30:
        return arithmetic_lesson(rng)
    if draw < 0.34:
        picture, question, answer = rng.choice(easy)
        return Lesson(((f"{question}\n{ANSWER_PROMPT}", False), (direct(answer, ()), True)), True, picture)
    if draw < 0.36:
        question, answer = rng.choice(gym)
        return Lesson(((f"{question}\n{ANSWER_PROMPT}", False), (direct(answer, ()), True)), True)
    domain = rng.choice(DOMAINS)
    return scene_lesson(rng, domain, image=rng.random() < 0.6, turns=rng.choice((1, 2, 3)))
