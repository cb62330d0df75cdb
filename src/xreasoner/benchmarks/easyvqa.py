"""easy-vqa (Victor Zhou, PyPI `easy-vqa` 1.0): 64x64 pictures of one shape, and questions, drawn by somebody else."""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Literal

import easy_vqa as package
from PIL import Image

from xreasoner.errors import UserError
from xreasoner.problem import Problem

Split = Literal["train", "test"]
_YES_NO = ("yes", "no")
_SHAPES = ("circle", "rectangle", "triangle")


@lru_cache(maxsize=2)
def _questions(split: Split) -> tuple[list[str], list[str], list[int]]:
    """Questions, answers and picture numbers of a split."""
    found: tuple[list[str], list[str], list[int]] = (
        package.get_train_questions() if split == "train" else package.get_test_questions()
    )
    return found


@lru_cache(maxsize=2)
def _paths(split: Split) -> dict[int, str]:
    found: dict[int, str] = package.get_train_image_paths() if split == "train" else package.get_test_image_paths()
    return found


def _chosen(answers: list[str], n: int, rng: Random) -> list[int]:
    """n indices, evenly across the answers: in turns, each answer's questions in random order."""
    piles: dict[str, list[int]] = {answer: [] for answer in sorted(set(answers))}
    for index, answer in enumerate(answers):
        piles[answer].append(index)
    for pile in piles.values():
        rng.shuffle(pile)
    turns = list(piles.values())
    rng.shuffle(turns)
    longest = max(len(pile) for pile in turns)
    in_turns = [pile[i] for i in range(longest) for pile in turns if i < len(pile)]
    chosen = in_turns[:n]
    rng.shuffle(chosen)
    return chosen


def _problem(split: Split, index: int) -> Problem:
    questions, answers, pictures = _questions(split)
    with Image.open(_paths(split)[pictures[index]]) as file:
        picture = file.convert("RGB")
    answer = answers[index]
    return Problem(
        id=f"easy-vqa-{split}-{index}",
        question=questions[index],
        gold=answer,
        answer_type="yesno" if answer in _YES_NO else "text",
        images=(picture,),
        domain="general",
        modality="image",
        source="easy-vqa",
        family="yes or no" if answer in _YES_NO else "shape" if answer in _SHAPES else "colour",
    )


def _sample(split: Split, n: int, seed: int) -> list[Problem]:
    answers = _questions(split)[1]
    if not 1 <= n <= len(answers):
        raise UserError(f"easy-vqa: {n} questions asked of the {split} split; it has {len(answers)}")
    return [_problem(split, index) for index in _chosen(answers, n, Random(f"easy-vqa/{split}/{seed}"))]


def easy_vqa(n: int, seed: int) -> list[Problem]:
    """n questions of the test split, evenly across the 13 answers, drawn by seed.

    Raises `UserError` where n is less than 1 or more than the split has (9,673).
    """
    return _sample("test", n, seed)


def easy_vqa_train(n: int, seed: int) -> list[Problem]:
    """The same of the train split (38,575 questions), which serves the base's pretraining and nothing else."""
    return _sample("train", n, seed)
