"""The prompts word for word: what the card's two snippets and the paper's appendix C put before the model."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from xreasoner.models.loading import load
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, chat_messages, render

CARD = (
    "You should provide your thoughts within <think> </think> tags, then answer with just one of the options below "
    "within <answer> </answer> tags (For example, if the question is \n'Is the earth flat?\n A: Yes \nB: No', you "
    "should answer with <think>...</think> <answer>B: No</answer>). \nHere is the question:"
)
PICTURE = Image.new("RGB", (56, 56), "red")


def _asked(question: str, images: tuple[Image.Image, ...] = ()) -> Problem:
    return Problem("x", question, "A", "choice", ("Yes", "No"), images)


def test_the_cards_snippet_for_transformers() -> None:
    (message,) = chat_messages(_asked("Is there a dog in the image?", (PICTURE,)), "card-mc")
    assert message["content"] == [
        {"type": "text", "text": CARD},
        {"type": "image"},
        {"type": "text", "text": "Is there a dog in the image? A. Yes B. No"},
    ]


def test_the_cards_snippet_for_vllm() -> None:
    (message,) = chat_messages(_asked("Is there a dog in the picture?", (PICTURE,)), "card-mc-vllm")
    assert message["content"] == [
        {"type": "image"},
        {"type": "text", "text": CARD + " Is there a dog in the picture? A: Yes B: No"},
    ]


PAPER = {
    "paper-train": (
        "You will solve a problem/request. You should provide your thoughts within <think> </think> tags "
        "before providing the answer.\nWrite your final answer within <answer> </answer> tags. Here is the "
        "question: 1 + 1?"
    ),
    "paper-mc": (
        "You should provide your thoughts within <think> </think> tags, then answer with just one of the "
        "options below within <answer> </answer> tags (For example, if the question is \n'Is the earth "
        "flat?\n A: Yes \nB: No', you should answer with <think>...</think> <answer>B: No </answer>). Here "
        "is the question: 1 + 1? Options:\n\nA: Yes B: No"
    ),
    "paper-math": (
        "A conversation between User and Assistant. The user asks a question, and you as the assistant "
        "solves it. You should first think about the reasoning process in the mind and then provide the "
        "user with the answer. The reasoning process and answer are enclosed within <think> </think> and "
        "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think><answer> the "
        "final answer as the option letter or the number depending on the question </answer> (For example, "
        "if the question is \n'Is the earth flat?\n A: Yes \nB: No', you should answer with <think> your "
        "reasoning </think> <answer>B: No</answer>. If the question is 'What is 1+1?', you should answer "
        "with <think> your reasoning </think> <answer>2 </answer>).\n\nHere is the question: 1 + 1? "
        "Options:\n\nA: Yes B: No"
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_three(name: str) -> None:
    problem = _asked("1 + 1?") if name != "paper-train" else Problem("x", "1 + 1?", "2", "integer")
    assert render(problem, name) == PAPER[name]


def test_one_system_prompt_as_in_qwens_template() -> None:
    tokenizer = load("tiny").tokenizer
    text = tokenizer.apply_chat_template(chat_messages(_asked("1 + 1?"), "card-mc"), tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + CARD[:20])
    own = [{"role": "system", "content": "Be brief."}, *chat_messages(_asked("1 + 1?"), "card-mc")]
    assert tokenizer.apply_chat_template(own, tokenize=False).count("<|im_start|>system") == 1


QUESTIONS = ["Q Options:\n\nA: x", " Options:\n\n", "Q  ", "{question}{options}", "<image> </think>", "{", "}"]


@pytest.mark.parametrize("prompt", PROMPTS)
@given(st.text(st.sampled_from(" Options:\n{}ABquestionptlies_d<image>/1"), min_size=1) | st.sampled_from(QUESTIONS))
def test_the_question_is_never_edited(prompt: str, question: str) -> None:
    assume(question.strip())
    for options in ((), ("x {options} ", "y")):
        text = render(Problem("x", question, "A", "choice", options), prompt)
        before, after = PROMPTS[prompt].split("{question}")
        assert text.startswith(before + question)
        rest = text.removeprefix(before + question)
        if options:
            assert "x {options} " in rest
        else:
            assert rest == ("" if prompt.startswith(("card", "paper")) else after.replace("{options_lines}", ""))
