"""Texts and pictures by others: reasoning-gym's families with the teacher's chains, easy-vqa for the base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

import easy_vqa
import reasoning_gym
from PIL import Image

from xreasoner.tiny.chains import CHECK_LEADS, PLAN_LEADS, with_slips
from xreasoner.tiny.drawing import CELL, Cell, Drawing

# Small numbers: the embedded model's arithmetic ends below 100.
TRAIN_FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "products": {"min_digits": 1, "max_digits": 1},
    "simple_equations": {
        "min_terms": 2,
        "max_terms": 2,
        "min_value": 1,
        "max_value": 9,
        "operators_weights": [0.5, 0.5, 0.0],
    },
}
HELD_OUT_FAMILIES: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-"],
        "allow_parentheses": False,
    },
    "gcd": {"max_value": 20},
    "lcm": {"max_value": 9},
}

_EQUATION = re.compile(r"(?:(\d+)\*)?(\w) ([+-]) (\d+) = (\d+)")


def gym_entries(family: str, n: int, seed: int) -> list[dict[str, Any]]:
    """n entries of a family whose numbers stay between 0 and 99 all the way."""
    settings = {**TRAIN_FAMILIES, **HELD_OUT_FAMILIES}[family]
    entries = reasoning_gym.create_dataset(family, size=4 * n + 20, seed=seed, **settings)
    return [entry for entry in entries if _small(entry)][:n]


def _small(entry: dict[str, Any]) -> bool:
    meta = entry["metadata"]
    if meta["source_dataset"] == "chain_sum":
        return all(0 <= value <= 99 for value in _partial_sums(meta["expression"])[0])
    return meta["source_dataset"] != "simple_equations" or _EQUATION.fullmatch(meta["equation"]) is not None


def _partial_sums(expression: str) -> tuple[list[int], list[str]]:
    """Running results of `4 + 13 - 2` from left to right, and the equations."""
    tokens = expression.split()
    running, results, steps = int(tokens[0]), [int(tokens[0])], []
    for sign, term in zip(tokens[1::2], tokens[2::2], strict=True):
        after = running + int(term) if sign == "+" else running - int(term)
        steps.append(f"{running} {sign} {term} = {after}.")
        running = after
        results.append(running)
    return results, steps


def gym_steps(entry: dict[str, Any]) -> tuple[str, str, list[str]]:
    """What the teacher restates, plans and does for an entry of a training family."""
    meta = entry["metadata"]
    if meta["source_dataset"] == "chain_sum":
        return meta["expression"], "left to right.", _partial_sums(meta["expression"])[1]
    if meta["source_dataset"] == "products":
        a, b = meta["expression"].split(" * ")
        return meta["expression"], "multiply.", [f"{a} x {b} = {entry['answer']}."]
    match = _EQUATION.fullmatch(meta["equation"])
    assert match is not None, meta["equation"]
    factor, name, sign, term, right = match.groups()
    undo = "-" if sign == "+" else "+"
    product = int(right) - int(term) if sign == "+" else int(right) + int(term)
    steps = [f"{right} {undo} {term} = {product}."]
    if factor is None:
        return meta["equation"], f"find {name}.", steps
    return meta["equation"], f"find {factor} x {name}.", [*steps, f"{factor} x {entry['answer']} = {product}."]


def gym_chain(rng: Random, entry: dict[str, Any], slip_rate: float = 0.06) -> str:
    """The chain for an entry of a training family."""
    facts, plan, steps = gym_steps(entry)
    lead = rng.choice(("Facts:", "Given:", "I see:"))
    parts = [f"{lead} {facts}.", f"{rng.choice(PLAN_LEADS)} {plan}", *with_slips(rng, tuple(steps), slip_rate)]
    if rng.random() < 0.5:
        parts.append(f"{rng.choice(CHECK_LEADS)} {steps[-1]}")
    return f"<think> {' '.join(parts)} </think> <answer>{entry['answer']}</answer>"


def fit_cells(image: Image.Image) -> Image.Image:
    """The picture resized to whole cells, as the image processor would."""
    width, height = (max(2, round(side / CELL)) * CELL for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


@lru_cache(maxsize=1)
def easy_train() -> list[tuple[Drawing, str, str]]:
    """easy-vqa's train split: (picture, question, answer); every cell of a picture tells its one shape."""
    questions, answers, ids = easy_vqa.get_train_questions()
    colour, form = {}, {}
    for answer, i in zip(answers, ids, strict=True):
        if answer in ("circle", "rectangle", "triangle"):
            form[i] = answer
        elif answer not in ("yes", "no"):
            colour[i] = answer
    drawings = {}
    for i, path in easy_vqa.get_train_image_paths().items():
        if i in colour and i in form:
            with Image.open(path) as image:
                picture = fit_cells(image)
            rows, columns = picture.height // CELL, picture.width // CELL
            cells = {(r, c): Cell(colour[i], form[i]) for r in range(rows) for c in range(columns)}
            drawings[i] = Drawing(picture, cells)
    return [(drawings[i], q, a) for q, a, i in zip(questions, answers, ids, strict=True) if i in drawings]


def gym_direct(n: int, seed: int) -> Sequence[tuple[str, str]]:
    """(question, answer) of the training families, for the base, which answers them at once."""
    return [(entry["question"], entry["answer"]) for family in TRAIN_FAMILIES for entry in gym_entries(family, n, seed)]
