"""The pictures that somebody else drew: the right split, even answers, pictures that fit their questions."""

from __future__ import annotations

from collections import Counter

import pytest

from xreasoner.benchmarks.easyvqa import easy_vqa, easy_vqa_train
from xreasoner.errors import UserError


def test_items_are_even_across_answers_and_follow_the_seed() -> None:
    problems = easy_vqa(130, seed=4)
    assert Counter(Counter(p.gold for p in problems).values()) == {10: 13}
    assert [p.id for p in problems] == [p.id for p in easy_vqa(130, seed=4)]
    assert {p.id for p in problems} != {p.id for p in easy_vqa(130, seed=5)}
    assert len({p.id for p in problems}) == 130
    for p in problems:
        assert p.answer_type == ("yesno" if p.gold in ("yes", "no") else "text")
        assert (p.domain, p.modality, p.source) == ("general", "image", "easy-vqa")
        assert (p.images[0].mode, p.images[0].size) == ("RGB", (64, 64))


def test_the_picture_is_the_one_that_the_question_is_about() -> None:
    near = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "teal": (0, 1, 1)}
    checked = 0
    for p in easy_vqa(200, seed=1):
        if p.gold in near:
            histogram = p.images[0].getcolors(64 * 64)
            assert histogram is not None
            shape = max((count, colour) for count, colour in histogram if max(colour) - min(colour) > 60)[1]
            assert tuple(int(channel > (max(shape) + min(shape)) / 2) for channel in shape) == near[p.gold], p.id
            checked += 1
    assert checked > 60


def test_the_train_split_is_another() -> None:
    assert all(p.id.startswith("easy-vqa-train-") for p in easy_vqa_train(26, seed=0))
    tested = {p.images[0].tobytes() for p in easy_vqa(100, seed=0)}
    assert not tested & {p.images[0].tobytes() for p in easy_vqa_train(100, seed=0)}


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="9673"):
        easy_vqa(10_000, seed=0)
