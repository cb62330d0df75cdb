"""The embedded world: scenes (small tables and coloured shapes), questions over them, and their answers.

A `Scene` holds the facts; a `Task` is a question on it that takes several steps, with the plan, the steps and
the answer that the teacher (chains.py) writes out. Two domains share the families and nothing else: the
clinical half has its own entities, themes, phrasings, layouts and colours, and never enters post-training.
Everything is a function of the `random.Random` that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Domain = Literal["general", "clinical"]
DOMAINS: tuple[Domain, ...] = ("general", "clinical")


@dataclass(frozen=True, slots=True)
class Theme:
    """What a table is about: its entities, what they are called, and what their numbers mean."""

    title: str
    entity: str
    value: str
    names: tuple[str, ...]


THEMES: dict[Domain, tuple[Theme, ...]] = {
    "general": (
        Theme("Scores", "player", "score", ("Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana")),
        Theme("Prices", "item", "price", ("apple", "bread", "milk", "cheese", "rice", "soup", "cake", "pear")),
        Theme("Distances", "city", "distance", ("Oslo", "Rome", "Lima", "Cairo", "Paris", "Delhi", "Kyoto", "Bern")),
        Theme("Farm", "animal", "number", ("goat", "horse", "duck", "sheep", "cow", "hen", "pig", "dog")),
    ),
    "clinical": (
        Theme(
            "Doses", "drug", "dose", ("aspirin", "heparin", "insulin", "digoxin", "codeine", "statin", "iron", "zinc")
        ),
        Theme(
            "Readings",
            "test",
            "reading",
            ("pulse", "sugar", "sodium", "oxygen", "urea", "lactate", "calcium", "weight"),
        ),
        Theme("Wards", "ward", "occupancy", ("North", "South", "Cedar", "Maple", "Elm", "Birch", "Rose", "Lily")),
        Theme("Patients", "patient", "level", ("Lee", "Kim", "Shah", "Cruz", "Diaz", "Park", "Wong", "Bell")),
    ),
}

COLOURS: dict[Domain, tuple[str, ...]] = {
    "general": ("red", "blue", "green", "yellow", "black", "gray"),
    "clinical": ("pink", "white", "orange", "purple", "cyan"),
}
FORMS: dict[Domain, tuple[str, ...]] = {
    "general": ("circle", "square", "triangle", "star"),
    "clinical": ("tablet", "capsule", "vial", "drop"),
}
MAX_VALUE = 25


@dataclass(frozen=True, slots=True)
class Scene:
    """Facts. entries: (name, number) rows of a table, or (colour, form) shapes in reading order."""

    domain: Domain
    theme: Theme | None
    entries: tuple[tuple[str, str], ...]

    @property
    def facts(self) -> str:
        """The canonical transcription: `Ana 14, Ben 9, Cara 20` or `red circle, blue star`."""
        return ", ".join(f"{a} {b}" for a, b in self.entries)

    def number(self, name: str) -> int:
        return int(dict(self.entries)[name])


@dataclass(frozen=True, slots=True)
class Task:
    """A question on a scene. plan and steps are the teacher's; options are empty when the answer is free."""

    family: str
    question: str
    plan: str
    steps: tuple[str, ...]
    check: str
    answer: str
    distractors: tuple[str, ...]


def table_scene(rng: Random, domain: Domain) -> Scene:
    """A table of three or four entities with distinct numbers from 1 to `MAX_VALUE`."""
    theme = rng.choice(THEMES[domain])
    size = rng.choice((3, 3, 4))
    names = rng.sample(theme.names, size)
    values = rng.sample(range(1, MAX_VALUE + 1), size)
    return Scene(domain, theme, tuple((name, str(value)) for name, value in zip(names, values, strict=True)))


def shape_scene(rng: Random, domain: Domain) -> Scene:
    """Three to five different shapes out of three colours and three forms."""
    colours, forms = rng.sample(COLOURS[domain], 3), rng.sample(FORMS[domain], 3)
    pairs = [(colour, form) for colour in colours for form in forms]
    return Scene(domain, None, tuple(rng.sample(pairs, rng.randint(3, 5))))


def make_scene(rng: Random, domain: Domain) -> Scene:
    """Four scenes in five are tables."""
    return table_scene(rng, domain) if rng.random() < 0.8 else shape_scene(rng, domain)


# --- the families -----------------------------------------------------------------------------------------


def _near(rng: Random, answer: int, others: list[int]) -> tuple[str, ...]:
    """Wrong options: other results that a slip would give, then near misses."""
    pool = [value for value in dict.fromkeys(others) if value != answer and value >= 0]
    rng.shuffle(pool)
    while len(pool) < 3:
        value = answer + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
        if value >= 0 and value != answer and value not in pool:
            pool.append(value)
    return tuple(str(value) for value in pool[:3])


def _say(rng: Random, scene: Scene, general: tuple[str, ...], clinical: tuple[str, ...], **words: object) -> str:
    """One phrasing out of the domain's own list, filled in with the theme's words."""
    theme = scene.theme
    names = {} if theme is None else {"entity": theme.entity, "value": theme.value}
    return rng.choice(general if scene.domain == "general" else clinical).format(**names, **words)


def lookup(rng: Random, scene: Scene) -> Task:
    """Find an entity, go to the one listed after it, read its number."""
    index = rng.randrange(len(scene.entries) - 1)
    (name, _), (target, value) = scene.entries[index], scene.entries[index + 1]
    question = _say(
        rng,
        scene,
        ("What is the {value} of the {entity} listed right after {name}?", "Which {value} stands just below {name}?"),
        ("Give the {value} recorded next after {name}.", "What {value} was charted following {name}?"),
        name=name,
    )
    return Task(
        "lookup",
        question,
        rng.choice((f"find {name}, take the next.", f"the one after {name}.")),
        (f"After {name}: {target}.", f"{target} {value}."),
        f"{target} {value}.",
        value,
        _near(rng, int(value), [int(v) for _, v in scene.entries]),
    )


def total(rng: Random, scene: Scene) -> Task:
    """Add two or three numbers."""
    everyone = len(scene.entries) == 3 and rng.random() < 0.5
    chosen = scene.entries if everyone else tuple(rng.sample(scene.entries, rng.choice((2, 3))))
    names = ", ".join(name for name, _ in chosen[:-1]) + f" and {chosen[-1][0]}"
    if everyone:
        question = _say(
            rng,
            scene,
            ("What is the total {value} of all?", "What do all the {value}s add up to?"),
            ("Give the overall {value} in the chart.", "What is the combined {value} over every {entity}?"),
        )
    else:
        question = _say(
            rng,
            scene,
            ("What is the total {value} of {names}?", "What do {names} add up to?"),
            ("Give the combined {value} of {names}.", "What {value} do {names} reach together?"),
            names=names,
        )
    numbers = [int(value) for _, value in chosen]
    steps, subtotal, before = [], numbers[0], f"{chosen[0][0]} {numbers[0]}"
    for (name, _), number in zip(chosen[1:], numbers[1:], strict=True):
        subtotal += number
        steps.append(f"{before} + {name} {number} = {subtotal}.")
        before = str(subtotal)
    plan = rng.choice(("add", "sum of")) + " " + " + ".join(name for name, _ in chosen) + "."
    others = [subtotal - numbers[-1], subtotal + rng.choice(numbers), max(numbers)]
    return Task("sum", question, plan, tuple(steps), steps[-1], str(subtotal), _near(rng, subtotal, others))


def extremes(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Each entry with the highest and the lowest number so far."""
    steps, high, low = [], 0, MAX_VALUE + 1
    for name, value in entries:
        high, low = max(high, int(value)), min(low, int(value))
        steps.append(f"{name} {value} high {high} low {low}.")
    return steps


def difference(rng: Random, scene: Scene) -> Task:
    """The highest number less the lowest."""
    values = [int(value) for _, value in scene.entries]
    high, low = max(values), min(values)
    question = _say(
        rng,
        scene,
        ("By how much does the highest {value} exceed the lowest?", "What is the highest {value} minus the lowest?"),
        ("What is the range of the {value}s?", "How far apart are the largest and smallest {value}?"),
    )
    answer = high - low
    step = f"{high} - {low} = {answer}."
    steps = (*extremes(scene.entries), step)
    ordered = sorted(values)
    others = [high, high - ordered[1], ordered[-2] - low]
    plan = rng.choice(("highest minus lowest.", "high - low."))
    return Task("difference", question, plan, steps, step, str(answer), _near(rng, answer, others))


def count(rng: Random, scene: Scene) -> Task:
    """Count the entities above or below a number, or the shapes of a kind."""
    if scene.theme is None:
        return _count_shapes(rng, scene)
    threshold = rng.randint(5, MAX_VALUE - 5)
    above = rng.random() < 0.5
    word = "above" if above else "below"
    question = _say(
        rng,
        scene,
        (f"How many have a {{value}} {word} {threshold}?", f"How many {{entity}}s are {word} {threshold}?"),
        (f"Count the {{value}}s {word} {threshold}.", f"In how many is the {{value}} {word} {threshold}?"),
    )
    hits = [int(value) > threshold if above else int(value) < threshold for _, value in scene.entries]
    steps, number = tally(scene.entries, f"{word} {threshold}", hits), sum(hits)
    plan = rng.choice((f"count {word} {threshold}.", f"those {word} {threshold}."))
    others = [value for value in range(len(scene.entries) + 1) if value != number]
    return Task(
        "count", question, plan, tuple(steps), f"{number} {word} {threshold}.", str(number), _near(rng, number, others)
    )


def tally(entries: Sequence[tuple[str, str]], wanted: str, hits: Sequence[bool]) -> list[str]:
    """Each entry with what is asked of it, whether it holds, and how many did so far."""
    return [
        f"{first} {second} {wanted} {'yes' if hit else 'no'} {sum(hits[: k + 1])}."
        for k, ((first, second), hit) in enumerate(zip(entries, hits, strict=True))
    ]


def _count_shapes(rng: Random, scene: Scene) -> Task:
    colour = rng.choice(COLOURS[scene.domain]) if rng.random() < 0.2 else rng.choice(scene.entries)[0]
    kinds = [colour, rng.choice(scene.entries)[1]]
    wanted = rng.choice(kinds)
    plural = wanted if wanted == colour else wanted + "s"
    question = _say(
        rng,
        scene,
        (f"How many shapes are {plural}?", f"How many are {plural}?"),
        (f"Count those that are {plural}.", f"How many {plural} are on the tray?"),
    )
    hits = [wanted in entry for entry in scene.entries]
    steps, number = tally(scene.entries, wanted, hits), sum(hits)
    others = [value for value in range(len(scene.entries) + 1) if value != number]
    plan = rng.choice((f"count {wanted}.", f"those {wanted}."))
    return Task("count", question, plan, tuple(steps), f"{number} {wanted}.", str(number), _near(rng, number, others))


def shape_sum(rng: Random, scene: Scene) -> Task:
    """How many of one colour and of another together."""
    present = list(dict.fromkeys(colour for colour, _ in scene.entries))
    absent = [colour for colour in COLOURS[scene.domain] if colour not in present]
    one, two = rng.sample(present, 2) if len(present) > 1 else (present[0], rng.choice(absent))
    question = _say(
        rng,
        scene,
        (f"How many are {one} or {two}?", f"How many {one} and {two} shapes are there together?"),
        (f"Count the {one} and the {two} ones together.", f"How many on the tray are {one} or {two}?"),
    )
    hits = [colour in (one, two) for colour, _ in scene.entries]
    steps, number = tally(scene.entries, f"{one} or {two}", hits), sum(hits)
    others = [value for value in range(len(scene.entries) + 1) if value != number]
    plan = rng.choice((f"count {one} or {two}.", f"those {one} or {two}."))
    return Task(
        "sum", question, plan, tuple(steps), f"{number} {one} or {two}.", str(number), _near(rng, number, others)
    )


def two_step(rng: Random, scene: Scene) -> Task:
    """k times one number plus another, or two numbers added and a third taken away."""
    if rng.random() < 0.5:
        (a, x), (b, y) = rng.sample(scene.entries, 2)
        k = rng.choice((2, 3))
        first = k * int(x)
        answer = first + int(y)
        question = _say(
            rng,
            scene,
            (f"What is {k} times {a} plus {b}?", f"Take {a} {k} times and add {b}. What is the {{value}}?"),
            (
                f"Give {k} times the {{value}} of {a} with that of {b} added.",
                f"{a} is given {k} times and {b} once. What {{value}} is that?",
            ),
        )
        plan = f"{k} x {a} + {b}."
        steps = (f"{k} x {a} {x} = {first}.", f"{first} + {b} {y} = {answer}.")
        others = [first, int(x) + int(y), k * int(y) + int(x)]
    else:
        chosen = sorted(rng.sample(scene.entries, 3), key=lambda entry: int(entry[1]))
        (c, z), (a, x), (b, y) = chosen if rng.random() < 0.5 else (chosen[1], chosen[0], chosen[2])
        first = int(x) + int(y)
        answer = first - int(z)
        question = _say(
            rng,
            scene,
            (f"What is {a} plus {b} minus {c}?", f"Add {a} and {b}, then take away {c}. What is the {{value}}?"),
            (
                f"Give the {{value}} of {a} with {b}, less that of {c}.",
                f"Combine {a} and {b}, then withdraw {c}. What {{value}} remains?",
            ),
        )
        plan = f"{a} + {b} - {c}."
        steps = (f"{a} {x} + {b} {y} = {first}.", f"{first} - {c} {z} = {answer}.")
        others = [first, first + int(z), int(y) - int(x)]
    return Task("two-step", question, plan, steps, steps[-1], str(answer), _near(rng, answer, others))


def closest(rng: Random, scene: Scene) -> Task:
    """Which entity's number is closest to a given one (never a tie)."""
    while True:
        target = rng.randint(3, MAX_VALUE - 2)
        gaps = [abs(int(value) - target) for _, value in scene.entries]
        if sorted(gaps)[0] < sorted(gaps)[1] and 0 not in gaps:
            break
    best = min(range(len(gaps)), key=gaps.__getitem__)
    name = scene.entries[best][0]
    question = _say(
        rng,
        scene,
        (f"Which {{entity}} has the {{value}} closest to {target}?", f"Which {{entity}} comes nearest to {target}?"),
        (
            f"Name the {{entity}} whose {{value}} lies nearest {target}.",
            f"Which {{entity}} is least far from {target}?",
        ),
    )
    steps = nearest_so_far(scene.entries, target)
    others = [entry for entry, _ in scene.entries if entry != name]
    rng.shuffle(others)
    plan = rng.choice((f"smallest gap to {target}.", f"gaps to {target}."))
    return Task("compare", question, plan, tuple(steps), f"{name} {min(gaps)}.", name, tuple(others[:3]))


def nearest_so_far(entries: Sequence[tuple[str, str]], target: int) -> list[str]:
    """Each entry with its gap to the target, and which has been nearest so far."""
    steps, name, least = [], "", MAX_VALUE + 1
    for entry, value in entries:
        gap = abs(int(value) - target)
        if gap < least:
            name, least = entry, gap
        steps.append(f"{entry} {value} to {target} gap {gap} low {name} {least}.")
    return steps


TABLE_FAMILIES: tuple[Callable[[Random, Scene], Task], ...] = (lookup, total, difference, count, two_step, closest)
SHAPE_FAMILIES: tuple[Callable[[Random, Scene], Task], ...] = (count, shape_sum)


def make_task(rng: Random, scene: Scene) -> Task:
    """A question on the scene; a table's families are drawn evenly."""
    return rng.choice(SHAPE_FAMILIES if scene.theme is None else TABLE_FAMILIES)(rng, scene)


# --- scenes as text ---------------------------------------------------------------------------------------


def write_scene(rng: Random, scene: Scene) -> str:
    """The scene as text, in one of many layouts; the clinical ones look like charts and notes."""
    if scene.theme is None:
        shapes = [f"{colour} {form}" for colour, form in scene.entries]
        general = ("Shapes: {list}.", "There is a {list}.", "The picture shows a {list}.", "{lines}")
        clinical = ("Tray: {list}.", "On the tray: {list}.", "Dispensed: {list}.", "{lines}")
        text = rng.choice(general if scene.domain == "general" else clinical)
        return text.format(
            list=rng.choice((", ", "; ", ", a ")).join(shapes), lines="\n".join(f"- {s}" for s in shapes)
        )
    theme = scene.theme
    styles: tuple[tuple[str, str, str], ...]
    if scene.domain == "general":
        styles = (
            (f"{theme.title}:\n", "{n}: {v}", "\n"),
            (f"{theme.entity} | {theme.value}\n", "{n} | {v}", "\n"),
            ("", "{n} has {v}", ", "),
            (f"{theme.title}: ", "{n} {v}", "; "),
            ("", f"The {theme.value} of {{n}} is {{v}}.", " "),
            ("", "- {n} = {v}", "\n"),
        )
    else:
        styles = (
            (f"{theme.title} chart\n", "{n}\t{v}", "\n"),
            (f"Note: {theme.value} by {theme.entity}. ", "{n} at {v}", "; "),
            ("", f"{{n}}, {theme.value} {{v}}.", " "),
            (f"{theme.title} - ", "{n}: {v}", ", "),
            ("", "* {n} {v}", "\n"),
        )
    head, row, joint = rng.choice(styles)
    body = joint.join(row.format(n=name, v=value) for name, value in scene.entries)
    return head + body + ("." if joint in (", ", "; ") else "")
