"""reasoning-gym as a source: any family, its own scorer as the reward, mixtures by weight, curricula by level."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from xreasoner.data.procedural import procedural, shares
from xreasoner.errors import DataError, RecipeError
from xreasoner.grading import judge
from xreasoner.grading.rewards import reward
from xreasoner.training.rollouts import draw

MIXTURE = {"leg_counting": {"weight": 3}, "gcd": {}, "letter_counting": {"config": {"min_words": 3, "max_words": 3}}}


def test_a_mixture_by_weight_is_exact_and_even() -> None:
    problems = procedural({"families": MIXTURE}).problems(50, seed=1)
    assert Counter(p.family for p in problems) == {"leg_counting": 30, "gcd": 10, "letter_counting": 10}
    assert 12 <= Counter(p.family for p in problems[:25])["leg_counting"] <= 18
    assert [p.id for p in procedural({"families": MIXTURE}).problems(50, 1)] == [p.id for p in problems]
    assert len({p.id for p in problems}) == 50
    assert {p.question for p in problems} != {p.question for p in procedural({"families": MIXTURE}).problems(50, 2)}
    assert sum(shares([1, 1, 1], 100)) == 100


def test_the_familys_own_scorer_is_the_reward() -> None:
    for problem in procedural({"families": ["simple_equations", "spell_backward", "number_sorting"]}).problems(6, 0):
        assert reward(judge(problem, f"<think>so</think> <answer>{problem.gold}</answer>")) == 1
        assert reward(judge(problem, "<think>so</think> <answer>nothing at all</answer>")) == 0


def test_the_order_of_a_curriculum_is_kept_where_the_stage_says_so() -> None:
    problems = procedural({"families": {"chain_sum": {"levels": [0, 3]}}}).problems(10, 0)
    assert draw(problems, 8, 4, seed=0, shuffle=False) == [*problems[8:], *problems[:2]]
    assert draw(problems, 0, 10, seed=0) != problems


def test_a_curriculum_grows_harder() -> None:
    problems = procedural({"families": {"chain_sum": {"levels": [0, 3]}}}).problems(40, 0)
    sizes = [len(problem.question) for problem in problems]
    assert sum(sizes[:10]) < sum(sizes[10:20]) < sum(sizes[30:])
    easy = procedural({"families": {"chain_sum": {"level": 0}}}).problems(10, 0)
    assert max(len(problem.question) for problem in easy) <= max(sizes[:10]) + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a list of names, or a mapping"),
        ({"families": ["chain_sums"]}, "families.chain_sums: unknown family; did you mean 'chain_sum'"),
        ({"families": {"gcd": {"wieght": 2}}}, "families.gcd.wieght: unknown field; did you mean 'weight'"),
        ({"families": {"gcd": {"weight": 0}}}, "families.gcd.weight: found 0"),
        ({"families": {"gcd": 2}}, "families.gcd: found 2, expected a mapping of weight"),
        ({"families": {"gcd": {"config": "hard"}}}, "families.gcd.config: found 'hard', expected a mapping"),
        ({"families": {"gcd": {"levels": [2, 1]}}}, r"families.gcd.levels: found \[2, 1\]"),
        ({"families": {"gcd": {"config": {"no_such": 1}}}}, "families.gcd: refused its settings.*no_such"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        procedural(options).problems(4, 0)


def test_answers_are_learnt_directly_and_chains_are_distilled() -> None:
    source = procedural({"families": ["gcd"]})
    (example,) = source.examples(1, 0, "direct")
    assert example.response == f"<answer>{example.problem.gold}</answer>"
    with pytest.raises(DataError, match="data distill"):
        source.examples(1, 0, "chain")
