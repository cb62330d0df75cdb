"""The public data sets by their true schemas, as the hub's folders hold them; wrong fields are named with their row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from xreasoner.data.public import boxed, medmcqa, medqa, openthoughts, orz
from xreasoner.data.sources import Source
from xreasoner.errors import DataError, RecipeError

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
- config_name: metadata
  data_files:
  - split: train
    path: metadata/train-*
---
"""
REPLY = (
    "<|begin_of_thought|>\n\nTwo and two.\n\nFour.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    "The sum is \\boxed{4}.\n\n<|end_of_solution|>"
)
CONVERSATION = {
    "system": "Your role as an assistant involves thoroughly exploring questions",
    "conversations": [
        {"from": "user", "value": "Return your final response within \\boxed{}. What is 2+2?"},
        {"from": "assistant", "value": REPLY},
    ],
}
METADATA = {
    "problem": "What is 2+2?",
    "deepseek_reasoning": "Two and two.",
    "deepseek_solution": "It is \\boxed{4}.",
    "ground_truth_solution": "Add: $2+2=\\boxed{4}$.",
    "domain": "math",
    "source": "numina_math",
    "test_cases": None,
    "starter_code": None,
}
PAIR = [{"from": "human", "value": "What is $2^3$?"}, {"from": "assistant", "ground_truth": {"value": "8"}}]
USMLE = {
    "question": "A 23-year-old woman presents with dysuria. What is best?",
    "answer": "Nitrofurantoin",
    "options": {"A": "Ampicillin", "B": "Ceftriaxone", "C": "Doxycycline", "D": "Nitrofurantoin"},
    "meta_info": "step2&3",
    "answer_idx": "D",
    "metamap_phrases": ["woman", "dysuria"],
}
MCQA = {
    "id": "e9ad821a",
    "question": "Which nerve is hurt?",
    "opa": "Ulnar",
    "opb": "Radial",
    "opc": "Median",
    "opd": "Axillary",
    "cop": 2,
    "choice_type": "single",
    "exp": None,
    "subject_name": "Anatomy",
    "topic_name": None,
}


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_openthoughts_conversations_as_the_hub_lays_them_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", CONVERSATION)
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", CONVERSATION)
    parquet(tmp_path / "metadata" / "train-00000-of-00001.parquet", METADATA)
    source = openthoughts({"path": str(tmp_path)})
    first, second = source.examples(5, 0, "chain")
    assert first.response == second.response
    assert first.response == (
        "<think>\nTwo and two.\n\nFour.\n</think>\nThe sum is \\boxed{4}.\n<answer>\n4\n</answer>"
    )
    assert first.problem.question.endswith("What is 2+2?")
    assert "Your role" not in first.problem.question
    assert (first.problem.domain, first.problem.modality) == ("general", "text")
    with pytest.raises(DataError, match=r"train-0000\d-of-00002.parquet: row 1: has no gold answer"):
        source.problems(1, 0)


def test_openthoughts_metadata_has_golds_for_mathematics_alone(tmp_path: Path) -> None:
    parquet(tmp_path / "metadata" / "train-00000-of-00001.parquet", METADATA)
    source = openthoughts({"path": str(tmp_path), "config": "metadata"})
    (example,) = source.examples(1, 0, "chain")
    assert example.response == "<think>\nTwo and two.\n</think>\nIt is \\boxed{4}.\n<answer>\n4\n</answer>"
    assert (example.problem.gold, example.problem.family) == ("4", "math")
    code = {**METADATA, "domain": "code", "ground_truth_solution": None, "starter_code": "def f(x):"}
    parquet(tmp_path / "metadata" / "train-00000-of-00001.parquet", code)
    (example,) = source.examples(1, 0, "chain")
    assert (example.problem.gold, example.problem.question) == ("", "What is 2+2?\ndef f(x):")
    with pytest.raises(DataError, match="has no gold answer"):
        source.examples(1, 0, "direct")


def test_orz_pairs(tmp_path: Path) -> None:
    path = tmp_path / "orz_math_57k_collected.json"
    path.write_text(json.dumps([PAIR, [PAIR[0], {**PAIR[1], "ground_truth": {"value": "\\frac{1}{2}"}}]]))
    for where in (path, tmp_path):
        problems = orz({"path": str(where)}).problems(5, 0)
        assert sorted(p.gold for p in problems) == ["8", "\\frac{1}{2}"]
        assert {p.question for p in problems} == {"What is $2^3$?"}
    assert orz({"path": str(path)}).examples(1, 0, "direct")[0].response.startswith("<answer>")
    with pytest.raises(DataError, match="data distill"):
        orz({"path": str(path)}).examples(1, 0, "chain")


@pytest.mark.parametrize("count", [4, 5])
def test_medqa_with_four_options_and_with_five(tmp_path: Path, count: int) -> None:
    row: dict[str, Any] = dict(USMLE)
    if count == 5:  # the five-option release lists its options
        texts = {**USMLE["options"], "E": "Rest"}  # type: ignore[dict-item]
        row["options"] = [{"key": label, "value": text} for label, text in texts.items()]
    (tmp_path / "phrases_no_exclude_train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "phrases_no_exclude_test.jsonl").write_text(json.dumps({**row, "question": "A test item?"}) + "\n")
    (problem,) = medqa({"path": str(tmp_path)}).problems(9, 0)
    assert (problem.gold, problem.options[3], len(problem.options)) == ("D", "Nitrofurantoin", count)
    assert (problem.domain, problem.answer_type) == ("clinical", "choice")
    (test,) = medqa({"path": str(tmp_path), "split": "test"}).problems(9, 0)
    assert test.question == "A test item?"


def test_medmcqa_counts_from_nought_or_from_one(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", MCQA)
    (problem,) = medmcqa({"path": str(tmp_path)}).problems(1, 0)
    assert (problem.gold, problem.id, problem.family) == ("C", "e9ad821a", "Anatomy")
    (problem,) = medmcqa({"path": str(tmp_path), "first": 1}).problems(1, 0)
    assert problem.gold == "B"


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (openthoughts, {"conversations": []}, r"rows.jsonl:2: field 'conversations'.*user's and an assistant's"),
        (openthoughts, {"system": "x"}, "rows.jsonl:2: field 'conversations' is missing; found system"),
        (
            openthoughts,
            {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "no markers"}]},
            r"conversations\.1\.value.*no markers.*begin_of_thought",
        ),
        (orz, {"0": PAIR[0], "1": {"from": "assistant"}}, "rows.jsonl:2: field '1'.*ground_truth"),
        (orz, {"0": {"value": "q"}, "1": PAIR[1]}, "rows.jsonl:2: field '0'.*from: human"),
        (
            medqa,
            {**USMLE, "answer_idx": "E"},
            "rows.jsonl:2: field 'answer_idx': found 'E', expected one of A, B, C, D",
        ),
        (medqa, {**USMLE, "answer": "Rest"}, "rows.jsonl:2: field 'answer'.*the text of option D"),
        (medqa, {**USMLE, "options": {"A": "x", "C": "y"}}, "field 'options'.*by their labels"),
        (medmcqa, {**MCQA, "cop": -1}, "rows.jsonl:2: field 'cop': found -1, expected a number from 0 to 3"),
        (medmcqa, {**MCQA, "opc": ""}, "rows.jsonl:2: field 'opc'"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path: Path, source: Any, row: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    read: Source = source({"path": str(path)})
    with pytest.raises(DataError, match=message):
        _ = read.examples(1, 0, "chain") if source is openthoughts else read.problems(1, 0)


def test_unknown_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'revision'"):
        orz({"revison": "main"})
    with pytest.raises(RecipeError, match=r"options\.config: found 'meta'"):
        openthoughts({"config": "meta"})
    with pytest.raises(RecipeError, match=r"options\.first: found 2"):
        medmcqa({"first": 2})


def test_a_data_set_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/nothing.*hf download --repo-type dataset"):
        medqa({"path": "nobody/nothing"}).problems(1, 0)


def test_the_last_box_counts_braces() -> None:
    assert boxed(r"first \boxed{1}, then \boxed{\frac{1}{2}} done") == r"\frac{1}{2}"
    assert boxed("none") == boxed(r"open \boxed{1") == ""
