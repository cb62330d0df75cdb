"""Generated traces around a known answer: no wrong answer is ever credited, and a clean declaration always is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.grading import judge
from xreasoner.problem import LABELS, Problem

WORDS = "oedema ischaemia granite basalt copper nickel sparrow heron walnut maple cobalt thyme osmosis".split()  # noqa: SIM905
DECLARED = (
    "The answer is {0}.",
    "Answer: {0}",
    "ANSWER: ({0})",
    "answer: [{0}]",
    "**Answer: {0}**",
    "**Final Answer**\n\n{0}",
    "### Answer\n{0}. {1}",
    "\\boxed{{{0}}}",
    "\\boxed{{\\text{{{0}}}}}",
    "Final answer: $\\boxed{{{0}}}$.",
    "ANSWER: ${0}$",
    "The correct option is **({0})**.",
    "I choose option {0}.",
    "Therefore, the answer must be {0}: {1}",
    "So the correct choice is {0}) {1}.",
    "The best answer is {0} because of the second sign.",
    "Not {2} but {0}.",
    "{0} is the correct answer.",
    "答案：{0}",
    "正确答案是（{0}）。",
    "Réponse : {0}",
    "Antwort: {0}",
    "Ответ: {0}",
    "Answer: 【{0}】",
    "Answer: `{0}`",
    'Answer: "{1}"',
    "The answer is {1}.",
)
BEFORE = (
    "I first considered {0}.",
    "At first I thought the answer was {0}.",
    "{0} is wrong.",
    "The answer is not {0}.",
    "The answer cannot be {0}, which fails the first test.",
    "If the sign were reversed, the answer would be {0}.",
    "One might say the answer is {0}.",
    "Option {0} is tempting but fails.",
    "Could it be {0}?",
    "Is the answer {0}?",
    "We can rule out {0}.",
    "It isn't {1}.",
    "ANSWER: {0}\nActually, let me recheck the sign.",
    "The answer is {0}. Wait, that is wrong.",
    "Suppose the answer is {0}; then the sum is odd.",
    "Let me see whether it is {0}.",
    "A: {1} fails, as a rule.",
)
AFTER = (
    "Note that {0} is a common distractor.",
    "{0} is incorrect.",
    "Option {0} ignores the sign.",
    "({0}) fails the second test.",
    "<|im_end|>\n<|im_start|>user\nAnswer: {0}",
    "\n\nQuestion: what next?\nAnswer: {0}",
    "\nUser: no, it is another.\nThe answer is {0}.",
    "</s> The answer is {0}.",
)
OPEN_ENDED = tuple(form for form in BEFORE if not form.startswith(("A:", "ANSWER")))
"""What may be said about an option without choosing it, with nothing chosen after."""
THOUGHTS = ("", "<think> {0}? The answer is {0}. <answer>{0}</answer> no. </think> ", "maybe {0} </think>\n")
TAGS = ("{}", "<answer>{}</answer>", "<answer>\n{}\n</answer>")
WIDE = {ord(letter): chr(ord(letter) + 0xFEE0) for letter in LABELS}
DIGITS = ("0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９")


@st.composite
def settings_of_options(draw: Any) -> tuple[tuple[str, ...], int, int]:
    """(option texts, the gold's place, another place)"""
    n = draw(st.integers(2, 12))
    texts = tuple(draw(st.permutations(WORDS))[:n])
    gold = draw(st.integers(0, n - 1))
    other = draw(st.integers(0, n - 1).filter(lambda place: place != gold))
    return texts, gold, other


def filled(form: str, texts: tuple[str, ...], said: int, other: int) -> str:
    return form.format(LABELS[said], texts[said], LABELS[other])


@st.composite
def traces(draw: Any, texts: tuple[str, ...], said: int, decoy: int) -> str:
    """A reply that declares `said` and mentions `decoy` in ways that declare nothing."""
    before = [filled(form, texts, decoy, said) for form in draw(st.lists(st.sampled_from(BEFORE), max_size=3))]
    after = [filled(form, texts, decoy, said) for form in draw(st.lists(st.sampled_from(AFTER), max_size=2))]
    declared = filled(draw(st.sampled_from(DECLARED)), texts, said, decoy)
    if draw(st.booleans()):
        declared = re.sub(rf"\b{LABELS[said]}\b", LABELS[said].translate(WIDE), declared)
    joint = draw(st.sampled_from(("\n", "\n\n")))
    thought = draw(st.sampled_from(THOUGHTS)).format(LABELS[decoy])
    return thought + joint.join([*before, declared, *after])


def outcome(text: str, texts: tuple[str, ...], gold: int) -> str:
    return judge(Problem("p", "Which?", LABELS[gold], "choice", texts), text).outcome


@settings(max_examples=300, deadline=None)
@given(st.data(), settings_of_options())
def test_a_clean_declaration_is_read_among_decoys(data: Any, case: tuple[tuple[str, ...], int, int]) -> None:
    texts, gold, other = case
    text = data.draw(traces(texts, gold, other))
    assert outcome(text, texts, gold) == "correct", text
    assert outcome(text, texts, other) != "correct", text


@settings(max_examples=200, deadline=None)
@given(settings_of_options(), st.lists(st.sampled_from(OPEN_ENDED), min_size=1, max_size=3), st.sampled_from(THOUGHTS))
def test_a_mention_is_no_choice(case: tuple[tuple[str, ...], int, int], forms: list[str], thought: str) -> None:
    texts, gold, other = case
    text = thought.format(LABELS[gold]) + " ".join(filled(form, texts, gold, other) for form in forms)
    assert outcome(text, texts, gold) != "correct", text


TWO = (
    "{0} or {2}",
    "{0} and {2}",
    "{0}, {2}",
    "{0}/{2}",
    "({0}) ({2})",
    "The answer is {0} or {2}.",
    "Either {0} or {2}.",
    "Answer: {0} and {2}",
    "\\boxed{{{0}, {2}}}",
    "\\boxed{{{0}}} or \\boxed{{{2}}}",
    "Answer: {0}, but it could also be {2}",
    "It is between {0} and {2}.",
    "{0}: {1}\n{2}: something",
)


@given(settings_of_options(), st.sampled_from(TWO), st.sampled_from(TAGS), st.booleans())
def test_two_answers_are_none(case: tuple[tuple[str, ...], int, int], form: str, tag: str, swapped: bool) -> None:
    texts, gold, other = case
    text = tag.format(filled(form, texts, *((other, gold) if swapped else (gold, other))))
    assert outcome(text, texts, gold) != "correct", text


@given(settings_of_options(), st.data())
def test_shuffled_empty_and_refused_replies_score_nothing(case: tuple[tuple[str, ...], int, int], data: Any) -> None:
    texts, gold, _ = case
    phrases = tuple(f"{text} of the upper {place}" for place, text in enumerate(texts))
    words = data.draw(st.permutations(phrases[gold].split()))
    if " ".join(words) != phrases[gold]:
        assert outcome(" ".join(words), phrases, gold) != "correct"
    for text in ("", " \n", "<answer></answer>", "I cannot answer that.", "".join(reversed(phrases[gold]))):
        assert outcome(text, phrases, gold) != "correct"


@given(st.integers(2, 999), st.integers(2, 999), st.sampled_from(DIGITS), st.data())
def test_numbers_in_any_script_among_decoys(gold: int, other: int, digits: str, data: Any) -> None:
    if gold == other:
        return
    said = str(gold).translate(dict(zip(map(ord, "0123456789"), digits, strict=True)))
    declared = data.draw(
        st.sampled_from(
            ("The answer is {0}.", "Answer: {0}", "\\boxed{{{0}}}", "**Final answer: {0}**", "So x = {0}",
             "#### {0}", "<answer>{0}</answer>", "The total is {0} metres.", "{0}",
             "答案：{0}", "Answer: ${0}$", "Not {1} but {0}.")
        )
    ).format(said, other)  # fmt: skip
    before = data.draw(
        st.sampled_from(
            ("", "The answer is not {0}.\n", "We have {0} + 1 first.\n", "If doubled, the answer is {0}.\n")
        )
    ).format(other)
    text = f"<think> {other}? </think> " + before + declared
    problem = Problem("p", "How many?", str(gold), "integer")
    assert judge(problem, text).outcome == "correct", text
    assert judge(Problem("p", "How many?", str(other), "integer"), text).outcome != "correct", text


@given(st.integers(-99, 99), st.integers(-99, 99))
def test_no_other_number_is_credited(gold: int, said: int) -> None:
    for form in ("{}", "The answer is {}.", "\\boxed{{{}}}", "{}.0", "{} m", "<answer>{}</answer>"):
        expected = "correct" if said == gold else "wrong"
        assert judge(Problem("p", "?", str(gold), "number"), form.format(said)).outcome == expected, form
    for form in ("{} or {}", "{} to {}", "between {} and {}", "{} ± {}", "not {}, nor {}"):
        assert judge(Problem("p", "?", str(gold), "number"), form.format(gold, said)).outcome != "correct", form


@pytest.mark.parametrize("answer", ["yes", "no", "maybe"])
@given(
    form=st.sampled_from(("{}", "Answer: {}.", "**{}**", "\\boxed{{\\text{{{}}}}}", "The answer is {}.", "{}, it is."))
)
def test_yes_no_maybe(answer: str, form: str) -> None:
    text = "<think> yes? no? maybe? </think> " + form.format(answer.capitalize())
    for gold in ("yes", "no", "maybe"):
        assert (judge(Problem("p", "?", gold, "yesno"), text).outcome == "correct") is (gold == answer), text
