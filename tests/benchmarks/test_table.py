"""The declared benchmarks: every schema and its traps, on small rows that are written here."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from xreasoner.benchmarks.items import lettered
from xreasoner.benchmarks.listing import listing, page, shown
from xreasoner.benchmarks.opening import check_name, load, open_benchmark
from xreasoner.benchmarks.running import prompt_of
from xreasoner.benchmarks.table import TABLE
from xreasoner.errors import DataError, UserError
from xreasoner.grading import judge
from xreasoner.problem import Problem
from xreasoner.prompts import PROMPTS, chat_messages, render

Row = dict[str, Any]
COLOURS = {1: "red", 2: "lime", 3: "blue", 4: "black", 5: "white", 6: "yellow", 7: "cyan"}
RGB = {
    "red": (255, 0, 0),
    "lime": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
}


def encoded(colour: str, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(colour: str) -> Row:
    """As `datasets` keeps a picture in Parquet."""
    return {"bytes": encoded(colour), "path": None}


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def opened(name: str, data: Path, files: dict[str, Sequence[Row]], **changed: Any) -> list[Problem]:
    """The problems of a benchmark whose files are these; what is counted on load is the door for tests."""
    entry = TABLE[name]
    for file, rows in files.items():
        write(data / (entry.hub or name) / file, rows)
    whole = {"count": sum(len(rows) for rows in files.values()), "tallies": {}, "golds": {}}
    return list(load(replace(entry, **{**whole, **changed}), None, 0, data))


def colours(problem: Problem) -> list[str]:
    found = [each.getpixel((0, 0)) for each in problem.images]
    return [next(name for name, value in RGB.items() if value == pixel) for pixel in found]


def parts(problem: Problem, prompt: str = "brief") -> list[str]:
    """What the model is shown: texts, and "*" for each picture."""
    return [part.get("text", "*") for part in chat_messages(problem, prompt)[0]["content"]]


def right(problem: Problem, reply: str) -> bool:
    return judge(problem, f"<think> hm. </think> <answer>{reply}</answer>").correct


# --- text ----------------------------------------------------------------------------------------------------------


def test_gsm8k_takes_the_number_behind_the_hashes(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "answer": "She has 2*3=<<2*3=6>>6 and 4.\n#### 1,234"},
        {"question": "How many less?", "answer": "Less.\n#### -7."},
    ]
    first, second = opened("gsm8k", tmp_path, {"main/test-00000-of-00001.parquet": rows})
    assert (first.gold, second.gold) == ("1234", "-7")
    assert right(first, "1,234")
    assert not right(first, "6")
    assert prompt_of("gsm8k", first, None) == "paper-math"
    assert render(first, "paper-math").endswith("question: How many?")
    with pytest.raises(DataError, match=r"gsm8k: item 0: column 'answer' has no number"):
        opened("gsm8k", tmp_path, {"main/test-00000-of-00001.parquet": [{"question": "?", "answer": "6"}]})


def test_math500_and_aime(tmp_path: Path) -> None:
    row = {"problem": "Root?", "answer": "\\sqrt{51}", "subject": "Algebra", "level": 3, "unique_id": "test/a/1.json"}
    (problem,) = opened("math-500", tmp_path, {"test.jsonl": [row]})
    assert (problem.id, problem.gold, problem.answer_type, problem.family) == (
        "test/a/1.json",
        "\\sqrt{51}",
        "latex",
        "Algebra",
    )
    rows = [{"id": 60, "problem": "P", "answer": "073"}, {"id": 61, "problem": "Q", "answer": "385"}]
    padded, plain = opened("aime-2024", tmp_path, {"data/train-0.parquet": rows})
    assert (padded.gold, plain.gold, padded.id) == ("73", "385", "60")
    assert right(padded, "073")


def test_mmlu_pro_strips_options_and_knows_where_they_end(tmp_path: Path) -> None:
    row = {
        "question_id": 7,
        "question": "Q?",
        "options": [" one", "two\n", "three ", "N/A", "N/A"],
        "answer": "C",
        "answer_index": 2,
        "category": "health",
    }
    other = {**row, "question_id": 8, "category": "law"}
    files = {"data/test-00000-of-00001.parquet": [other, row]}
    (problem,) = opened("mmlu-pro-health", tmp_path, files, count=1)
    assert (problem.id, problem.options, problem.gold, problem.domain) == (
        "7",
        ("one", "two", "three"),
        "C",
        "clinical",
    )
    assert len(opened("mmlu-pro", tmp_path, files)) == 2
    with pytest.raises(DataError, match="'answer' is B, and 'answer_index' is 2"):
        opened("mmlu-pro", tmp_path, {"data/test-00000-of-00001.parquet": [{**row, "answer": "B"}]})
    with pytest.raises(DataError, match="item 7: the gold is 'D', and there are 3 options"):
        opened("mmlu-pro", tmp_path, {"data/test-00000-of-00001.parquet": [{**row, "answer": "D"}]})


def test_supergpqa_checks_letter_against_text(tmp_path: Path) -> None:
    row = {
        **{"uuid": "u1", "question": "Q?", "options": ["x", "y"], "answer": "y", "answer_letter": "B"},
        **{"discipline": "Medicine", "field": "Pharmacy", "subfield": "s", "difficulty": "easy"},
    }
    files = {"SuperGPQA-all.jsonl": [row, {**row, "uuid": "u2", "discipline": "Law"}]}
    (problem,) = opened("supergpqa-medicine", tmp_path, files, count=1)
    assert (problem.gold, problem.family, problem.domain) == ("B", "Pharmacy", "clinical")
    with pytest.raises(DataError, match="the gold is A, which is 'x', and the answer is 'y'"):
        opened("supergpqa", tmp_path, {"SuperGPQA-all.jsonl": [{**row, "answer_letter": "A"}]})


def gpqa_rows(ids: Sequence[str]) -> list[Row]:
    wrong = {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
    return [{"Record ID": name, "Question": "Q?", "Correct Answer": "10^-8 eV\n", **wrong} for name in ids]


def test_gpqa_is_shuffled_by_the_items_id_alone(tmp_path: Path) -> None:
    names = [f"rec{k}" for k in range(40)]
    problems = opened("gpqa-diamond", tmp_path, {"gpqa_diamond.csv": gpqa_rows(names)})
    again = opened("gpqa-diamond", tmp_path, {"gpqa_diamond.csv": gpqa_rows(names[::-1])})
    assert {p.id: p.options for p in problems} == {p.id: p.options for p in again}
    assert {p.gold for p in problems} == set("ABCD")  # the right one is not always first
    for p in problems:
        assert p.options["ABCD".index(p.gold)] == "10^-8 eV"


def test_mmlu_counts_from_0_and_names_the_subject_that_is_short(tmp_path: Path) -> None:
    row = {"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 3}
    subjects = (
        "anatomy",
        "clinical_knowledge",
        "college_biology",
        "college_medicine",
        "medical_genetics",
        "professional_medicine",
    )
    files = {f"{s}/test-00000-of-00001.parquet": [{**row, "subject": s}] for s in subjects}
    problems = opened("mmlu-medical-6", tmp_path, files)
    assert [p.family for p in problems] == list(subjects)
    assert {p.gold for p in problems} == {"D"}
    with pytest.raises(DataError, match=r"column 'subject' differ from the declared: anatomy: 1 and not 135"):
        open_benchmark("mmlu-medical-6", None, 0, tmp_path)
    with pytest.raises(DataError, match="option number 4 from 0, and there are 4"):
        opened(
            "mmlu-medical-6",
            tmp_path,
            {"anatomy/test-00000-of-00001.parquet": [{**row, "answer": 4, "subject": "a"}]},
            count=6,
        )


@pytest.mark.parametrize(
    "options",
    [{"A": "p", "B": "q", "C": "r", "D": "s"}, [{"key": k, "value": v} for k, v in zip("ABCD", "pqrs", strict=True)]],
    ids=["struct", "pairs"],
)
def test_medqa_reads_both_ways_of_writing_options(tmp_path: Path, options: Any) -> None:
    row = {"question": "Q?", "answer": "r", "options": options, "answer_idx": "C", "meta_info": "step1"}
    (problem,) = opened("medqa", tmp_path, {"phrases_no_exclude_test.jsonl": [row]})
    assert (problem.options, problem.gold, problem.domain) == (("p", "q", "r", "s"), "C", "clinical")
    with pytest.raises(DataError, match="the gold is C, which is 'r', and the answer is 'p'"):
        opened("medqa", tmp_path, {"phrases_no_exclude_test.jsonl": [{**row, "answer": "p"}]})


def test_medqa_5_is_read_from_the_archive_of_its_repository(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "t", "options": dict(zip("ABCDE", "pqrst", strict=True)), "answer_idx": "E"}
    folder = tmp_path / "bigbio" / "med_qa"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "data_clean.zip", "w") as archive:
        archive.writestr("data_clean/questions/US/test.jsonl", json.dumps(row) + "\n")
        archive.writestr("data_clean/questions/US/train.jsonl", "not this")
    (problem,) = opened("medqa-5", tmp_path, {}, count=1)
    assert (problem.gold, len(problem.options)) == ("E", 5)


def test_medmcqa_counts_from_0_and_a_copy_that_counts_from_1_is_refused(tmp_path: Path) -> None:
    row = {"id": "m", "question": "Q?", "opa": "p", "opb": "q", "opc": "r", "opd": "s", "subject_name": "Anatomy"}
    rows = [{**row, "id": f"m{k}", "cop": k} for k in (0, 0, 1, 3)]
    file = "data/validation-00000-of-00001.parquet"
    problems = opened("medmcqa", tmp_path, {file: rows}, golds={"A": 2, "B": 1, "D": 1})
    assert [p.gold for p in problems] == ["A", "A", "B", "D"]
    shifted = [{**each, "cop": min(each["cop"] + 1, 3)} for each in rows]
    with pytest.raises(DataError, match=r"golds differ from the declared: A: 0 and not 2"):
        opened("medmcqa", tmp_path, {file: shifted}, golds={"A": 2, "B": 1, "D": 1})
    with pytest.raises(DataError, match="option number -1"):
        opened("medmcqa", tmp_path, {file: [{**row, "cop": -1}]})


def test_pubmedqa_in_both_schemas(tmp_path: Path) -> None:
    data = {
        "Question": "Does it?",
        "Options": {"A": "yes", "B": "no", "C": "maybe"},
        "Context": ["It was done.", "It was seen."],
        "Correct Option": "C",
    }
    (nested,) = opened("pubmedqa", tmp_path, {"data/test-00000-of-00001.parquet": [{"id": "1", "data": data}]})
    flat_row = {"pubid": 1, "question": "Does it?", "context": {"contexts": data["Context"]}, "final_decision": "maybe"}
    (flat,) = opened("pubmedqa-1000", tmp_path, {"pqa_labeled/train-00000-of-00001.parquet": [flat_row]})
    assert nested.question == flat.question == "It was done.\nIt was seen.\nDoes it?\nAnswer yes, no or maybe."
    assert (nested.gold, flat.gold, flat.answer_type) == ("maybe", "maybe", "yesno")
    assert right(nested, "Maybe")
    assert not right(nested, "yes")


# --- pictures ------------------------------------------------------------------------------------------------------


def mmmu_row(**changed: Any) -> Row:
    images = {f"image_{k}": None for k in range(1, 8)}
    row = {
        "id": "validation_Pharmacy_4",
        "question": "Look at <image 1>. Which?",
        "options": "['<image 2>', \"it's\", '<image 1>']",
        "explanation": "",
        **images,
        "answer": "B",
        "question_type": "multiple-choice",
        "subfield": "s",
    }
    return {**row, **changed}


def test_mmmu_keeps_pictures_where_they_stand_and_leaves_the_explanations_out(tmp_path: Path) -> None:
    row = mmmu_row(image_1=picture("red"), image_2=picture("lime"), image_3=picture("blue"))
    (problem,) = opened("mmmu", tmp_path, {"Pharmacy/validation-00000-of-00001.parquet": [row]})
    assert colours(problem) == ["red", "lime"]
    assert problem.options == ("<image 2>", "it's", "(image 1)")
    assert parts(problem) == ["Look at ", "*", ". Which?\nA: ", "*", "\nB: it's\nC: (image 1)\nThink, then answer."]
    assert (problem.family, problem.gold) == ("Pharmacy", "B")


def test_mmmu_pictures_that_are_marked_out_of_order_keep_their_places(tmp_path: Path) -> None:
    row = mmmu_row(
        question="First <image 2>, then <image 1>, again <image 2>.",
        options="[]",
        answer="['8', 'eight']",
        question_type="open",
        image_1=picture("red"),
        image_2=picture("lime"),
    )
    (problem,) = opened("mmmu", tmp_path, {"Pharmacy/validation-00000-of-00001.parquet": [row]})
    assert parts(problem) == ["First ", "*", ", then ", "*", ", again (image 1).\nThink, then answer."]
    assert colours(problem) == ["lime", "red"]
    assert right(problem, "eight")
    assert right(problem, "8")
    assert not right(problem, "9")
    assert prompt_of("mmmu", problem, None) == "paper-train"  # there are no options "below"
    with pytest.raises(DataError, match=r"validation_Pharmacy_4: the text shows <image 1>, and there are images \[2\]"):
        opened("mmmu", tmp_path, {"Pharmacy/validation-00000-of-00001.parquet": [{**row, "image_1": None}]})


def test_mmmu_health_takes_five_subjects(tmp_path: Path) -> None:
    names = [
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ]
    row = mmmu_row(image_1=picture("red"), image_2=picture("blue"))
    files = {f"{s}/validation-0.parquet": [{**row, "id": f"validation_{s}_1"}] for s in [*names, "Music"]}
    problems = opened("mmmu-health", tmp_path, files, count=5)
    assert [p.family for p in problems] == names
    assert len(opened("mmmu", tmp_path, files)) == 6


def test_mmmu_pro_has_1_to_12_options_and_a_list_in_a_list(tmp_path: Path) -> None:
    def row(name: str, options: list[Any], answer: str, subject: str = "Pharmacy") -> Row:
        found = mmmu_row(id=name, options=str(options), answer=answer, image_1=picture("red"))
        return {**found, "subject": subject, "question": "See <image 1>"}

    rows = [
        row("one", ["only"], "A"),
        row("twelve", list("abcdefghijkl"), "L", "Music"),
        row("nested", [["p", "q"]], "B", "Music"),
        row("nested text", [str(["p", "q"])], "B", "Music"),
    ]
    problems = opened("mmmu-pro-10", tmp_path, {"standard (10 options)/test-00000-of-00002.parquet": rows})
    assert [len(p.options) for p in problems] == [1, 12, 2, 2]
    assert right(problems[1], "L")
    (health,) = opened("mmmu-pro-health", tmp_path, {}, count=1)
    assert (health.id, health.domain) == ("one", "clinical")


def test_mmmu_pro_vision_prints_no_options(tmp_path: Path) -> None:
    row = {"id": "v", "image": picture("blue"), "options": "['p', 'q']", "answer": "B", "subject": "Music"}
    (problem,) = opened("mmmu-pro-vision", tmp_path, {"vision/test-0.parquet": [row]})
    assert "A: p" not in render(problem, "paper-mc")
    assert colours(problem) == ["blue"]
    assert right(problem, "q")


def vista(**changed: Any) -> Row:
    row = {
        **{"pid": "1", "question": "Which?", "image": "images/1.jpg", "decoded_image": picture("red")},
        **{"choices": ["one", "two", "two"], "unit": None, "precision": None, "answer": "one", "query": "Hint: …"},
        **{"question_type": "multi_choice", "answer_type": "text", "metadata": {"task": "geometry"}},
    }
    return {**row, **changed}


def test_mathvista_golds_are_texts_and_units_and_places_belong_to_the_question(tmp_path: Path) -> None:
    free = {"question_type": "free_form", "choices": None}
    rows = [
        vista(),
        vista(pid="2", answer="two"),
        vista(pid="3", **free, answer_type="integer", answer="12", unit="years"),
        vista(pid="4", **free, answer_type="float", answer="1.46", precision=2.0),
        vista(pid="5", **free, answer_type="list", answer="[0.45, 0.6]", precision=2.0),
        vista(pid="6", choices=["B", "A"], answer="A"),
    ]
    problems = opened("mathvista", tmp_path, {"data/testmini-00000-of-00001-7256.parquet": rows})
    choice, double, integer, number, several, letters = problems
    assert choice.gold == "A"
    assert double.gold == "two"
    assert right(double, "B")
    assert right(double, "C")
    assert not right(double, "A")
    assert integer.question.endswith("(Unit: years) (Answer with an integer.)")
    assert right(number, "1.463")
    assert not right(number, "1.47")
    assert right(several, "[0.45, 0.60]")
    assert letters.gold == "B"  # the option that is called B has the text A
    assert [p.family for p in problems] == ["geometry"] * 6


def verse(**changed: Any) -> Row:
    row = {
        **{
            "sample_index": "1",
            "problem_index": "1",
            "problem_version": "Text Lite",
            "question": "Find x.\nChoices:\nA:50°\nB:60°\nC:70°\nD:80°",
        },
        **{"image": picture("red"), "answer": "C", "question_type": "multi-choice", "question_for_eval": ""},
    }
    return {**row, **changed}


def test_mathverse_prints_choices_once_and_vision_only_shows_them_in_the_picture(tmp_path: Path) -> None:
    rows = [
        verse(),
        verse(sample_index="2", problem_version="Vision Only", question="", question_for_eval=verse()["question"]),
        verse(sample_index="3", problem_index="2", question="Length?", question_type="free-form", answer="2 \\sqrt{3}"),
    ]
    text, vision, free = opened("mathverse", tmp_path, {"testmini.parquet": rows})
    assert (text.question, text.options, text.gold) == ("Find x.", ("50°", "60°", "70°", "80°"), "C")
    assert render(text, "paper-math").count("50°") == 1
    assert vision.options == text.options
    assert "50°" not in render(vision, "paper-math")
    assert right(vision, "70°")
    assert (free.answer_type, free.gold, free.family) == ("latex", "2 \\sqrt{3}", "Text Lite")
    assert [problem.cluster for problem in (text, vision, free)] == ["1", "1", "2"]


def vision_row(**changed: Any) -> Row:
    row = {
        **{"id": "1", "question": "<image1> Which of <image2> fits?", "options": [], "image": "images/1.jpg"},
        **{"decoded_image": picture("red"), "answer": "7", "solution": None, "level": 2, "subject": "algebra"},
    }
    return {**row, **changed}


def test_mathvision_repairs_golds_and_has_one_picture_for_all_marks(tmp_path: Path) -> None:
    rows = [
        vision_row(),
        vision_row(id="2", answer="\x0crac{36}{13}"),
        vision_row(id="3", answer="$\\boxed{11 }$"),
        vision_row(id="4", options=["A", "B", "C", "D", "E"], answer="D"),
        vision_row(id="5", options=["<image1>", "two"], question="Which?", answer="two"),
        vision_row(id="6", answer="C"),
    ]
    one, fraction, boxed, drawn, marked, hidden = opened(
        "mathvision", tmp_path, {"data/test-00000-of-00001-3532.parquet": rows}
    )
    assert parts(one)[:2] == ["*", " Which of (image 2) fits?\nThink, then answer."]
    assert len(one.images) == 1
    assert (fraction.gold, boxed.gold) == ("\\frac{36}{13}", "11")
    assert right(fraction, "36/13")
    assert "A: A" not in render(drawn, "paper-math")
    assert right(drawn, "D")
    assert (marked.gold, marked.options) == ("B", ("<image 1>", "two"))
    assert (hidden.answer_type, hidden.gold) == ("choice", "C")


def test_mmstar_holds_its_options_in_the_question(tmp_path: Path) -> None:
    asked = "Which is right?\nOptions: A: It is on the book., B: It is under the cat., C: No cat, no book, D: None"
    row = {"index": 0, "question": asked, "image": picture("red"), "answer": "B", "category": "coarse"}
    odd = {**row, "index": 1, "question": "What is it? (A) or (B)"}
    problem, whole = opened("mmstar", tmp_path, {"mmstar.parquet": [row, odd]})
    assert problem.question == "Which is right?"
    assert problem.options == ("It is on the book.", "It is under the cat.", "No cat, no book", "None")
    assert render(whole, "paper-mc").endswith("What is it? (A) or (B)")
    assert lettered("B: x, A: y") == ()


def test_medxpertqa_prints_options_once_and_keeps_the_pictures_order(tmp_path: Path) -> None:
    row = {
        "id": "MM-1",
        "question": "Figures A and B show?\nAnswer Choices: (A) Flu (B) Cold (C) Gout (D) Mumps (E) None",
        "options": {"A": "Flu", "B": "Cold", "C": "Gout", "D": "Mumps", "E": "None"},
        "label": "D",
        "images": ["b.png", "a.png"],
        "medical_task": "Diagnosis",
    }
    folder = tmp_path / "TsinghuaC3I" / "MedXpertQA"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("images/a.png", encoded("red"))
        archive.writestr("images/b.png", encoded("blue"))
    (problem,) = opened("medxpertqa-mm", tmp_path, {"MM/test.jsonl": [row]})
    assert problem.question == "Figures A and B show?"
    assert render(problem, "paper-mc").count("Mumps") == 1
    assert colours(problem) == ["blue", "red"]
    assert parts(problem)[:2] == ["*", "*"]  # no marks: all of them first
    text = {name: row[name] for name in row if name != "images"}
    (written,) = opened("medxpertqa-text", tmp_path, {"Text/test.jsonl": [text]})
    assert (written.modality, written.images) == ("text", ())
    with pytest.raises(DataError, match=r"medxpertqa-mm: item MM-1: its image 'c.png' is not below .*images\.zip"):
        opened("medxpertqa-mm", tmp_path, {"MM/test.jsonl": [{**row, "images": ["a.png", "c.png"]}]})


@pytest.mark.parametrize(("name", "count"), [("pathvqa", 6719), ("vqa-rad", 451)])
def test_visual_questions_are_closed_by_their_answer(tmp_path: Path, name: str, count: int) -> None:
    rows = [
        {"image": picture("red"), "question": "is it?", "answer": "Yes"},
        {"image": picture("blue"), "question": "where is it?", "answer": "in the Lung"},
    ]
    closed, free = opened(
        name, tmp_path, {"data/test-00000-of-00003.parquet": rows[:1], "data/test-00001.parquet": rows[1:]}
    )
    assert (closed.answer_type, closed.gold, closed.family) == ("yesno", "yes", "closed")
    assert (free.answer_type, free.family) == ("text", "open")
    assert right(free, "In the lung.")
    with pytest.raises(DataError, match=f"{name}: found 2 items, expected {count}"):
        open_benchmark(name, 1, 0, tmp_path)


def test_an_na_option_in_the_middle_keeps_its_label(tmp_path: Path) -> None:
    row = {
        **{"question_id": 7, "question": "Q?", "options": ["one", "N/A", "three", "N/A"], "answer": "C"},
        **{"answer_index": 2, "category": "law"},
    }
    (problem,) = opened("mmlu-pro", tmp_path, {"data/test-00000-of-00001.parquet": [row]})
    assert problem.options == ("one", "N/A", "three")
    assert right(problem, "three")


def test_mmmus_open_numbers_are_rounded_to_two_places(tmp_path: Path) -> None:
    def item(number: int, gold: str) -> Row:
        return mmmu_row(id=f"validation_Math_{number}", question="Q?", question_type="open", options="[]", answer=gold)

    rows = [item(1, "24.38"), item(2, "1,000"), item(3, "['two', '2']"), item(4, "B cell")]
    number, thousand, listed, word = opened("mmmu", tmp_path, {"Math/validation-00000-of-00001.parquet": rows})
    assert right(number, "24.375")
    assert not right(number, "24.4")
    assert right(thousand, "1000")
    assert right(listed, "two")
    assert right(listed, "2")
    assert right(word, "b cell")


def test_slake_is_english_and_closed_is_more_than_yes_or_no(tmp_path: Path) -> None:
    row = {
        **{
            "img_id": 1,
            "img_name": "xmlab1/source.jpg",
            "question": "Left or right?",
            "answer": "Left",
            "q_lang": "en",
        },
        **{"answer_type": "CLOSED", "qid": 10, "modality": "CT"},
    }
    rows = [
        row,
        {**row, "qid": 11, "q_lang": "zh"},
        {**row, "qid": 12, "answer": "No", "img_name": "xmlab2/source.jpg"},
    ]
    folder = tmp_path / "BoKelvin" / "SLAKE"
    for name, colour in (("xmlab1", "red"), ("xmlab2", "blue")):
        (folder / "imgs" / name).mkdir(parents=True)
        (folder / "imgs" / name / "source.jpg").write_bytes(encoded(colour))
    left, no = opened("slake", tmp_path, {"test.json": rows}, count=2)
    assert (left.answer_type, left.family, no.answer_type, no.gold) == ("text", "closed", "yesno", "no")
    assert (colours(left), colours(no)) == (["red"], ["blue"])  # files of one name in two folders


def test_omnimedvqa_has_2_to_4_options_and_golds_as_texts(tmp_path: Path) -> None:
    row = {
        **{
            "dataset": "ISIC",
            "question_id": "q1",
            "question_type": "Modality",
            "question": "Kind?",
            "gt_answer": "MRI",
        },
        **{"option_A": "CT", "option_B": "MRI", "modality_type": "MR", "image_path": "Images/ISIC/1.png"},
    }
    four = {**row, "question_id": "q2", "option_C": "X-ray", "option_D": "PET", "gt_answer": "pet"}
    folder = tmp_path / "foreverbeliever" / "OmniMedVQA"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "OmniMedVQA.zip", "w") as archive:
        archive.writestr("OmniMedVQA/QA_information/Open-access/ISIC.json", json.dumps([row, four]))
        archive.writestr("OmniMedVQA/QA_information/Restricted-access/X.json", json.dumps([row]))
        archive.writestr("OmniMedVQA/Images/ISIC/1.png", encoded("red"))
    two, more = opened("omnimedvqa", tmp_path, {}, count=2)
    assert (len(two.options), two.gold, len(more.options), more.gold) == (2, "B", 4, "D")
    assert colours(two) == ["red"]
    with pytest.raises(DataError, match="found 2 items, expected 88996 or 89195"):
        open_benchmark("omnimedvqa", 1, 0, tmp_path)


def test_pmc_vqa_takes_the_labels_off_its_choices_and_never_shows_a_caption(tmp_path: Path) -> None:
    choices = {f"Choice {letter}": f" {letter}: text {letter} " for letter in "ABCD"}
    row = {"Figure_path": "f1.jpg", "Caption": "the secret", "Question": " What? ", **choices, "Answer_label": "C"}
    folder = tmp_path / "RadGenome" / "PMC-VQA" / "figures"
    folder.mkdir(parents=True)
    (folder / "f1.jpg").write_bytes(encoded("red"))
    (problem,) = opened("pmc-vqa", tmp_path, {"test_clean.csv": [row]})
    assert (problem.question, problem.options[2], problem.gold) == ("What?", "text C", "C")
    assert "secret" not in render(problem, "paper-mc")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_nejm_is_a_local_copy_in_any_of_five_formats(tmp_path: Path, suffix: str) -> None:
    shown = base64.b64encode(encoded("red", (64, 64))).decode() if suffix == "tsv" else "case1.png"
    row = {"question": "What is it?", "options": str(["Lupus", "Gout"]), "answer": "Gout", "image": shown}
    write(tmp_path / "nejm" / f"nejm.{suffix}", [row])
    (tmp_path / "nejm" / "case1.png").write_bytes(encoded("red"))
    (problem,) = open_benchmark("nejm", None, 0, tmp_path)
    assert (problem.gold, colours(problem)) == ("B", ["red"])
    with pytest.raises(DataError, match="NEJM does not hand out"):
        open_benchmark("nejm", None, 0)


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_file_by_the_benchmarks_own_name_serves_too(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", [{"question": "Q", "answer": "#### 5"}])
    assert load(replace(TABLE["gsm8k"], count=1), None, 0, tmp_path)[0].gold == "5"


def test_limit_does_not_defeat_the_check_and_more_items_hold_the_fewer(tmp_path: Path) -> None:
    rows = [{"question": f"Q{k}", "answer": f"#### {k}"} for k in range(50)]
    write(tmp_path / "gsm8k.jsonl", rows)
    with pytest.raises(DataError, match="found 50 items, expected 1319"):
        open_benchmark("gsm8k", 3, 0, tmp_path)
    entry = replace(TABLE["gsm8k"], count=50)
    few, more, other = ([p.id for p in load(entry, n, seed, tmp_path)] for n, seed in ((5, 0), (20, 0), (20, 1)))
    assert set(few) < set(more) != set(other)
    assert more == sorted(more, key=int)


def test_a_wrong_schema_names_the_column(tmp_path: Path) -> None:
    write(tmp_path / "openai" / "gsm8k" / "main" / "test-0.parquet", [{"question": "Q", "solution": "#### 5"}])
    with pytest.raises(DataError, match="has no column 'answer'; found: question, solution"):
        open_benchmark("gsm8k", 1, 0, tmp_path)
    write(tmp_path / "slake.json", [{"question": "Q"}])
    with pytest.raises(DataError, match=r"slake\.json:1: item 1: row has no column 'img_name', "):
        open_benchmark("slake", 1, 0, tmp_path)


@pytest.mark.parametrize("content", [b"{\n", b"\xff\xfe", b"\xff\xfeA", b"PAR1 and no more"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("gsm8k.parquet" if content.startswith(b"PAR1") else "gsm8k.jsonl")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"gsm8k\.\w+(:\d+)?: (cannot be read|is empty)"):
        open_benchmark("gsm8k", 1, 0, tmp_path)


def test_a_damaged_picture_names_its_item(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"no picture", "path": None}, "question": "is it?", "answer": "yes"}]
    with pytest.raises(DataError, match=r"item vqa-rad/0: image of vqa-rad/0: text"):
        opened("vqa-rad", tmp_path, {"data/test-0.parquet": rows})


def test_missing_data_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gsm8k: none of its files is below .*openai/gsm8k/main/test-\*\.parquet"):
        open_benchmark("gsm8k", 1, 0, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_benchmark("gsm8k", 1, 0, tmp_path / "nowhere")


def test_the_hubs_refusal_is_one_line_that_names_data_and_the_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_benchmark("gpqa-diamond", 1, 0)
    text = str(caught.value)
    assert "\n" not in text
    assert "--data DIR" in text
    assert "accept the terms at https://huggingface.co/datasets/Idavidrein/gpqa" in text


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'gpqa-diamond'"):
        check_name("gpqa-dimond")
    with pytest.raises(UserError, match="did you mean 'gym:gcd'"):
        check_name("gym:gdc")


def test_reasoning_gym_is_judged_by_its_own_scorer() -> None:
    for name in ("gym:gcd", "gym:spell_backward", "gym:countdown"):
        problems = open_benchmark(name, 3, 1)
        assert [p.id for p in problems] == [f"{name[4:]}-1-{k}" for k in range(3)]
        assert problems == open_benchmark(name, 3, 1)
        for p in problems:
            assert p.answer_type == "gym"
    assert right(open_benchmark("gym:gcd", 1, 1)[0], open_benchmark("gym:gcd", 1, 1)[0].gold)


def test_easy_vqa_is_whole() -> None:
    assert len(open_benchmark("easy-vqa", 9673, 0)) == 9673


def test_the_table_is_sound_and_complete() -> None:
    issue = """gsm8k math-500 aime-2024 aime-2025 mmlu-pro supergpqa gpqa-diamond mmmu mmmu-pro-10 mmmu-pro-4
        mmmu-pro-vision mathvista mathverse mathvision mmstar medqa medqa-5 medmcqa pubmedqa mmlu-medical-6
        mmlu-medical-9 mmlu-pro-health supergpqa-medicine mmmu-health mmmu-pro-health medxpertqa-text medxpertqa-mm
        pathvqa slake vqa-rad omnimedvqa pmc-vqa nejm"""
    assert set(issue.split()) <= set(TABLE)
    for name, entry in TABLE.items():
        assert entry.prompt in PROMPTS, name
        assert entry.licence, name
        assert (entry.domain, entry.modality) in {(d, m) for d in ("general", "clinical") for m in ("text", "image")}
        for counts in [*entry.tallies.values(), *([entry.golds] if entry.golds else [])]:
            assert sum(counts.values()) == entry.count, name
    assert len(listing()) > len(TABLE)
    assert "accept the terms" in shown()


def test_the_benchmarks_page_is_the_table() -> None:
    path = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    assert path.read_text() == page(), "run `make docs`"
