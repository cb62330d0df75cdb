"""Which fields of a training row are used, ignored or refused.

The rule, for the sources `rows` and `messages`:

1. A field that the source reads is used.
2. A field that would change what the row means, and that the source does not read, is refused by name, unless it says
   nothing (null, blank, an empty list) or says what is done anyway (`weight: 1`, `train: true`).
3. A field that is declared to be bookkeeping (`HARMLESS`) is ignored.
4. Any other field is ignored too, and reported once for each file with its number of rows: a misspelled name is seen.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xreasoner.data.readers import Row
from xreasoner.errors import DataError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


HARMLESS = _names(
    """
    id ids uuid uid guid idx index _id __index_level_0__ row_id sample_id example_id question_id problem_id
    prompt_id conversation_id unique_id source sources data_source dataset dataset_name origin url urls link
    license author authors title name date time created created_at timestamp version split language lang locale
    meta metadata extra_info extra info tags tag topic topics subject subjects subject_name topic_name category
    categories domain field subfield discipline ability task task_type task_name type question_type problem_type
    difficulty level grade year month score scores rating quality pass_rate solve_rate num_tokens tokens
    token_count length n_tokens num_turns turns char_count family teacher model model_name generator
    generation_model annotator annotators reviewer notes note comment comments explanation rationale exp
    reference references solution hash sha256 md5 fingerprint file file_name filename path line outcome
    extracted correct correctness verified correctness_count is_reasoning_complete finish_reason finish_reasons
    created_by choice_type index_level_0 answer_idx agent_name custom_id key
    """
) | {"", "Unnamed: 0"}
"""Bookkeeping: what a row is called, where it comes from, how hard it is, what others said of it."""

MEANINGFUL = _names(
    """
    system system_prompt system_message developer instruction instructions input inputs context contexts passage
    document documents history tools tool functions function function_call tool_calls tool_choice
    parallel_tool_calls weight weights sample_weight loss loss_mask loss_weight mask labels train trainable
    train_on_input train_on_inputs image images picture pictures video videos audio audios media pixel_values
    chosen rejected chosen_response rejected_response preference label kto_tag margin prefix suffix starter_code
    response_format chat_template chat_template_kwargs template enable_thinking reasoning_effort reasoning
    reasoning_content thinking thought cot few_shot examples demonstrations hint hints messages conversations
    conversation dialog dialogue prompt completion question problem query response output answer gold target
    options choices input_ids attention_mask prompts completions responses ground_truth reward_model rewards
    reward
    """
)
"""What changes the prompt, the response, what is trained on, or what is right."""

MESSAGE_USED = frozenset(["role", "content", "from", "value", "reasoning_content", "reasoning", "thinking"])
MESSAGE_MEANINGFUL = _names(
    """
    tool_calls tool_call_id function_call tools functions weight train training loss mask prefix refusal audio
    image images video videos name_of_tool train_detail training_detail loss_scale trainable tool_plan
    """
)
_TRAINED_ON = _names("weight weights sample_weight loss_weight loss train training trainable label kto_tag loss_scale")
_AS_IS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_TRAINED_ON, (1, True, "1", "true", "1.0")),
    "train_on_input": (0, False, "false"),
    "train_on_inputs": (0, False, "false"),
    "prefix": (0, False),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "response_format": ({"type": "text"},),
}
"""Values that ask for what is done anyway."""


def says_nothing(name: str, value: Any) -> bool:
    """Whether a field's value changes nothing: null, blank, empty, or what is done anyway."""
    if isinstance(value, str) and not value.strip():
        return True
    if value is None or (isinstance(value, list | dict | tuple) and not _says_anything(value)):
        return True
    if isinstance(value, float) and value != value:  # a column's way of writing that there is no value
        return True
    known = value.strip().lower() if isinstance(value, str) else value
    return any(known == each for each in _AS_IS.get(name, ()))


def _says_anything(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_says_anything(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_says_anything(part) for part in value)
    return value is not None and value != ""


def check_fields(row: Row, used: Iterable[str], reader: str, texts: Sequence[str] = ()) -> None:
    """Raise `DataError` for the fields that would change what the row means and are not read.

    Args:
        row: The row.
        used: The fields that the source reads from this row.
        reader: The source's name, for the message.
        texts: The question and the response; a text that occurs in them is used already (a copy of the question).
    """
    read = frozenset(used)
    extra = row.values.get("extra_info")
    if isinstance(extra, Mapping) and not says_nothing("tools", extra.get("need_tools_kwargs") or None):
        raise row.wrong("extra_info.need_tools_kwargs", extra["need_tools_kwargs"], "a row that needs no tools")
    refused = [
        name
        for name, value in row.values.items()
        if name not in read
        and _plain(name) in MEANINGFUL
        and not says_nothing(_plain(name), value)
        and not (isinstance(value, str) and any(value in text for text in texts))
    ]
    if refused:
        names, values = ", ".join(map(repr, refused)), ", ".join(f"{row.values[name]!r:.60}" for name in refused)
        raise DataError(
            f"{row.where}: field{'s' * (len(refused) > 1)} {names}: found {values}, which the source {reader!r} does "
            "not use and which would change what the row means; expected it in the question or the messages, or no "
            "such field"
        )


def check_message(row: Row, field: str, message: Mapping[Any, Any]) -> None:
    """The same for one message's fields."""
    for name, value in message.items():
        if name not in MESSAGE_USED and _plain(name) in MESSAGE_MEANINGFUL and not says_nothing(_plain(name), value):
            raise DataError(
                f"{row.where}: field {f'{field}.{name}'!r}: found {value!r:.100}, which is not used, and which would "
                "change what is trained on; expected messages of role and content"
            )


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def report_unknown(rows: Sequence[Row], used: Iterable[str]) -> None:
    """Warn once for each file of the fields that nobody declared, with the number of rows that have them."""
    known = frozenset(used) | HARMLESS
    unknown: dict[str, Counter[str]] = {}
    for row in rows:
        for name in row.values:
            if name not in known and _plain(name) not in known and _plain(name) not in MEANINGFUL:
                unknown.setdefault(row.path, Counter())[name] += 1
    for path, counts in unknown.items():
        names = ", ".join(f"{name!r:.60} ({count:,} rows)" for name, count in counts.most_common(10))
        more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
        warnings.warn(f"{path}: fields that are not used: {names}{more}", stacklevel=2)
