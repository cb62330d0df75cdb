"""What the base is taught: reading, recall, arithmetic, single steps, and answering directly. Never reasoning.

A `Lesson` is one document in the chat template, or a plain one: pieces of text of which some are learnt. Both
domains, text and pictures. A single step (the next entry, a mark, a running maximum) is learnt on plain text alone,
with all that it needs written out before it; no document goes from a question over steps to an answer.
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
    extremes,
    make_scene,
    make_task,
    table_scene,
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


def arithmetic_fact(rng: Random, words: Sequence[str] = ()) -> tuple[str, str]:
    """One fact of the kinds that a chain needs: a sum, a difference, a product, a gap, a comparison.

    words: names that may stand before the numbers, as in `apple 14 + pear 9 =`.
    """
    kind = rng.random()

    def of(number: int) -> str:
        return f"{rng.choice(words)} {number}" if words and rng.random() < 0.6 else str(number)

    if kind < 0.35:
        a, b = rng.randint(1, 75), rng.randint(1, 25)
        return f" {of(a)} + {of(b)} =", f" {a + b}."
    if kind < 0.65:
        a = rng.randint(1, 75)
        b = rng.randint(1, min(a, 50 if rng.random() < 0.3 else 25))
        return f" {of(a)} - {of(b)} =", f" {a - b}."
    if kind < 0.75:
        a, b = (rng.randint(2, 3), rng.randint(1, 25)) if rng.random() < 0.6 else (rng.randint(1, 9), rng.randint(1, 9))
        return f" {a} x {of(b)} =", f" {a * b}."
    if kind < 0.87:
        a, b = rng.randint(1, 25), rng.randint(1, 25)
        return f" {of(a)} to {b} gap", f" {abs(a - b)}."
    a, b = rng.randint(1, 40), rng.randint(1, 40)
    facts = (
        (f" larger {a} {b}:", f" {max(a, b)}."),
        (f" smaller {a} {b}:", f" {min(a, b)}."),
        (f" {of(a)} above {b}", f" {'yes' if a > b else 'no'}."),
        (f" {of(a)} below {b}", f" {'yes' if a < b else 'no'}."),
    )
    return rng.choice(facts)


def arithmetic_lesson(rng: Random, words: Sequence[str]) -> Lesson:
    """A dozen facts in a row, or some in a chat."""
    facts = [arithmetic_fact(rng, words if rng.random() < 0.6 else ()) for _ in range(12)]
    if rng.random() < 0.25:
        turns = [((q.strip() + f"\n{ANSWER_PROMPT}", False), (direct(a.strip(" ."), ()), True)) for q, a in facts[:4]]
        return Lesson(tuple(piece for turn in turns for piece in turn), True)
    if rng.random() < 0.3:
        asked = "Work out:" + ",".join(question.removesuffix(" =") for question, _ in facts[:5])
        return Lesson(((asked, False), ("".join(q + a for q, a in facts[:5]).strip(), True)), True)
    return Lesson(tuple(piece for q, a in facts for piece in ((q, False), (a, True))), False)


def step_lesson(rng: Random, words: Sequence[str]) -> Lesson:
    """Single steps in plain text: the next step of a plan, what follows a name, extremes so far, a label."""
    domain, kind = rng.choice(DOMAINS), rng.random()
    if kind < 0.7:
        return next_step_lesson(rng, domain)
    pieces: list[tuple[str, bool]] = []
    if kind < 0.8:
        scene = table_scene(rng, domain)
        pieces.append((f" {scene.facts}.", False))
        for index in rng.sample(range(len(scene.entries) - 1), len(scene.entries) - 1):
            pieces += [(f" After {scene.entries[index][0]}:", False), (f" {scene.entries[index + 1][0]}.", True)]
    elif kind < 0.9:
        names, values = rng.sample(list(words), 6), rng.sample(range(1, 26), 6)
        for step in extremes([(name, str(value)) for name, value in zip(names, values, strict=True)]):
            given, high, found = step.partition(" high")
            pieces += [(f" {given}", False), (high + found, True)]
    else:
        options = rng.sample(list(words), 4) if rng.random() < 0.3 else [str(n) for n in rng.sample(range(76), 4)]
        pieces.append((with_options("", options), False))
        for option in rng.sample(options, 4):
            pieces += [(f" {option} is", False), (f" {LABELS[options.index(option)]}.", True)]
    return Lesson(tuple(pieces), False)


def next_step_lesson(rng: Random, domain: Domain) -> Lesson:
    """One step of a plan where facts, plan and the steps before it are written out: every other one, two plans."""
    scene = make_scene(rng, domain)
    pieces: list[tuple[str, bool]] = []
    for _ in range(2):
        task = make_task(rng, scene)
        given, turn = f" {facts_line(rng, scene)} {plan_line(rng, task)}", rng.randrange(2)
        for k, step in enumerate(task.steps):
            if k % 2 == turn or len(task.steps) == 1:
                pieces += [(given, False), (f" {step}", True)]
                given = ""
            else:
                given += f" {step}"
        if given:
            pieces.append((given, False))
    return Lesson(tuple(_joined(pieces)), False)


def _joined(pieces: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbouring pieces that are not learnt become one."""
    found: list[tuple[str, bool]] = []
    for text, learnt in pieces:
        if found and not learnt and not found[-1][1]:
            found[-1] = (found[-1][0] + text, False)
        else:
            found.append((text, learnt))
    return found


def lesson(
    rng: Random,
    words: Sequence[str],
    easy: Sequence[tuple[Drawing, str, str]],
    gym: Sequence[tuple[str, str]],
    progress: float,
) -> Lesson:
    """One document of the mix. easy: (picture, question, answer) of easy-vqa's train split; gym: (question, answer).

    progress: share of the training done. Plain recall comes first: what finds and copies must form before the rest
    can be learnt with it (docs/log.md).
    """
    if rng.random() < max(0.05, 0.40 - 1.4 * progress):
        return recall_lesson(rng, words)
    draw = rng.random()
    if draw < 0.20:
        return arithmetic_lesson(rng, words)
    if draw < 0.44:
        return step_lesson(rng, words)
    if draw < 0.46:
        picture, question, answer = rng.choice(easy)
        return Lesson(((f"{question}\n{ANSWER_PROMPT}", False), (direct(answer, ()), True)), True, picture)
    if draw < 0.47:
        question, answer = rng.choice(gym)
        return Lesson(((f"{question}\n{ANSWER_PROMPT}", False), (direct(answer, ()), True)), True)
    domain = rng.choice(DOMAINS)
    return scene_lesson(rng, domain, image=rng.random() < 0.55, turns=rng.choice((1, 2, 3, 4)))
