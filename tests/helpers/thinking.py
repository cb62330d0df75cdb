"""Variants of a checkpoint: chat templates that open or close the thought, and tags that are tokens of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from transformers import AddedToken

from xreasoner.models.loading import Loaded

Template = Literal["neither", "opens", "closes"]
Tags = Literal["text", "special", "ordinary"]

_TURNS = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% set content = namespace(text='') %}"
    "{% if message['content'] is string %}{% set content.text = message['content'] %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    "{% set content.text = content.text + '<|vision_start|><|image_pad|><|vision_end|>' %}"
    "{% else %}{% set content.text = content.text + part['text'] %}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% set thought = namespace(text='') %}"
    "{% if message['reasoning_content'] is string %}{% set thought.text = message['reasoning_content'] %}"
    "{% elif '</think>' in content.text %}"
    "{% set thought.text = content.text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content.text = content.text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ thought.text.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ content.text.lstrip('\n') }}"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ content.text }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
ENDINGS = {"opens": "<think>\\n", "closes": "<think>\\n\\n</think>\\n\\n"}


def variant(loaded: Loaded, template: Template = "neither", tags: Tags = "text") -> Loaded:
    """The same weights under a template of Qwen3-VL-Thinking's form, or with `<think>` and `</think>` as tokens.

    Tags that are tokens have embeddings of their own, so the model and its tokenizer must be this caller's alone.
    """
    tokenizer: Any = loaded.tokenizer
    if template != "neither":
        tail = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n" + ENDINGS[template] + "' }}{% endif %}"
        tokenizer.chat_template = _TURNS + tail
    if tags != "text":
        special = tags == "special"
        tokens = [AddedToken(tag, special=special, normalized=False) for tag in ("<think>", "</think>")]
        tokenizer.add_tokens(tokens, special_tokens=special)
        loaded.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return replace(loaded, tokenizer=tokenizer)
