"""Option probabilities: where they are read, how an option may be written, and that they are probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest

from xreasoner.completion import Completion, Exit
from xreasoner.decisions import decide, reply_so_far, ways
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import UserError
from xreasoner.models.loading import Loaded, load
from xreasoner.trace import split

EXIT = " </think> <answer>"


def _completion(text: str, exit: Exit = "natural") -> Completion:
    trace = split(text)
    return Completion(text, (), (), (), trace.thought, trace.answer, exit, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("<think> a </think> <answer>B: 14</answer>", "<think> a </think> <answer>"),
        ("a </think>\n<answer> B", "a </think>\n<answer>"),
        ("<think> a </think> B", "<think> a </think> <answer>"),
        ("<think> a <answer>B</answer> </think> B", "<think> a <answer>B</answer> </think> <answer>"),
        ("<think> a </think> <answer>A</answer> no <answer>B", "<think> a </think> <answer>A</answer> no <answer>"),
        ("<think> a and on", "<think> a and on </think> <answer>"),
        ("<think> a <answer> and on", "<think> a <answer> and on </think> <answer>"),
        ("<answer>B</answer>", "<answer>"),
        ("B", "<answer>"),
        ("", "<answer>"),
    ],
)
def test_the_reply_is_cut_where_the_answer_begins(text: str, given: str) -> None:
    assert reply_so_far(_completion(text), EXIT) == given


def test_an_exit_text_without_the_tag_gets_it() -> None:
    assert reply_so_far(_completion("<think> a"), " Enough.</think>") == "<think> a Enough.</think> <answer>"


@pytest.mark.parametrize("options", [["Yes", "No"], ["1", "14"], ["B", "C", "A"], ["same", "same"], ["19", "190", "9"]])
def test_no_two_ways_come_about_together(options: Sequence[str]) -> None:
    groups = ways(options)
    written = [(k, way) for k, group in enumerate(groups) for way in group]
    assert len({way for _, way in written}) == len(written)
    for (k, one), (j, other) in combinations(written, 2):
        assert k == j or not (one.startswith(other) or other.startswith(one))
    assert all(
        any(way == f"{label}: {text}" for way in group)
        for label, text, group in zip("ABC", options, groups, strict=False)
    )


class Told:
    """An engine that scores by a table; what it does not list is impossible."""

    name = "told"

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    def score(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        self.given = given
        return [math.log(self.table[text]) if text in self.table else -math.inf for text in continuations]


def test_all_ways_of_writing_an_option_count() -> None:
    engine = Told({" A</answer>": 0.1, "A: Yes": 0.2, " Yes</answer>": 0.1, " B: No": 0.1})
    completion = _completion("<think> a </think> <answer>A", "forced")
    decision = decide(engine, Request([]), completion, ["Yes", "No"])  # type: ignore[arg-type]
    assert decision.probabilities == pytest.approx((0.8, 0.2))
    assert decision.mass == pytest.approx(0.5)
    assert decision.exit == "forced"
    assert engine.given == "<think> a </think> <answer>"
    with pytest.raises(UserError, match="none of the options"):
        decide(Told({}), Request([]), completion, ["Yes", "No"])  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [["one"], [], ["a", " "], ["x"] * 27])
def test_options_that_cannot_be_told_apart_are_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match="expected 2 to 26"):
        decide(Told({}), Request([]), _completion(""), options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny")


def test_the_mass_is_a_probability_and_follows_the_thought(tiny: Loaded) -> None:
    """After a thought that says who it is, the embedded reasoner is sure of it, whichever it is."""
    engine = TorchEngine(tiny)
    question = "Ana has 14, Ben has 9. Who has the higher score?\nA: Ana\nB: Ben\nThink, then answer."
    request = Request([{"role": "user", "content": question}], sampling=Sampling())
    thought = "<think> Given: Ana 14, Ben 9. So: highest. Ana 14 high 14. Ben 9 high 14. {}. </think> <answer>"
    first, second = (
        decide(engine, request, _completion(thought.format(who)), ["Ana", "Ben"]) for who in ("Ana", "Ben")
    )
    for decision in (first, second):
        assert sum(decision.probabilities) == pytest.approx(1)
        assert 0 < decision.mass <= 1
    assert first.probabilities[0] > second.probabilities[0]
    turned = decide(engine, request, _completion(thought.format("Ana")), ["Ben", "Ana"])
    assert turned.probabilities != first.probabilities  # the labels differ, and the question names them
