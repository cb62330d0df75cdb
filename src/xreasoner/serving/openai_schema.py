"""Every field of a chat completion request: those that are honored, and the values that ask for nothing.

Clients send many fields that ask for nothing: `tools: []`, `n: 1`, `logit_bias: {}`. They are accepted. A field that
OpenAI's API, vLLM, SGLang or llama.cpp would honor and this service would not is refused by name, so that no reply
silently differs from what was asked for. `python -m xreasoner.serving.openai_schema` prints the table for the docs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xreasoner.errors import RequestError
from xreasoner.prompts import PROMPTS
from xreasoner.trace import CLOSE

Check = Callable[[Any], bool]
Kind = Literal["honored", "label", "neutral"]
"""honored: it changes the reply; label: any good value is accepted and changes nothing by its meaning; neutral: only
values that ask for nothing are accepted."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request body.

    Args:
        kind: see `Kind`.
        accepts: whether the value is good; null never gets here, it asks for nothing in every field.
        expected: the accepted values, as an error message and the docs name them.
        note: what the field does here, or what to use in its place.
    """

    kind: Kind
    accepts: Check
    expected: str
    note: str = ""


Fields = Mapping[str, Field]


# --- checks ----------------------------------------------------------------------------------------------------------


def whole_number(least: int, most: int = 10**9) -> Check:
    """Integers within bounds; 2.0 is one (JSON does not tell them apart), true is not."""

    def check(value: Any) -> bool:
        if isinstance(value, float):
            value = int(value) if value.is_integer() else None
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return check


def number(least: float, most: float) -> Check:
    """Numbers within bounds; NaN is none."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def one_of(*values: Any) -> Check:
    """These values, where 0, 0.0 and false stay apart from each other unless they are numbers."""

    def check(value: Any) -> bool:
        return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in values)

    return check


def _token_limit(value: Any) -> bool:
    """-1 is what LM Studio's and llama.cpp's clients send for no limit."""
    return one_of(-1)(value) or whole_number(1)(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | dict | str) and not value


def _never(value: Any) -> bool:
    return False


def _stop_strings(value: Any) -> bool:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > 16:
        return False
    return all(isinstance(text, str) and len(text) <= 256 for text in found)


def _option_texts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(text, str) and text.strip() and len(text) <= 2000 for text in value)


def _object(**known: Check) -> Check:
    """Objects with these fields, each null or accepted by its check."""

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            item is None or (name in known and known[name](item)) for name, item in value.items()
        )

    return check


_stream_options = _object(
    include_usage=_is_bool, include_obfuscation=one_of(False), continuous_usage_stats=one_of(False)
)
_include_usage = _object(include=_is_bool)


def _text_format(value: Any) -> bool:
    return _object(type=one_of("text"))(value) and value.get("type") == "text"


# --- the fields ------------------------------------------------------------------------------------------------------

_TEXT = "a text"
_BOOL = "true or false"
_EMPTY = "null or an empty value"

HONORED: dict[str, Field] = {
    "model": Field("honored", _is_text, _TEXT, "the served model's name; another one is a 404"),
    "messages": Field("honored", lambda value: isinstance(value, list) and len(value) > 0, "a list of messages"),
    "max_tokens": Field(
        "honored", _token_limit, "a whole number from 1, or -1 for no limit",
        "thought, exit text and answer together",
    ),
    "max_completion_tokens": Field(
        "honored", _token_limit, "a whole number from 1, or -1 for no limit",
        "the same as `max_tokens`, and first where both are given",
    ),
    "temperature": Field("honored", number(0, 2), "a number from 0 to 2", "0 is greedy"),
    "top_p": Field("honored", number(1e-6, 1), "a number above 0, up to 1"),
    "top_k": Field("honored", whole_number(-1), "a whole number from 1, or 0 or -1 for no limit"),
    "seed": Field("honored", whole_number(-(2**63), 2**63 - 1), "a whole number of 64 bits"),
    "stop": Field(
        "honored", _stop_strings, "a text of at most 256 characters, or a list of at most 16", "empty ones are ignored"
    ),
    "n": Field("honored", whole_number(1, 128), "a whole number from 1 to 128", "samples"),
    "stream": Field("honored", _is_bool, _BOOL),
    "stream_options": Field(
        "honored", _stream_options, "include_usage (true or false)", "a whole reply always has its usage"
    ),
    "logprobs": Field("honored", _is_bool, _BOOL, "not with `stream`, and only from a model in the service's process"),
    "thinking_budget": Field("honored", whole_number(0), "a whole number from 0", "tokens until the thought is closed"),
    "answer_budget": Field("honored", whole_number(1), "a whole number from 1", "tokens of the answer after it"),
    "exit_text": Field(
        "honored",
        lambda value: isinstance(value, str) and CLOSE in value and len(value) <= 2000,
        f"a text with {CLOSE}",
        "what closes the thought at its budget",
    ),
    "exit_on_repeats": Field("honored", _is_bool, _BOOL, "also close a thought that repeats itself"),
    "stop_in_thought": Field("honored", _is_bool, _BOOL, "stop strings close the thought too"),
    "min_pixels": Field("honored", whole_number(1), "a whole number from 1", "minimum image area in pixels"),
    "max_pixels": Field("honored", whole_number(1), "a whole number from 1", "maximum image area in pixels"),
    "options": Field(
        "honored", _option_texts, "a list of texts of at most 2,000 characters", "the reply gives their probabilities"
    ),
    "prompt": Field(
        "honored",
        one_of(*PROMPTS, "default", "none"),
        f"default, none, or one of {', '.join(PROMPTS)}",
        "how the last user message is put; `none` sends messages as they are",
    ),
}  # fmt: skip
LABELS_ONLY: dict[str, Field] = {
    name: Field("label", check, expected, note)
    for name, check, expected, note in (
        ("user", _is_text, _TEXT, "says who asks"),
        ("safety_identifier", _is_text, _TEXT, "says who asks"),
        ("prompt_cache_key", _is_text, _TEXT, "a hint for caches"),
        ("prompt_cache_retention", _is_text, _TEXT, "a hint for caches"),
        ("prompt_cache_options", lambda value: isinstance(value, dict), "an object", "a hint for caches"),
        ("cache_salt", _is_text, _TEXT, "vLLM: a hint for caches"),
        ("cache_prompt", _is_bool, _BOOL, "llama.cpp: a hint for caches"),
        ("request_id", _is_text, _TEXT, "vLLM: a name for the request"),
        ("rid", _is_text, _TEXT, "SGLang: a name for the request"),
        ("parallel_tool_calls", _is_bool, _BOOL, "there are no tools here"),
        ("usage", _include_usage, '{"include": true}', "OpenRouter: a whole reply always has its usage"),
        ("include_reasoning", one_of(True), "true", "vLLM and OpenRouter: the thought is always given"),
        ("separate_reasoning", one_of(True), "true", "SGLang: the thought is always apart from the answer"),
        ("stream_reasoning", one_of(True), "true", "SGLang: the thought is always streamed"),
    )
}
"""Fields whose value cannot change the reply."""


def _neutral(*values: Any, expected: str = "", note: str = "", also: Check = _never) -> Field:
    shown = expected or " or ".join(["null", *(json.dumps(value) for value in values)])
    accepted = one_of(*values)
    return Field("neutral", lambda value: accepted(value) or also(value), shown, note)


_NO_TOOLS = "there are no tools here"
_NO_SCHEMA = "replies are free text"
_NO_PENALTY = "penalties are not applied"
_NO_TEMPLATE = "the template is the model's own"
_BUDGET = "`thinking_budget` says how long it may think"
_NOT_A_FIELD = "an argument of the openai client, not a field of the body"


def _empty(note: str = "", also: Check = _never, expected: str = "") -> Field:
    """A field that asks for nothing where it is empty, or as `also` accepts it."""
    shown = f"{_EMPTY}, or {expected}" if expected else _EMPTY
    return _neutral(expected=shown, note=note, also=lambda value: _is_empty(value) or also(value))


NEUTRAL: dict[str, Field] = {
    # OpenAI
    "frequency_penalty": _neutral(0, note=_NO_PENALTY),
    "presence_penalty": _neutral(0, note=_NO_PENALTY),
    "logit_bias": _empty(),
    "top_logprobs": _neutral(0),
    "tools": _empty(_NO_TOOLS),
    "tool_choice": _neutral("none", "auto", note=_NO_TOOLS),
    "functions": _empty(_NO_TOOLS),
    "function_call": _neutral("none", "auto", note=_NO_TOOLS),
    "response_format": _neutral(expected='null or {"type": "text"}', also=_text_format, note=_NO_SCHEMA),
    "store": _neutral(False, note="nothing is stored"),
    "metadata": _empty("nothing is stored"),
    "service_tier": _neutral("auto", "default"),
    "modalities": _neutral(["text"]),
    "audio": _empty(),
    "prediction": _empty(),
    "reasoning_effort": _neutral("medium", note=_BUDGET),
    "verbosity": _neutral("medium"),
    "web_search_options": _neutral(note="nothing is searched"),
    "moderation": _empty(),
    # arguments of the openai client
    "extra_body": _empty(f"{_NOT_A_FIELD}; put its fields into the body itself"),
    "extra_headers": _empty(_NOT_A_FIELD),
    "extra_query": _empty(_NOT_A_FIELD),
    # legacy completions
    "best_of": _neutral(1),
    "echo": _neutral(False),
    "suffix": _neutral(""),
    # vLLM, SGLang
    "min_p": _neutral(0),
    "typical_p": _neutral(1),
    "repetition_penalty": _neutral(1, note=_NO_PENALTY),
    "length_penalty": _neutral(1),
    "use_beam_search": _neutral(False),
    "early_stopping": _neutral(False),
    "ignore_eos": _neutral(False),
    "min_tokens": _neutral(0),
    "stop_token_ids": _empty(),
    "stop_regex": _empty(),
    "no_stop_trim": _neutral(False),
    "include_stop_str_in_output": _neutral(False),
    "skip_special_tokens": _neutral(True),
    "spaces_between_special_tokens": _neutral(True),
    "bad_words": _empty(),
    "allowed_token_ids": _empty(),
    "logits_processors": _empty(),
    "custom_logit_processor": _empty(),
    "truncate_prompt_tokens": _neutral(),
    "prompt_logprobs": _neutral(note="`POST /v1/decisions` scores options"),
    "return_tokens_as_token_ids": _neutral(False),
    "return_token_ids": _neutral(False),
    "return_hidden_states": _neutral(False),
    "add_generation_prompt": _neutral(True, note=_NO_TEMPLATE),
    "continue_final_message": _neutral(False),
    "continue_final_message_tag": _empty(),
    "add_special_tokens": _neutral(False, note=_NO_TEMPLATE),
    "documents": _empty(_NO_TEMPLATE),
    "chat_template": _empty(_NO_TEMPLATE),
    "chat_template_kwargs": _empty(
        _NO_TEMPLATE, _object(enable_thinking=one_of(True), thinking=one_of(True)), '{"enable_thinking": true}'
    ),
    "mm_processor_kwargs": _empty("`min_pixels`, `max_pixels`"),
    "media_io_kwargs": _empty(),
    "structured_outputs": _empty(_NO_SCHEMA),
    "guided_json": _empty(_NO_SCHEMA),
    "guided_regex": _empty(_NO_SCHEMA),
    "guided_choice": _empty("`options`"),
    "guided_grammar": _empty(_NO_SCHEMA),
    "guided_decoding_backend": _empty(_NO_SCHEMA),
    "json_schema": _empty(_NO_SCHEMA),
    "regex": _empty(_NO_SCHEMA),
    "ebnf": _empty(_NO_SCHEMA),
    "priority": _neutral(0),
    "kv_transfer_params": _empty(),
    "vllm_xargs": _empty(),
    "lora_path": _empty(),
    "session_params": _empty(),
    "custom_params": _empty(),
    "thinking_token_budget": _neutral(note=_BUDGET),
    # OpenRouter, Qwen, DeepSeek
    "reasoning": _empty(
        _BUDGET,
        _object(effort=one_of("medium"), enabled=one_of(True), exclude=one_of(False)),
        '{"effort": "medium"}',
    ),
    "thinking": _empty(_BUDGET, _object(type=one_of("enabled", "adaptive")), '{"type": "enabled"}'),
    "enable_thinking": _neutral(True, note=_BUDGET),
    "models": _empty(),
    "provider": _empty(),
    "route": _empty(),
    "transforms": _empty(),
    "plugins": _empty(),
    "top_a": _neutral(0),
    # llama.cpp
    "n_predict": _neutral(-1, note="`max_tokens`"),
    "repeat_penalty": _neutral(1, note=_NO_PENALTY),
    "tfs_z": _neutral(1),
    "mirostat": _neutral(0),
    "xtc_probability": _neutral(0),
    "dry_multiplier": _neutral(0),
    "dynatemp_range": _neutral(0),
    "grammar": _empty(_NO_SCHEMA),
    "samplers": _empty(),
    "id_slot": _neutral(-1),
    "timings_per_token": _neutral(False),
}
"""Fields that this service does not honor, and the values with which they ask for nothing."""

CHAT_FIELDS: dict[str, Field] = {**HONORED, **LABELS_ONLY, **NEUTRAL}
DECISION_FIELDS: dict[str, Field] = {
    **CHAT_FIELDS,
    "n": Field("neutral", one_of(1), "null or 1"),
    "stream": Field("neutral", one_of(False), "null or false"),
    "logprobs": Field("neutral", one_of(False), "null or false"),
}
BATCH_FIELDS: dict[str, Field] = {**CHAT_FIELDS, "stream": Field("neutral", one_of(False), "null or false")}
"""A line of a batch file has no stream."""


# --- problems --------------------------------------------------------------------------------------------------------


class Problems:
    """What is wrong with one request, gathered so that it is reported at once.

    Args:
        lenient: fields that are not honored are listed in `ignored` in place of being refused.
    """

    def __init__(self, lenient: bool = False) -> None:
        self.lenient = lenient
        self.ignored: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.code: str | None = None

    def add(self, where: str, message: str, code: str | None = None) -> None:
        """A mistake that no leniency lets pass. code: OpenAI's, if it has one for this."""
        self.found.append((where, message))
        self.code = self.code or code

    def not_honored(self, where: str, message: str) -> None:
        """A field that would change nothing here."""
        if self.lenient:
            self.ignored.append(where)
        else:
            self.add(where, message)

    def raise_if_any(self) -> None:
        """Raises `RequestError` with every problem in one line."""
        if not self.found:
            return
        shown = "; ".join(f"{where}: {message}" for where, message in self.found[:20])
        more = len(self.found) - 20
        raise RequestError(shown + (f"; and {more} more problems" if more > 0 else ""), self.found[0][0], self.code)


def unsupported(name: str, known: Iterable[str], listed: str = "") -> str:
    """The message for an unknown field: the nearest names, and where all of them are."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unsupported field; {hint}{listed or 'docs/serving.md lists the fields'}"


def readable_name(name: str) -> str:
    """A field's name as an error message may quote it."""
    return ascii(name)[1:-1][:60]


def check_fields(body: Mapping[str, Any], fields: Fields, problems: Problems) -> dict[str, Any]:
    """The fields of a body that ask for something, each good by itself; what is wrong goes to `problems`."""
    given: dict[str, Any] = {}
    for name, value in body.items():
        shown = readable_name(name)
        if value is None:
            continue
        if not _is_unicode({name: value}):
            problems.add(shown, "holds half of a surrogate pair; expected text as UTF-8")
        elif name not in fields:
            problems.not_honored(shown, unsupported(name, fields))
        elif fields[name].accepts(value):
            if fields[name].kind == "honored":
                given[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        elif fields[name].kind == "honored":
            problems.add(shown, f"found {readable(value)}, expected {fields[name].expected}")
        elif fields[name].kind == "label" and not isinstance(value, bool):
            problems.not_honored(shown, f"found {readable(value)}, expected {fields[name].expected}")
        else:
            field = fields[name]
            note = f" ({field.note})" if field.note else ""
            problems.not_honored(shown, f"not supported here{note}; found {readable(value)}, expected {field.expected}")
    return given


def readable(value: Any) -> str:
    """A value as an error message quotes it."""
    return ascii(str(value))[:62] if not _is_unicode(value) else repr(str(value)[:60])


def _is_unicode(value: Any) -> bool:
    """Whether all its text can be encoded: JSON may spell half of a surrogate pair, which no tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- the table for the docs ------------------------------------------------------------------------------------------


def field_table() -> str:
    """The fields as a Markdown table, for docs/serving.md."""
    kinds = {"honored": "honored", "label": "accepted", "neutral": "only if it asks for nothing"}
    rows = ["| field | here | values | |", "|---|---|---|---|"]
    for name, field in CHAT_FIELDS.items():
        expected = field.expected.replace("|", "\\|")
        rows.append(f"| `{name}` | {kinds[field.kind]} | {expected} | {field.note} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(field_table())
