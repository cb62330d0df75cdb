"""Fields of training rows: used, bookkeeping, reported or refused; never dropped in silence."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.data.rows import _MESSAGES, _QUESTION, messages, questions
from xreasoner.errors import DataError

QUESTION = {"question": "1 + 1?", "gold": "2", "response": "<think>two</think> 2"}
TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
CHAT = {"messages": TURNS, "gold": "2"}


def saved(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("history", [["Hi", "Hello"]]),
        ("input", "more text"),
        ("context", "more text"),
        ("tools", [{"type": "function"}]),
        ("functions", [{"name": "f"}]),
        ("weight", 0),
        ("weight", 0.5),
        ("train", False),
        ("label", False),
        ("videos", ["x.mp4"]),
        ("audio", "x.wav"),
        ("rejected", "3"),
        ("chosen", "2 of the two"),
        ("loss_mask", [0, 1]),
        ("Tools", [{"type": "function"}]),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_a_field_that_changes_the_meaning_is_refused_by_name(tmp_path: Path, field: str, value: Any) -> None:
    for source, row in ((questions, QUESTION), (messages, CHAT)):
        options = saved(tmp_path, row, {**row, field: value})
        for use in (lambda s: s.problems(9, 0), lambda s: s.examples(9, 0, "chain")):
            with pytest.raises(DataError, match=rf"rows\.jsonl:2: field '{field}': found .*does not use") as caught:
                use(source(options))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("history", []),
        ("tools", None),
        ("functions", []),
        ("weight", 1),
        ("weight", 1.0),
        ("train", True),
        ("label", True),
        ("images", []),
        ("image", None),
        ("videos", [None]),
        ("system", ""),
        ("system", "  "),
        ("system", None),
        ("query", "1 + 1?"),
        ("input", ""),
        ("difficulty", 3),
        ("source", "gsm8k"),
        ("meta", {"a": 1}),
        ("extra_info", {"split": "train"}),
        ("data_source", "x"),
        ("extra_info", {"index": 3, "need_tools_kwargs": False}),
        ("images", [None]),
        ("Unnamed: 0", 3),
        ("solution", "One more than one."),
    ],
)
def test_a_field_that_changes_nothing_passes_without_a_word(tmp_path: Path, field: str, value: Any) -> None:
    for source, row in ((questions, QUESTION), (messages, CHAT)):
        (problem,) = source(saved(tmp_path, {**row, field: value})).problems(1, 0)
        assert (problem.question, problem.gold, problem.modality) == ("1 + 1?", "2", "text")


def test_rows_that_need_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'extra_info\.need_tools_kwargs': found True, expected a row that"):
        messages(saved(tmp_path, {**CHAT, "extra_info": {"need_tools_kwargs": True}})).problems(1, 0)


def test_unknown_fields_are_reported_once_for_a_file(tmp_path: Path) -> None:
    rows = [{**QUESTION, "systen": "S"}, {**QUESTION, "systen": "S", "zeal": 1}, QUESTION]
    with pytest.warns(UserWarning, match="fields that are not used") as caught:
        questions(saved(tmp_path, *rows)).problems(9, 0)
    (warning,) = caught
    assert str(warning.message).endswith("rows.jsonl: fields that are not used: 'systen' (2 rows), 'zeal' (1 rows)")


def test_a_system_text_is_put_before_the_question(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    rows: list[tuple[Any, dict[str, Any]]] = [
        (messages, {"system": "Be brief.", "conversations": turns, "gold": "2"}),
        (messages, {"system_prompt": "Be brief.", **CHAT}),
        (
            messages,
            {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, *TURNS]},
        ),
        (messages, {"messages": [{"role": "developer", "content": "Be brief."}, *TURNS]}),
        (questions, {"system": "Be brief.", **QUESTION}),
    ]
    for source, row in rows:
        (problem,) = source(saved(tmp_path, {**row, "gold": "2"})).problems(1, 0)
        assert problem.question == "Be brief.\n\n1 + 1?"
    for empty in ("", " ", None):
        turns = [{"role": "system", "content": empty}, *TURNS]
        assert messages(saved(tmp_path, {**CHAT, "messages": turns})).problems(1, 0)[0].question == "1 + 1?"
    turns = [{"role": "system", "content": "Be long."}, *TURNS]
    with pytest.raises(DataError, match=r"field 'system': found 'Be brief\.', expected the text of the system message"):
        messages(saved(tmp_path, {**CHAT, "messages": turns, "system": "Be brief."})).problems(1, 0)


def test_alpacas_fields_are_one_question(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 and 1", "output": "<think>two</think> 2", "history": []}
    (example,) = questions(saved(tmp_path, row)).examples(1, 0, "chain")
    assert (example.problem.question, example.response) == ("Add.\n\n1 and 1", "<think>two</think> 2")
    (example,) = questions(saved(tmp_path, {**row, "input": ""})).examples(1, 0, "chain")
    assert example.problem.question == "Add."


@pytest.mark.parametrize("write", [json.dumps, str])
def test_messages_in_a_csv_column(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["messages", "gold"])
        writer.writeheader()
        writer.writerow({"messages": write(TURNS), "gold": "2"})
    (problem,) = messages({"path": str(path)}).problems(1, 0)
    assert (problem.question, problem.gold) == ("1 + 1?", "2")


def test_two_values_for_one_thing_are_refused(tmp_path: Path) -> None:
    for field, value in (("prompt", "2 + 2?"), ("answer", "4"), ("completion", "4")):
        with pytest.raises(DataError, match=rf"field '{field}': found '.*', expected no such field beside"):
            questions(saved(tmp_path, {**QUESTION, field: value})).problems(1, 0)
    assert questions(saved(tmp_path, {**QUESTION, "prompt": "1 + 1?", "answer": "2"})).problems(1, 0)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"tool_calls": [{"id": "1"}]}, r"messages\.1\.tool_calls"),
        ({"function_call": {"name": "f"}}, r"messages\.1\.function_call"),
        ({"weight": 0}, r"messages\.1\.weight"),
        ({"train": False}, r"messages\.1\.train"),
        ({"loss": False}, r"messages\.1\.loss"),
        ({"prefix": True}, r"messages\.1\.prefix"),
        ({"reasoning_content": 3}, r"messages\.1\.reasoning"),
        ({"role": "tool"}, r"messages\.1\.role"),
        ({"content": [{"type": "text", "text": "2"}, {"type": "image"}]}, r"messages\.1\.content"),
    ],
)
def test_a_messages_field_that_changes_the_meaning_is_refused(tmp_path: Path, part: Any, field: str) -> None:
    turns = [CHAT["messages"][0], {**TURNS[1], **part}]
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: field '{field}'"):
        messages(saved(tmp_path, {"messages": turns})).examples(1, 0, "chain")
    harmless = {"weight": 1, "train": True, "tool_calls": None, "name": "Ana", "prefix": False, "refusal": None}
    turns = [CHAT["messages"][0], {**TURNS[1], **harmless}]
    assert messages(saved(tmp_path, {"messages": turns})).examples(1, 0, "chain")[0].response == "2"


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["red", "blue"]},
        {"choices": ["red", "blue"]},
        {"options": '["red", "blue"]'},
        {"options": "['red', 'blue']"},
        {"options": {"A": "red", "B": "blue"}},
        {"options": [{"key": "B", "value": "blue"}, {"key": "A", "value": "red"}]},
        {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}},
        {"A": "red", "B": "blue"},
        {"A": "red", "B": "blue", "C": "", "D": ""},
        {"option_a": "red", "option_b": "blue"},
        {"Option A": "red", "Option B": "blue"},
        {"option1": "red", "option2": "blue"},
        {"opa": "red", "opb": "blue"},
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_options_in_every_form(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    whole = {"question": "Which?", **row, "gold": "blue"}
    if kind == "jsonl":
        path.write_text(json.dumps(whole))
    elif all(isinstance(value, str) for value in row.values()):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(whole))
            writer.writeheader()
            writer.writerow(whole)
    else:
        return  # a CSV column holds text
    (problem,) = questions({"path": str(path)}).problems(1, 0)
    assert (problem.options, problem.gold, problem.answer_type) == (("red", "blue"), "B", "choice")


@pytest.mark.parametrize(
    "row",
    [
        {"options": {"A": "red", "C": "blue"}},
        {"options": {"x": "red", "y": "blue"}},
        {"options": ["red", None]},
        {"options": ["red", True]},
        {"options": "red"},
        {"A": "red", "B": "", "C": "blue"},
        {"options": ["red"], "choices": ["blue"]},
    ],
)
def test_options_that_are_no_list_of_texts_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: field '(options|choices|B)': found"):
        questions(saved(tmp_path, {"question": "Which?", **row, "gold": "blue"})).problems(1, 0)


def test_all_rows_problems_are_reported_at_once(tmp_path: Path) -> None:
    options = saved(tmp_path, {**QUESTION, "gold": ""}, QUESTION, {**QUESTION, "answer_type": "essay"})
    path = Path(str(options["path"]))
    path.write_text(path.read_text() + '{"question": NaN}\n')
    with pytest.raises(DataError) as caught:
        questions(options).problems(9, 0)
    places = [line.removeprefix(f"{path}:").split(":")[0] for line in str(caught.value).splitlines()]
    assert places == ["1", "3", "4"]


@pytest.mark.parametrize(
    "text", ["  spaced \n", "{question} {0} {}", "</think> <answer>", "<image> <image 1>", "a\u2028b"]
)
def test_the_users_text_is_not_edited(tmp_path: Path, text: str) -> None:
    row = {**QUESTION, "question": text, "response": text}
    (example,) = questions(saved(tmp_path, row)).examples(1, 0, "chain")
    assert (example.problem.question, example.response) == (text, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turns = [{"role": "user", "content": [{"type": "text", "text": text}]}, {"role": "assistant", "content": text}]
        (example,) = messages(saved(tmp_path, {"messages": turns})).examples(1, 0, "chain")
    assert (example.problem.question, example.response) == (text, text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from(["A", "2", "choice", "user", "system", "assistant", "text", "[1", "{'A': 1}", "['x', 'y']", " "]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "A", "B", "label"]), inner
        )
    ),
    max_leaves=6,
)
FIELDS = sorted({*_QUESTION, *_MESSAGES, "A", "B", "tools", "history", "extra_info", "label", "other"})


@pytest.mark.filterwarnings("ignore:.*fields that are not used")
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), st.sampled_from(["problems", "chain", "direct"]))
def test_any_row_is_used_or_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], use: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [values, {**QUESTION, **values}, {**CHAT, **values}]
    options = saved(folder, *rows)
    for source in (questions(options), messages(options)):
        message = ""
        try:
            source.problems(9, 0) if use == "problems" else source.examples(9, 0, use)
        except DataError as error:
            message = str(error)
        assert all(line.startswith(f"{options['path']}:") for line in message.splitlines())
