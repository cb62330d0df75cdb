"""The one prompt grammar: how a `Problem` becomes chat messages.

The card's and the paper's prompts stand word for word (model card; paper, appendix C). The two brief ones are
this project's own: a model of a few million parameters reads a prompt of a dozen tokens, not one of sixty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xreasoner.engines.base import Message
from xreasoner.errors import CheckpointError
from xreasoner.problem import LABELS, Problem
from xreasoner.reasoner_settings import ReasonerSettings, manifest_prompt, read_reasoner_settings

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

    Options that the question or the picture shows already (meta["options_shown"]) are not printed again. Raises
    `KeyError` for an unknown prompt (a recipe's prompt is checked when the recipe is read).
    """
    options = () if problem.meta.get("options_shown") else problem.options
    colon = [f"{label}: {option}" for label, option in zip(LABELS, options, strict=False)]
    dotted = [f"{label}. {option}" for label, option in zip(LABELS, options, strict=False)]
    return template_of(problem, prompt).format(
        question=problem.question,
        options=" ".join(colon),
        options_dotted=" ".join(dotted),
        options_lines="".join("\n" + line for line in colon),
    )


def template_of(problem: Problem, prompt: str) -> str:
    """The template of a prompt in the form that suits a problem: with its options, or without any."""
    has_options = bool(problem.options) and not problem.meta.get("options_shown")
    return PROMPTS[prompt] if has_options else _without_options(PROMPTS[prompt])


def _without_options(template: str) -> str:
    """The template for a question without options. Only the template is cut: the question is the user's text."""
    return re.sub(r"( Options:\n\n| )?\{options\w*\}", "", template)


_MARK = re.compile(r"<image(?: ?(\d+))?>")


def chat_messages(problem: Problem, prompt: str) -> list[Message]:
    """Chat messages: the pictures stand where the question marks them, else where the prompt has them.

    Marks are `<image>` or `<image 1>`, …, one for each picture and in the pictures' order; otherwise they stay text.
    Without marks the pictures come first, as in the card's vLLM snippet, but under `card-mc` between the prompt's text
    and the question, as in the card's Transformers snippet. The system prompt is left to the model's own chat
    template, which adds Qwen2.5-VL's.
    """
    text, n = render(problem, prompt), len(problem.images)
    marks = list(_MARK.finditer(text)) if n else []
    numbers = [int(match[1]) if match[1] else k for k, match in enumerate(marks, 1)]
    if marks and numbers == list(range(1, n + 1)):
        cuts = [(match.start(), match.end()) for match in marks]
    else:
        cuts = [(len(_CARD_MC),) * 2 if prompt == "card-mc" else (0, 0)] * n
    content: list[dict[str, Any]] = []
    at = 0
    for begin, end in cuts:
        content += [{"type": "text", "text": text[at:begin]}, {"type": "image"}]
        at = end
    content.append({"type": "text", "text": text[at:]})
    return [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]


def default_prompt(model: str, options: Sequence[str]) -> str:
    """The prompt that a registered model or a folder was trained with, else the model card's.

    Args:
        model: A registered name or a folder; of anything else no settings are read.
        options: The question's; the card's prompt for questions without options is the paper's.
    """
    settings = read_reasoner_settings(model, hub=False)
    return trained_prompt(model, settings) or ("card-mc-vllm" if options else "paper-train")


def trained_prompt(model: str, settings: ReasonerSettings | None) -> str | None:
    """The prompt that a model's settings name, if they name one.

    Raises:
        CheckpointError: It is not a prompt of this version.
    """
    name = manifest_prompt(model) if settings is None else settings.prompt
    if name is not None and name not in PROMPTS:
        known = ", ".join(sorted(PROMPTS))
        raise CheckpointError(f"model {model!r}: its prompt {name!r} is unknown; give --prompt, one of {known}")
    return name
