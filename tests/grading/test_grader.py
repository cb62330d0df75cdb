"""The grader against the field's hard cases, against its own conventions, and against any text at all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.grading import judge, reward
from xreasoner.grading.rescoring import problem_of
from xreasoner.problem import LABELS, AnswerType, Problem
from xreasoner.verdict import Verdict

HERE = Path(__file__).parent
CASES = [
    json.loads(line)
    for name in ("extraction_examples.jsonl", "hard_cases.jsonl")
    for line in (HERE / name).read_text().splitlines()
]
NUMBERS = ("15", "14", "9", "41")


def ask(text: str, gold: str, answer_type: AnswerType, options: tuple[str, ...] = (), **more: Any) -> str:
    return judge(Problem("p", more.pop("question", "Which?"), gold, answer_type, options), text, **more).outcome


def mc(text: str, gold: str = "B", options: tuple[str, ...] = NUMBERS, **more: Any) -> str:
    return ask(text, gold, "choice", options, **more)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_hard_cases(case: dict[str, Any]) -> None:
    problem, response = problem_of(case)
    verdict = judge(problem, response)
    assert verdict.correct is case["expected_correct"], (case["why"], verdict)


def test_there_are_enough_hard_cases() -> None:
    assert len([case for case in CASES if case["id"].startswith("h")]) >= 400
    assert len({case["id"] for case in CASES}) == len(CASES)
    assert 0.3 < sum(case["expected_correct"] for case in CASES) / len(CASES) < 0.7


SHORT = ("B: 14", "B", "(B)", "14", "b", "B.", "B) 14", " B : 14. ", "**B**", "\\boxed{B}", "$14$", "B - 14", "[B]")
LONGER = ("Option B", "The answer is B.", "the answer is 14", "B because 7 + 7 = 14", "Not A. The answer is B")


@pytest.mark.parametrize("answer", SHORT + LONGER)
def test_ways_to_choose(answer: str) -> None:
    for reply in (f"<answer>{answer}</answer>", f"<think> A? 15? no. </think> <answer>{answer}</answer>"):
        assert mc(reply) == "correct", reply
        assert mc(reply, gold="A") != "correct"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("A: 15", "wrong"),
        ("A: 14", "wrong"),  # the label decides
        ("A, B", "conflict"),
        ("A or B", "conflict"),
        ("14 or 15", "conflict"),
        ("B: 14 or A: 15", "conflict"),
        ("B: 14. Wait, A: 15", "wrong"),  # corrected
        ("B. 14 fits.\nA. 15 fits too.", "conflict"),
        ("17", "unparsed"),
        ("E", "unparsed"),
        ("", "unparsed"),
        ("not B", "unparsed"),
        ("The answer is not B.", "unparsed"),
        ("If the answer is B, then the sum is even.", "unparsed"),
        ("-14", "unparsed"),
        ("14.5", "unparsed"),
        ("B is wrong", "unparsed"),
        ("I cannot answer this question.", "refused"),
    ],
)
def test_what_earns_nothing(answer: str, outcome: str) -> None:
    assert mc(f"<think> so. </think> <answer>{answer}</answer>") == outcome


def test_the_label_decides_and_a_note_says_so() -> None:
    for answer in ("B: 15", "B: 17", "(B) 15"):  # B is 14, A is 15, and nothing is 17
        verdict = judge(Problem("p", "Which?", "B", "choice", NUMBERS), f"<answer>{answer}</answer>")
        assert verdict.correct
        assert verdict.note.startswith("conflict: ")
    assert judge(Problem("p", "Which?", "B", "choice", NUMBERS), "<answer>B: 14</answer>").note == ""


def test_a_trace_that_ends_early_is_truncated() -> None:
    assert mc("<think> The answer is B: 14") == "truncated"
    assert mc("<think> The answer is B. <answer>B") == "truncated"
    assert mc("<think> so. </think> <answer>B: 1", exit="truncated") == "truncated"
    assert mc("<think> so. </think> <answer>B: 14</answer> and", exit="truncated") == "correct"
    assert mc("<think> so. </think> B", exit="truncated") == "truncated"
    assert mc("<think> so. </think> <answer>B: 14</answer>", exit="forced") == "correct"
    assert mc("", exit="natural") == "unparsed"
    assert mc("   ") == "unparsed"
    assert mc("<think> never closed <answer>B: 14</answer>") == "correct"  # a closed answer ends the text


def test_what_follows_a_leaked_turn_is_not_the_model_s() -> None:
    assert mc("<answer>A</answer>") == "wrong"
    assert mc("The answer is A.\nUser: And now?\nThe answer is B.") == "wrong"
    assert mc("<answer>A</answer>\nUser: And now?\n<think> x </think> <answer>B</answer>") == "wrong"
    assert mc("<think> x\nQuestion: which? </think> <answer>B</answer>") == "correct"
    assert mc("x\nQuestion: which? </think> <answer>B</answer>") == "correct"  # the prompt opened the thought
    assert mc("The answer is A.<|im_end|>\nThe answer is B.") == "wrong"


def test_options_that_carry_letters_words_or_the_same_text() -> None:
    assert mc("C", gold="B", options=("A:one", "B:two", "C:three")) == "wrong"
    assert mc("B: two", gold="B", options=("A:one", "B:two", "C:three")) == "correct"
    assert mc("A: goat", gold="A", options=("goat", "A pig", "No goat")) == "correct"
    assert mc("no goat", gold="C", options=("goat", "A pig", "No goat")) == "correct"
    assert mc("A pig", gold="B", options=("goat", "A pig", "No goat")) == "correct"
    assert mc("same", gold="A", options=("same", "same", "other")) == "conflict"
    assert mc("A: same", gold="A", options=("same", "same", "other")) == "correct"


@given(st.permutations(NUMBERS), st.integers(0, 3), st.integers(0, 3), st.sampled_from(["{}", "{}: {}", "({}) {}"]))
def test_only_the_gold_label_is_right(options: list[str], gold: int, said: int, form: str) -> None:
    reply = f"<think> x </think> <answer>{form.format(LABELS[said], options[said])}</answer>"
    assert mc(reply, LABELS[gold], tuple(options)) == ("correct" if said == gold else "wrong")


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("14", "14", "correct"),
        ("14.", "14", "correct"),
        ("+14", "14", "correct"),
        ("x = 14", "14", "correct"),
        ("The answer is 14.", "14", "correct"),
        ("The sum is 14.", "14", "correct"),
        ("\\boxed{14}", "14", "correct"),
        ("1,234", "1234", "correct"),
        ("-3", "-3", "correct"),
        ("−3", "-3", "correct"),
        ("14 pears", "14", "correct"),  # the question asks for pears
        ("14 dozen", "14", "wrong"),
        ("14 dozen", "168", "correct"),
        ("14%", "14", "wrong"),
        ("14.7", "14", "wrong"),
        ("-14", "14", "wrong"),
        ("140", "14", "wrong"),
        ("4 or 5", "5", "conflict"),
        ("not 14", "14", "unparsed"),
        ("fourteen", "14", "correct"),
        ("fifteen", "14", "wrong"),
        ("one hundred and five", "105", "correct"),
        ("one of them", "1", "unparsed"),
        ("five six", "5", "unparsed"),
        ("9" * 5000, "14", "unparsed"),
        ("1e999999999", "14", "unparsed"),
        ("14e914", "14", "wrong"),
        ("1/0", "14", "unparsed"),
    ],
)
def test_integers(answer: str, gold: str, outcome: str) -> None:
    assert ask(f"<think> 14 </think> <answer>{answer}</answer>", gold, "integer", question="How many pears?") == outcome


def test_numbers_are_exact_unless_the_data_set_says_how_to_round() -> None:
    assert ask("0.75", "3/4", "number") == "correct"
    assert ask("\\frac{3}{4}", "0.75", "number") == "correct"
    assert ask("6.02 x 10^23", "6.02e23", "number") == "correct"
    assert ask("0.3333", "1/3", "number") == "wrong"
    assert judge(Problem("p", "How long?", "2.4", "number", meta={"precision": 1}), "2.36").correct
    assert judge(Problem("p", "How long?", "2.4", "number", meta={"precision": 1}), "2.46").outcome == "wrong"
    assert ask("14", "fourteen", "integer") == "error"


def test_yes_and_no() -> None:
    for text in ("yes", "Yes.", "<answer>Yes, there is.</answer>", "Answer: yes", "True"):
        assert ask(text, "yes", "yesno") == "correct"
        assert ask(text, "no", "yesno") == "wrong"
    assert ask("No, it is blue.", "no", "yesno") == "correct"
    assert ask("No effusion is seen.", "no", "yesno") == "unparsed"
    assert ask("yes or no", "yes", "yesno") == "conflict"
    assert ask("nobody knows", "no", "yesno") == "unparsed"


def test_free_text_and_transcriptions() -> None:
    gold = "Ana 14, Ben 9"
    for text in ("<answer>ana 14,  Ben 9.</answer>", "Facts: Ana 14, Ben 9.", "I see: Ana 14, Ben 9", "Ana 14, Ben 9"):
        assert ask(text, gold, "text") == "correct", text
    for text in ("Ana 14, Ben 8", "Ana 14", "Ben 9, Ana 14", "Facts: Ana 14, Ben 9. So: 23.", "not: Ana 14, Ben 9"):
        assert ask(text, gold, "text") == "wrong", text
    assert ask("<answer>The answer is red.</answer>", "red", "text") == "correct"
    assert ask("I'm sorry, I cannot say.", "red", "text") == "refused"


@pytest.mark.parametrize("family", ["chain_sum", "simple_equations", "gcd"])
def test_gym_is_judged_by_its_own_scorer_on_the_answer_alone(family: str) -> None:
    entry = reasoning_gym.create_dataset(family, size=1, seed=5)[0]
    gold = str(entry["answer"])
    problem = Problem("g", entry["question"], gold, "gym", meta={"name": family, "entry": entry})
    assert judge(problem, f"<think> {int(gold) + 1}? </think> <answer>{gold}</answer>").correct
    assert judge(problem, f"<answer>{gold}</answer>").correct
    assert judge(problem, f"<think> {gold} </think> <answer>{int(gold) + 1}</answer>").outcome == "wrong"
    assert judge(problem, f"<think> {gold} </think>").outcome == "unparsed"


def test_reward_is_one_or_nothing() -> None:
    outcomes = ("correct", "wrong", "truncated", "unparsed", "refused", "conflict", "error")
    assert [reward(Verdict(outcome)) for outcome in outcomes] == [1, 0, 0, 0, 0, 0, 0]


TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "\\boxed{", "}", "**", "$", "^{")
WORDS = (
    "B",
    "A: ",
    "14",
    "10",
    "0",
    "e9",
    "9" * 40,
    " or ",
    "not ",
    "yes",
    "answer is ",
    "-",
    "/",
    "(",
    ")",
    ".",
    "\n",
)
pieces = st.sampled_from(TAGS + WORDS)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join), st.sampled_from(["natural", "forced", "truncated", "aborted"]))
def test_any_text_gets_a_verdict(text: str, exit: str) -> None:
    for answer_type, gold in (("choice", "B"), ("integer", "14"), ("number", "1.5"), ("yesno", "yes"), ("text", "no")):
        options = NUMBERS if answer_type == "choice" else ()
        verdict = judge(Problem("p", "Which?", gold, answer_type, options), text, exit)  # type: ignore[arg-type]
        assert verdict.outcome != "error"


def test_two_thousand_verdicts_a_second() -> None:
    problem = Problem("p", "Which?", "B", "choice", NUMBERS)
    reply = f"<think> {'7 + 7 = 14. ' * 30} </think> <answer>B: 14</answer>"
    judge(problem, reply)
    start = time.process_time()
    for _ in range(1000):
        judge(problem, reply)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "piece", ["= ", "\n", "(", "so ", "A or ", "\\boxed{", "I think ", "the answer is not A. ", "1,", "{"]
)
def test_a_reply_that_goes_round_in_circles_costs_little(piece: str) -> None:
    start = time.process_time()
    for answer_type, gold in (("choice", "B"), ("number", "5"), ("quantity", "5 m"), ("latex", "x"), ("text", "oak")):
        options = NUMBERS if answer_type == "choice" else ()
        reply = (piece * 20_000)[:20_000]
        assert judge(Problem("p", "?", gold, answer_type, options), reply).outcome != "correct"  # type: ignore[arg-type]
    assert time.process_time() - start < 10
