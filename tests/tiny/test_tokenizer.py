"""The embedded tokenizer: any text goes round, digits stay apart, special tokens and template are Qwen's."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xreasoner.models.loading import Loaded


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=80))
def test_any_text_goes_round(loaded: Loaded, text: str) -> None:
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    assert loaded.tokenizer.decode(ids) == text


def test_digits_are_apart_and_tags_are_text(loaded: Loaded) -> None:
    pieces = [loaded.tokenizer.decode([i]) for i in loaded.tokenizer.encode("<think> 1234 </think>")]
    assert [p.strip() for p in pieces if p.strip().isdigit()] == ["1", "2", "3", "4"]
    assert "<think>" not in pieces


def test_the_template_is_qwens(loaded: Loaded) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "hi"}]
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n<|im_start|>assistant\n"
    )
