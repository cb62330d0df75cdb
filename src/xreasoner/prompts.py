"""The one prompt grammar: how a `Problem` becomes chat messages.

The card's and the paper's prompts stand word for word (model card; paper, appendix C). The two brief ones are
this project's own: a model of a few million parameters reads a prompt of a dozen tokens, not one of sixty.
"""

from __future__ import annotations

from xreasoner.engines.base import Message
from xreasoner.problem import LABELS, Problem

_CARD_MC = (
    "You should provide your thoughts within <think> </think> tags, then answer with just one of the options "
    "below within <answer> </answer> tags (For example, if the question is \n'Is the earth flat?\n A: Yes \nB: No', "
    "you should answer with <think>...</think> <answer>B: No</answer>). \nHere is the question:"
)

PROMPTS: dict[str, str] = {
    # the card's Transformers snippet (the picture stands between this text and the question there) …
    "card-mc": _CARD_MC + "{question} {options_dotted}",
    # … and its vLLM snippet, which differs in a space and in the options' punctuation.
    "card-mc-vllm": _CARD_MC + " {question} {options}",
    "paper-train": (
        "You will solve a problem/request. You should provide your thoughts within <think> </think> tags before "
        "providing the answer.\nWrite your final answer within <answer> </answer> tags. Here is the question: "
        "{question}{options_lines}"
    ),
    "paper-mc": (
        "You should provide your thoughts within <think> </think> tags, then answer with just one of the options "
        "below within <answer> </answer> tags (For example, if the question is \n'Is the earth flat?\n A: Yes \nB: "
        "No', you should answer with <think>...</think> <answer>B: No </answer>). Here is the question: {question} "
        "Options:\n\n{options}"
    ),
    "paper-math": (
        "A conversation between User and Assistant. The user asks a question, and you as the assistant solves it. "
        "You should first think about the reasoning process in the mind and then provide the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think><answer> the final answer as the option letter "
        "or the number depending on the question </answer> (For example, if the question is \n'Is the earth flat?\n "
        "A: Yes \nB: No', you should answer with <think> your reasoning </think> <answer>B: No</answer>. If the "
        "question is 'What is 1+1?', you should answer with <think> your reasoning </think> <answer>2 </answer>)."
        "\n\nHere is the question: {question} Options:\n\n{options}"
    ),
    "brief": "{question}{options_lines}\nThink, then answer.",
    "brief-direct": "{question}{options_lines}\nAnswer.",
}


def render(problem: Problem, prompt: str) -> str:
    """The user's text for a problem under the prompt of that name.

    Raises `KeyError` for an unknown prompt (a recipe's prompt is checked when the recipe is read).
    """
    colon = [f"{label}: {option}" for label, option in zip(LABELS, problem.options, strict=False)]
    dotted = [f"{label}. {option}" for label, option in zip(LABELS, problem.options, strict=False)]
    text = PROMPTS[prompt].format(
        question=problem.question,
        options=" ".join(colon),
        options_dotted=" ".join(dotted),
        options_lines="".join("\n" + line for line in colon),
    )
    return text if problem.options else text.replace(" Options:\n\n", "").rstrip(" ")


def chat_messages(problem: Problem, prompt: str) -> list[Message]:
    """Chat messages with the pictures first and the text behind them (as in the card's vLLM snippet).

    The system prompt is left to the model's own chat template, which adds Qwen2.5-VL's.
    """
    pictures = [{"type": "image"} for _ in problem.images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": render(problem, prompt)}]}]
