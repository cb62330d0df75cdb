"""Which fields a request may hold: what asks for nothing is accepted, what would not be honored is refused by name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from openai.resources.chat.completions import Completions

from xreasoner.errors import RequestError
from xreasoner.serving.openai_schema import CHAT_FIELDS, NEUTRAL, Problems, check_fields, field_table
from xreasoner.wire import read_messages

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"

ASKS_FOR_NOTHING: list[tuple[str, Any]] = [
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("functions", []),
    ("function_call", "none"),
    ("parallel_tool_calls", False),
    ("parallel_tool_calls", True),
    ("store", False),
    ("response_format", {"type": "text"}),
    ("logit_bias", {}),
    ("metadata", {}),
    ("min_p", 0),
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("repetition_penalty", 1),
    ("repetition_penalty", 1.0),
    ("top_k", -1),
    ("top_k", 0),
    ("top_p", 1),
    ("presence_penalty", 0),
    ("frequency_penalty", 0.0),
    ("n", 1),
    ("n", 1.0),
    ("stop", []),
    ("stop", ""),
    ("stop", [""]),
    ("seed", -1),
    ("user", "u-1"),
    ("safety_identifier", "u-1"),
    ("prompt_cache_key", "k"),
    ("service_tier", "auto"),
    ("service_tier", "default"),
    ("stream_options", {}),
    ("stream_options", {"include_usage": False}),
    ("stream_options", {"include_usage": True, "include_obfuscation": False}),
    ("modalities", ["text"]),
    ("verbosity", "medium"),
    ("logprobs", False),
    ("top_logprobs", 0),
    ("max_tokens", -1),
    ("best_of", 1),
    ("echo", False),
    ("suffix", ""),
    ("ignore_eos", False),
    ("skip_special_tokens", True),
    ("spaces_between_special_tokens", True),
    ("min_tokens", 0),
    ("stop_token_ids", []),
    ("bad_words", []),
    ("use_beam_search", False),
    ("length_penalty", 1),
    ("include_stop_str_in_output", False),
    ("add_generation_prompt", True),
    ("continue_final_message", False),
    ("add_special_tokens", False),
    ("chat_template_kwargs", {}),
    ("mm_processor_kwargs", {}),
    ("priority", 0),
    ("return_token_ids", False),
    ("include_reasoning", True),
    ("separate_reasoning", True),
    ("reasoning", {}),
    ("provider", {}),
    ("usage", {"include": True}),
    ("n_predict", -1),
    ("repeat_penalty", 1),
    ("mirostat", 0),
    ("cache_prompt", True),
    ("request_id", "r-1"),
    ("response_format", {"type": "text", "json_schema": None}),
    ("reasoning", {"effort": "medium", "exclude": False, "max_tokens": None}),
    ("reasoning", {"enabled": True}),
    ("thinking", {"type": "enabled"}),
    ("chat_template_kwargs", {"enable_thinking": True}),
    ("stream_options", {"include_usage": None}),
    ("structured_outputs", {}),
    ("guided_json", {}),
    ("guided_regex", ""),
    ("json_schema", {}),
    ("chat_template", ""),
    ("extra_body", {}),
    ("extra_headers", {}),
]


def checked(body: dict[str, Any], lenient: bool = False) -> tuple[dict[str, Any], Problems]:
    problems = Problems(lenient)
    return check_fields(body, CHAT_FIELDS, problems), problems


@pytest.mark.parametrize(("name", "value"), ASKS_FOR_NOTHING, ids=lambda item: str(item)[:30])
def test_a_value_that_asks_for_nothing_is_accepted(name: str, value: Any) -> None:
    assert checked({name: value})[1].found == []


@pytest.mark.parametrize("name", CHAT_FIELDS)
def test_null_asks_for_nothing_in_every_field(name: str) -> None:
    given, problems = checked({name: None})
    assert (given, problems.found) == ({}, [])


def test_every_parameter_of_the_official_client_is_known() -> None:
    """A parameter that a later client adds is refused by name until somebody decides what it means here."""
    ours_alone = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    names = set(inspect.signature(Completions.create).parameters) - ours_alone
    assert names - set(CHAT_FIELDS) == set()


ASKS_FOR_MORE: list[tuple[str, Any]] = [
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("store", True),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("logit_bias", {"50256": -100}),
    ("metadata", {"a": "b"}),
    ("min_p", 0.1),
    ("min_p", False),
    ("repetition_penalty", 1.1),
    ("repetition_penalty", True),
    ("presence_penalty", 0.1),
    ("service_tier", "flex"),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("reasoning_effort", "high"),
    ("verbosity", "low"),
    ("web_search_options", {}),
    ("top_logprobs", 5),
    ("best_of", 2),
    ("echo", True),
    ("ignore_eos", True),
    ("skip_special_tokens", False),
    ("min_tokens", 5),
    ("enable_thinking", False),
    ("include_reasoning", False),
    ("stream_options", {"include_obfuscation": True}),
    ("stream_options", {"unknown": 1}),
    ("structured_outputs", {"choice": ["a", "b"]}),
    ("response_format", {"json_schema": None}),
    ("reasoning", {"effort": "high"}),
    ("reasoning", {"max_tokens": 100}),
    ("thinking", {"type": "disabled"}),
    ("thinking", {"type": "enabled", "budget_tokens": 100}),
    ("chat_template_kwargs", {"enable_thinking": False}),
    ("extra_body", {"top_k": 3}),
    ("user", 5),
]


@pytest.mark.parametrize(("name", "value"), ASKS_FOR_MORE, ids=lambda item: str(item)[:30])
def test_a_value_that_would_not_be_honored_is_refused_by_name(name: str, value: Any) -> None:
    (problem,) = checked({name: value})[1].found
    assert problem[0] == name
    assert "expected" in problem[1]


def test_all_problems_of_a_body_are_reported_at_once() -> None:
    _, problems = checked({"temperature": "hot", "maxTokens": 4, "store": True, "logit_bias": {"1": 2}, "n": 0})
    with pytest.raises(RequestError) as refused:
        problems.raise_if_any()
    assert refused.value.param == "temperature"
    for name in ("temperature: found 'hot'", "maxTokens: unsupported", "store: not", "logit_bias: not", "n: found"):
        assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_leniency_ignores_what_is_not_honored_and_nothing_else() -> None:
    given, problems = checked({"tools": [{}], "foo": 1, "temperature": "hot", "seed": 4}, lenient=True)
    assert problems.ignored == ["tools", "foo"]
    assert [name for name, _ in problems.found] == ["temperature"]
    assert given == {"seed": 4}


EMPTY_MESSAGE_FIELDS: dict[str, Any] = {
    **{"name": "Ana", "id": "msg_1", "refusal": None, "audio": None, "annotations": [], "tool_calls": []},
    **{"function_call": None, "tool_call_id": None, "reasoning": "I thought.", "reasoning_content": None},
}


def read(messages: list[Any], lenient: bool = False) -> tuple[list[Any], Problems]:
    problems = Problems(lenient)
    return read_messages(messages, problems)[0], problems


def test_message_fields_that_ask_for_nothing_are_accepted() -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    messages, problems = read([user, assistant | EMPTY_MESSAGE_FIELDS, {**user, "name": "Ana", "id": "m"}])
    assert problems.found == []
    assert messages == [user, assistant, user]


@pytest.mark.parametrize("content", [None, "", []])
def test_an_assistant_without_content_is_an_empty_turn(content: Any) -> None:
    user = {"role": "user", "content": "Hi"}
    for assistant in ({"role": "assistant", "content": content}, {"role": "assistant"}):
        messages, problems = read([user, assistant, user])
        assert problems.found == []
        assert messages[1] == {"role": "assistant", "content": ""}


def test_a_refusal_is_what_the_assistant_said() -> None:
    user = {"role": "user", "content": "Hi"}
    for assistant in (
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ):
        messages, problems = read([user, assistant, user])
        assert problems.found == []
        assert messages[1]["content"] == "No."


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_developer_is_the_system(role: str) -> None:
    user = {"role": "user", "content": "Hi"}
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    for content in ("Be brief.", parts):
        messages, problems = read([{"role": role, "content": content}, user])
        assert problems.found == []
        assert messages == [{"role": "system", "content": "Be brief."}, user]
    assert read([{"role": role, "content": ""}, user])[0] == [user]


def test_all_problems_of_the_messages_are_reported_at_once() -> None:
    messages = [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": 7},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "input_audio"}, {"type": "text"}, {"type": "file"}]},
        "Hi",
    ]
    names = [name for name, _ in read(messages)[1].found]
    assert names == [
        "messages[0].role",
        "messages[1].content",
        "messages[2].tool_calls",
        *(f"messages[3].content[{k}]" for k in range(3)),
        "messages[4].role",
    ]


def test_the_docs_list_every_field() -> None:
    """Regenerate with: python tests/serving/test_openai_schema.py"""
    assert field_table() in DOCS.read_text(encoding="utf-8")
    assert set(NEUTRAL) <= set(re.findall(r"^\| `(\w+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    begin = text.index("| field | here |")
    end = text.index("\n\n", begin)
    DOCS.write_text(text[:begin] + field_table() + text[end:], encoding="utf-8")
