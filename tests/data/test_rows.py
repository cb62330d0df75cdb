"""Problems from JSONL: what is read, and how mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xreasoner.data.rows import messages
from xreasoner.data.rows import questions as jsonl
from xreasoner.errors import DataError, RecipeError

ROW = {"question": "What is 1 + 1?", "gold": 2, "answer_type": "integer", "response": "<think> 2 </think> 2"}


def _file(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path)}


def test_problems_and_responses(tmp_path: Path) -> None:
    options = _file(tmp_path, ROW, {**ROW, "question": "a\u2028b\x85c", "domain": "clinical", "options": ["x", 2]})
    source = jsonl(options)
    problems = {problem.question: problem for problem in source.problems(5, seed=0)}
    assert problems["What is 1 + 1?"].gold == "2"
    other = problems["a\u2028b\x85c"]  # line separators inside a string do not end the line
    assert (other.domain, other.options, other.modality) == ("clinical", ("x", "2"), "text")
    assert {e.response for e in source.examples(5, 0, "chain")} == {ROW["response"]}
    assert {e.response for e in source.examples(5, 0, "direct")} == {"<answer>2</answer>"}


def test_the_order_is_the_files_and_the_choice_the_seeds(tmp_path: Path) -> None:
    source = jsonl(_file(tmp_path, *({**ROW, "id": str(i)} for i in range(20))))
    assert [p.id for p in source.problems(20, 0)] == [str(i) for i in range(20)]  # a curriculum keeps it
    first, again, other = ([int(p.id) for p in source.problems(5, seed)] for seed in (0, 0, 1))
    assert first == again != other
    assert first == sorted(first)
    assert set(first) < {int(p.id) for p in source.problems(8, 0)}


def test_a_row_with_a_picture_is_marked(tmp_path: Path) -> None:
    assert jsonl(_file(tmp_path, {**ROW, "image": "x.png"})).problems(1, 0)[0].modality == "image"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": ""}, "rows.jsonl:1: field 'gold'.*expected text"),
        ({"answer_type": "essay"}, "answer_type.*'essay'.*expected one of"),
        ({"options": "yes"}, "options.*'yes'.*expected a list"),
        ({"options": [{"a": 1}]}, "options.*'a'.*expected a list"),
        ({"meta": "{"}, "meta.*'{'.*expected a mapping"),
        ({"gold": "many"}, "rows.jsonl:1: its gold cannot be judged.*answer_type is 'integer'"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        jsonl(_file(tmp_path, {**ROW, **row})).problems(1, 0)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"{", "rows.jsonl:1: not JSON"), (b"\xff", "not UTF-8"), (b"3", "int")]
)
def test_files_that_are_no_jsonl_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        jsonl({"path": str(path)}).problems(1, 0)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"options\.path: is missing"):
        jsonl({})
    with pytest.raises(DataError, match="no such file"):
        jsonl({"path": str(tmp_path / "none.jsonl")})


def test_prompt_and_answer_in_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "1 + 1?", "answer": "2", "completion": "<think>two</think> 2", "meta": '{"precision": 1}'}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (example,) = jsonl({"path": str(tmp_path)}).examples(1, 0, "chain")
    assert (example.problem.question, example.problem.gold, example.response) == ("1 + 1?", "2", "<think>two</think> 2")
    assert example.problem.meta == {"precision": 1}


def test_a_choices_gold_is_a_label_or_an_options_text(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["red", "blue"], "gold": "blue"}
    (problem,) = jsonl(_file(tmp_path, row)).problems(1, 0)
    assert (problem.gold, problem.answer_type) == ("B", "choice")
    assert jsonl(_file(tmp_path, {**row, "gold": "a"})).problems(1, 0)[0].gold == "A"
    with pytest.raises(DataError, match="field 'gold': found 'C', expected a label from A to B"):
        jsonl(_file(tmp_path, {**row, "gold": "C"})).problems(1, 0)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is 1 + 1?"}]},
    {"role": "assistant", "content": "2", "reasoning_content": "One more than one."},
]


def test_prompts_and_completions_of_messages(tmp_path: Path) -> None:
    """As TRL and verl lay them out."""
    prompt = [{"role": "user", "content": "What is 1 + 1?"}]
    reply = [{"role": "assistant", "content": "<think> 2 </think> 2"}]
    (trl,) = messages(_file(tmp_path, {"prompt": prompt, "completion": reply})).examples(1, 0, "chain")
    assert (trl.problem.question, trl.response) == ("What is 1 + 1?", "<think> 2 </think> 2")
    judged = {"prompt": prompt, "data_source": "x", "reward_model": {"style": "rule", "ground_truth": "2"}}
    (verl,) = messages(_file(tmp_path, judged)).problems(1, 0)
    assert (verl.question, verl.gold) == ("What is 1 + 1?", "2")


def test_chat_messages(tmp_path: Path) -> None:
    (example,) = messages(_file(tmp_path, {"messages": CHAT})).examples(1, 0, "chain")
    assert example.problem.question == "Be brief.\n\nWhat is 1 + 1?"
    assert example.response == "<think>\nOne more than one.\n</think>\n<answer>\n2\n</answer>"
    sharegpt = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    (example,) = messages(_file(tmp_path, {"conversations": sharegpt})).examples(1, 0, "chain")
    assert (example.problem.question, example.response) == ("1 + 1?", "2")
    (problem,) = messages(_file(tmp_path, {"messages": CHAT[:2], "gold": "2"})).problems(1, 0)
    assert problem.gold == "2"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hello", "rows.jsonl:1: field 'messages'.*'hello'.*a list of turns"),
        ([*CHAT, CHAT[1]], "rows.jsonl:1: field 'messages'.*'user'.*one user's turn and one assistant's"),
        ([{"role": "robot", "content": "x"}], r"messages\.0\.role.*'robot'.*one of"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\.0\.content.*text only"),
        (["hello"], r"messages\.0.*'hello'.*role and content"),
    ],
)
def test_wrong_chats_are_named(tmp_path: Path, turns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages(_file(tmp_path, {"messages": turns})).examples(1, 0, "chain")


def test_a_choices_gold_that_is_a_place_is_refused_by_its_own_field(tmp_path: Path) -> None:
    """MMLU counts from 0, other sets from 1."""
    row = {"question": "Which?", "choices": ["red", "blue"], "answer": 1}
    with pytest.raises(DataError, match=r"field 'answer': found .*a label from A to B.*0 or 1 may be the first"):
        jsonl(_file(tmp_path, row)).problems(1, 0)
