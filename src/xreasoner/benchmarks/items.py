"""From a row of a data set, in that data set's own schema, to an item: one small function for each schema.

Every function takes (row, name) and returns an `Item`; `ValueError` says what a row lacks. The traps that they know:
options that the question holds already, several pictures and their marks, pictures that belong to the explanation,
golds that count from 0, golds that are texts, lists written as text, and choices that carry their labels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xreasoner.grading.rescoring import option_texts
from xreasoner.problem import LABELS, AnswerType

Row = Mapping[str, Any]
_MARK = re.compile(r"<image ?(\d+)>")
_HASHES = re.compile(r"####\s*(-?[\d.,]+)")


@dataclass(frozen=True, slots=True)
class Item:
    """What a row asks. pictures: as the row has them (bytes, a file's name, …), in the order in which they are shown.

    cluster: the problem of which several items are versions, if any (items about one image are a cluster anyway).
    meta["options_shown"]: the question or the picture shows the options already; the prompt must not print them again.
    """

    question: str
    gold: str
    kind: AnswerType
    options: tuple[str, ...] = ()
    pictures: tuple[Any, ...] = ()
    family: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""


# --- what several schemas share ------------------------------------------------------------------------------------


def texts(options: object) -> tuple[str, ...]:
    """Options as plain texts, whatever way a data set writes them, with no space around them."""
    return tuple(text.strip() for text in option_texts(options))


def label_at(index: int, options: Sequence[str]) -> str:
    """The label of an option that is given by its place, from 0."""
    if not 0 <= index < len(options):
        raise ValueError(f"the gold is option number {index} from 0, and there are {len(options)} options")
    return LABELS[index]


def label_in(gold: object, options: Sequence[str]) -> str:
    """A gold label, where there is an option for it."""
    label = str(gold).strip().strip("().").upper()
    if label not in LABELS[: len(options)] or len(label) != 1:
        raise ValueError(f"the gold is {gold!r}, and there are {len(options)} options")
    return label


def label_of(gold: object, options: Sequence[str]) -> str:
    """The label of the option that a gold text is; the text itself where several options are this text."""
    text = str(gold).strip()
    places = [place for place, option in enumerate(options) if option == text]
    places = places or [place for place, option in enumerate(options) if option.casefold() == text.casefold()]
    if not places:
        raise ValueError(f"the gold is {text!r}, and no option is that text: {list(options)!r}")
    return LABELS[places[0]] if len(places) == 1 else text


def checked(label: str, options: Sequence[str], text: object) -> str:
    """The label, where the data set's own text of the right answer is the option that it names."""
    if options[LABELS.index(label)].casefold() != str(text).strip().casefold():
        raise ValueError(f"the gold is {label}, which is {options[LABELS.index(label)]!r}, and the answer is {text!r}")
    return label


def shuffled(options: Sequence[str], name: str) -> tuple[str, ...]:
    """The options in an order that follows from the item's name alone."""
    return tuple(sorted(options, key=lambda option: hashlib.sha256(f"{name}/{option}".encode()).digest()))


def lettered(text: str) -> tuple[str, ...]:
    """The options of "A: one, B: two" or "(A) one (B) two"; () where the text is no such list from A on."""
    cuts: list[tuple[int, int]] = []
    for label in LABELS:
        mark = re.compile(rf"(?:^|(?<=[\s,;]))\(?{label}\s*[:.)]\s*").search(text, cuts[-1][1] if cuts else 0)
        if mark is None:
            break
        cuts.append(mark.span())
    if len(cuts) < 2 or text[: cuts[0][0]].strip():
        return ()
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return tuple(text[begin:end].strip().rstrip(",;").strip() for (_, begin), end in zip(cuts, ends, strict=True))


def cut_options(question: str, heading: str) -> tuple[str, tuple[str, ...]]:
    """The question without the options that it ends with behind a heading, and these; unchanged where it has none."""
    head, found, tail = question.rpartition(heading)
    options = lettered(tail.strip()) if found else ()
    return (head.strip(), options) if options else (question, ())


def placed(
    question: str, options: Sequence[str], pictures: Mapping[int, Any]
) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
    """The texts with marks `<image 1>`, `<image 2>`, … in the order of the pictures, and the pictures so ordered.

    pictures: by the number that the marks call them. A picture stands where it is marked first, later marks become
    words; without any marks all pictures come first, in order. Pictures that no mark names are left out: they belong
    to the explanation. Raises `ValueError` for a mark whose picture is not there.
    """
    order: list[int] = []

    def mark(match: re.Match[str]) -> str:
        number = int(match[1])
        if number not in pictures:
            raise ValueError(f"the text shows {match[0]}, and there are images {sorted(pictures)}")
        if number in order:
            return f"(image {order.index(number) + 1})"
        order.append(number)
        return f"<image {len(order)}>"

    question = _MARK.sub(mark, question)
    marked = tuple(_MARK.sub(mark, option) for option in options)
    return question, marked, tuple(pictures[number] for number in (order or sorted(pictures)))


def cleaned_gold(gold: object) -> str:
    r"""A gold in LaTeX without what went wrong in its file: \f read as a form feed, $…$, \boxed{…}, spaces."""
    text = str(gold).replace("\x0c", "\\f").strip().strip("$").strip()
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", text, flags=re.DOTALL)
    return boxed[1].strip() if boxed else text


def _integer(value: object) -> str:
    text = str(value).strip()
    if not re.fullmatch(r"-?\d+", text):
        raise ValueError(f"the gold is {value!r}, expected an integer")
    return str(int(text))


# --- text, general -------------------------------------------------------------------------------------------------


def gsm8k(row: Row, name: str) -> Item:
    """The gold stands behind `####` at the end of the solution, with commas in large numbers."""
    found = _HASHES.search(row["answer"])
    if found is None:
        raise ValueError("column 'answer' has no number behind ####")
    return Item(row["question"], found[1].replace(",", "").rstrip("."), "number")


def math500(row: Row, name: str) -> Item:
    return Item(row["problem"], cleaned_gold(row["answer"]), "latex", family=str(row["subject"]))


def aime(row: Row, name: str) -> Item:
    """Integers from 0 to 999; some copies write 73 as 073."""
    return Item(row["problem"], _integer(row["answer"]), "integer")


def mmlu_pro(row: Row, name: str) -> Item:
    """3 to 10 options, with spaces around them, and in old copies filled up with "N/A" at the end. An "N/A" before the
    last option is an option: without it the labels behind it would name other texts."""
    options = list(texts(row["options"]))
    while options and options[-1] == "N/A":
        options.pop()
    gold = label_in(row["answer"], options)
    if label_at(int(row["answer_index"]), options) != gold:
        raise ValueError(f"column 'answer' is {gold}, and 'answer_index' is {row['answer_index']} (from 0)")
    return Item(row["question"], gold, "choice", tuple(options), family=row["category"])


def supergpqa(row: Row, name: str) -> Item:
    options = texts(row["options"])
    gold = checked(label_in(row["answer_letter"], options), options, row["answer"])
    return Item(row["question"], gold, "choice", options, family=row["field"])


def gpqa(row: Row, name: str) -> Item:
    """The right answer comes first in the file; the order shown follows from the item's name."""
    wrong = [str(row[f"Incorrect Answer {k}"]).strip() for k in (1, 2, 3)]
    right = str(row["Correct Answer"]).strip()
    options = shuffled([right, *wrong], name)
    return Item(row["Question"], label_of(right, options), "choice", options)


def mmlu(row: Row, name: str) -> Item:
    """The gold is the option's place, from 0."""
    options = texts(row["choices"])
    return Item(row["question"], label_at(int(row["answer"]), options), "choice", options, family=row["subject"])


# --- pictures, general ---------------------------------------------------------------------------------------------


def _numbered_pictures(row: Row) -> dict[int, Any]:
    return {k: row[f"image_{k}"] for k in range(1, 8) if row.get(f"image_{k}") is not None}


def mmmu(row: Row, name: str) -> Item:
    """Options are a list written as text; open golds may be one too. Marks stand in the question and in options."""
    question, options, pictures = placed(row["question"], texts(row["options"]), _numbered_pictures(row))
    family = name.removeprefix("validation_").rpartition("_")[0]
    if row["question_type"] == "multiple-choice":
        return Item(question, label_in(row["answer"], options), "choice", options, pictures, family)
    gold = str(row["answer"]).strip()
    if re.fullmatch(r"[-+]?[\d,]*\.?\d+", gold):
        return Item(
            question, gold, "number", (), pictures, family, {"precision": 2}
        )  # MMMU's own rule rounds to 2 places
    return Item(question, gold, "text", (), pictures, family)


def mmmu_pro(row: Row, name: str) -> Item:
    """1 to 12 options, one row of them a list in a list."""
    question, options, pictures = placed(row["question"], texts(row["options"]), _numbered_pictures(row))
    return Item(question, label_in(row["answer"], options), "choice", options, pictures, row["subject"])


def mmmu_pro_vision(row: Row, name: str) -> Item:
    """Question and options stand in the picture alone."""
    options = texts(row["options"])
    question = "Answer the multiple-choice question that the picture shows."
    gold = label_in(row["answer"], options)
    return Item(question, gold, "choice", options, (row["image"],), row["subject"], {"options_shown": True})


def mathvista(row: Row, name: str) -> Item:
    """The gold of a choice is its text; units and decimal places belong to the question."""
    unit = row.get("unit")
    question = f"{row['question']} (Unit: {unit})" if unit else row["question"]
    picture = (row["decoded_image"] if row.get("decoded_image") is not None else row["image"],)
    family = str((row.get("metadata") or {}).get("task", ""))
    if row["question_type"] == "multi_choice":
        options = texts(row["choices"])
        return Item(question, label_of(row["answer"], options), "choice", options, picture, family)
    kinds: dict[str, AnswerType] = {"integer": "integer", "float": "number", "list": "list", "text": "text"}
    kind = kinds.get(row["answer_type"])
    if kind is None:
        raise ValueError(f"column 'answer_type' is {row['answer_type']!r}; expected one of {', '.join(kinds)}")
    meta: dict[str, Any] = {}
    if kind == "integer":
        question += " (Answer with an integer.)"  # as the data set's own query does
    if kind in ("number", "list") and row.get("precision") is not None:
        meta["precision"] = int(row["precision"])
        question += f" (Answer with {meta['precision']} decimal places.)"
    return Item(question, str(row["answer"]), kind, (), picture, family, meta)


def mathverse(row: Row, name: str) -> Item:
    """The question ends with its choices; under Vision Only it is empty, and the picture shows all of it."""
    family, asked, problem = row["problem_version"], row["question"].strip(), str(row["problem_index"])
    question, options = cut_options(asked, "Choices:")
    if row["question_type"] != "multi-choice":
        kind: AnswerType = "latex"
        question = question or "Answer the question that the picture shows."
        return Item(question, cleaned_gold(row["answer"]), kind, (), (row["image"],), family, cluster=problem)
    hidden = not options
    if hidden:
        options = cut_options(str(row.get("question_for_eval") or ""), "Choices:")[1] or tuple("ABCD")
        question = asked or "Answer the multiple-choice question that the picture shows."
    meta = {"options_shown": True} if hidden else {}
    gold = label_in(row["answer"], options)
    return Item(question, gold, "choice", options, (row["image"],), family, meta, cluster=problem)


def mathvision(row: Row, name: str) -> Item:
    """One picture for all marks; options may be drawn in it, and are then called A to E."""
    picture = row["decoded_image"] if row.get("decoded_image") is not None else row["image"]
    options, gold = texts(row["options"]), cleaned_gold(row["answer"])
    if not options and re.fullmatch("[A-E]", gold):
        options = tuple("ABCDE")
    marks = [int(number) for number in _MARK.findall(" ".join([row["question"], *options]))]
    question, options, _ = placed(row["question"], options, dict.fromkeys(marks or [1], picture))
    question, *rest = (_one_picture(text) for text in (question, *options))
    if not options:
        return Item(question, gold, "latex", (), (picture,), row["subject"])
    meta = {"options_shown": True} if options == tuple("ABCDE") else {}
    label = gold if len(gold) == 1 and gold in LABELS[: len(options)] else label_of(gold, options)
    return Item(question, label, "choice", tuple(rest), (picture,), row["subject"], meta)


def _one_picture(text: str) -> str:
    """Marks of parts of one merged picture: the first stays, the others become words."""
    return _MARK.sub(lambda match: match[0] if match[1] == "1" else f"(image {match[1]})", text)


def mmstar(row: Row, name: str) -> Item:
    """The question ends with its options."""
    question, options = cut_options(row["question"], "Options:")
    meta = {} if options else {"options_shown": True}
    options = options or tuple("ABCD")
    gold = label_in(row["answer"], options)
    return Item(question, gold, "choice", options, (row["image"],), row["category"], meta)


# --- medicine ------------------------------------------------------------------------------------------------------


def medqa(row: Row, name: str) -> Item:
    """Options as {"A": text} or [{"key", "value"}]; the gold both as label and as text."""
    options = texts(row["options"])
    gold = checked(label_in(row["answer_idx"], options), options, row["answer"])
    return Item(row["question"], gold, "choice", options)


def medmcqa(row: Row, name: str) -> Item:
    """The gold counts from 0 here (from 1 in other copies: the golds' numbers on load tell); -1 is withheld."""
    options = texts([row[f"op{letter}"] for letter in "abcd"])
    return Item(row["question"], label_at(int(row["cop"]), options), "choice", options, family=row["subject_name"])


def _abstract(contexts: Sequence[str], question: str) -> str:
    return "\n".join([*(str(text).strip() for text in contexts), question.strip()]) + "\nAnswer yes, no or maybe."


def pubmedqa(row: Row, name: str) -> Item:
    """The abstract without its conclusion, and the question."""
    question = _abstract(row["context"]["contexts"], row["question"])
    return Item(question, row["final_decision"].strip().lower(), "yesno")


def pubmedqa_nested(row: Row, name: str) -> Item:
    """The same where all of it lies under `data`, with options in words."""
    data = row["data"]
    gold = str(data["Options"][data["Correct Option"]]).strip().lower()
    return Item(_abstract(data["Context"], data["Question"]), gold, "yesno")


def medxpertqa(row: Row, name: str) -> Item:
    """The question ends with "Answer Choices: …" already. Pictures by their files' names, with no marks in the text."""
    options = texts(row["options"])
    question, within = cut_options(row["question"], "Answer Choices:")
    shown = "Answer Choices:" in row["question"] and len(within) != len(options)
    question, meta = (row["question"], {"options_shown": True}) if shown else (question, {})
    pictures = tuple(row.get("images") or ())
    return Item(question, label_in(row["label"], options), "choice", options, pictures, row["medical_task"], meta)


def visual_question(row: Row, name: str) -> Item:
    """PathVQA and VQA-RAD: closed is what is answered with yes or no."""
    gold = str(row["answer"]).strip()
    closed = gold.casefold() in ("yes", "no")
    kind: AnswerType = "yesno" if closed else "text"
    gold = gold.lower() if closed else gold
    return Item(row["question"], gold, kind, (), (row["image"],), "closed" if closed else "open")


def slake(row: Row, name: str) -> Item:
    """Closed is what the data set says is closed; not all of that is yes or no."""
    gold = str(row["answer"]).strip()
    kind: AnswerType = "yesno" if gold.casefold() in ("yes", "no") else "text"
    gold = gold.lower() if kind == "yesno" else gold
    return Item(row["question"], gold, kind, (), (row["img_name"],), row["answer_type"].lower())


def omnimedvqa(row: Row, name: str) -> Item:
    """2 to 4 options, the keys of others missing; the gold is the option's text."""
    found = [row.get(f"option_{letter}") for letter in "ABCD"]
    options = texts([text for text in found if text not in (None, "")])
    gold = label_of(row["gt_answer"], options)
    return Item(row["question"], gold, "choice", options, (row["image_path"],), row["modality_type"])


def pmc_vqa(row: Row, name: str) -> Item:
    """Choices carry their labels (" A: text "); a caption, where there is one, would give the answer away."""
    options = tuple(re.sub(rf"^\s*{letter}\s*:\s*", "", str(row[f"Choice {letter}"])).strip() for letter in "ABCD")
    return Item(
        row["Question"].strip(), label_in(row["Answer_label"], options), "choice", options, (row["Figure_path"],)
    )


def local_choice(row: Row, name: str) -> Item:
    """Our own schema for local copies: question, options, answer (a label or an option's text), image (a file)."""
    options = texts(row["options"])
    gold = str(row["answer"]).strip()
    label = label_of(gold, options) if gold in options else label_in(gold, options)
    pictures = (row["image"],) if row.get("image") is not None else ()
    return Item(row["question"], label, "choice", options, pictures, str(row.get("specialty") or ""))
