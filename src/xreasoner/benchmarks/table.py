"""The declared benchmarks: one entry each, and nothing of it anywhere else.

To add one: an entry here and, where no function of items.py reads its schema, one small function there. Counts, of
golds too, are asserted on load, so that a moved or edited data set is noticed. Revisions are commits of the hub where
one is known, else `main`. docs/benchmarks.md is written from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xreasoner.benchmarks import items
from xreasoner.benchmarks.items import Item
from xreasoner.problem import Modality


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    hub: OWNER/NAME of the data set on the hub; "" where there is only a local copy. revision: the hub's commit or
        branch. config, split: as the data set calls them. files: patterns of its files of rows; the first that matches
        holds (all, where `join`). pictures: patterns of files with pictures, where they do not stand in the rows.
    where: column → the values kept. count: items after that; several where sources disagree, None where nobody says.
    tallies: column → value → how many items have it. golds: the same of the golds.
    columns: those that must be there. id: the column that names an item; else its row's number does.
    make: from a row to an item. answers: the kinds of answer. prompt: the paper's for it (`prompts.PROMPTS`).
    gold: how the data set encodes it. gate: what stands before the data, and what to do. note: for the reader.
    """

    name: str
    hub: str
    split: str
    count: int | tuple[int, ...] | None
    files: tuple[str, ...]
    columns: tuple[str, ...]
    make: Callable[[Mapping[str, Any], str], Item]
    answers: str
    gold: str
    licence: str
    prompt: str = "paper-mc"
    domain: str = "general"
    modality: Modality = "text"
    config: str = ""
    revision: str = "main"
    join: bool = False
    pictures: tuple[str, ...] = ()
    where: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    tallies: Mapping[str, Mapping[Any, int]] = field(default_factory=dict)
    golds: Mapping[str, int] = field(default_factory=dict)
    id: str = ""
    gate: str = ""
    note: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is fetched from the hub."""
        return (*self.files, *self.pictures)


MMLU_REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU_PRO_REVISION = "527feea0afed1de15a8c115abf7be4c912123315"
MMMU_REVISION = "98e6ac0cb9b7b2cd2c991b85a50762edc4aedc68"

MMLU_MEDICAL = {
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "medical_genetics": 100,
    "professional_medicine": 272,
}
MMLU_MEDICAL_9 = {**MMLU_MEDICAL, "nutrition": 306, "virology": 166, "high_school_biology": 310}
MMLU_PRO = {
    "computer science": 410,
    "math": 1351,
    "chemistry": 1132,
    "engineering": 969,
    "law": 1101,
    "biology": 717,
    "health": 818,
    "physics": 1299,
    "business": 789,
    "philosophy": 499,
    "economics": 844,
    "other": 924,
    "psychology": 798,
    "history": 381,
}
HEALTH = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
_MMMU_COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{k}" for k in range(1, 8)))
_PRO_COLUMNS = ("id", "question", "options", "answer", "subject", *(f"image_{k}" for k in range(1, 8)))
_LIST_TEXT = "label; options a list written as text"


def _mmlu(name: str, subjects: Mapping[str, int]) -> Benchmark:
    return Benchmark(
        name=name,
        hub="cais/mmlu",
        revision=MMLU_REVISION,
        config=f"{len(subjects)} subjects",
        split="test",
        count=sum(subjects.values()),
        files=tuple(f"{subject}/test-*.parquet" for subject in subjects),
        join=True,
        columns=("question", "subject", "choices", "answer"),
        tallies={"subject": dict(subjects)},
        make=items.mmlu,
        answers="choice",
        gold="place from 0",
        licence="MIT",
        domain="clinical",
        note=", ".join(subject.replace("_", " ") for subject in subjects),
    )


def _mmlu_pro(name: str, category: str = "", domain: str = "general") -> Benchmark:
    kept = {category: MMLU_PRO[category]} if category else MMLU_PRO
    return Benchmark(
        name=name,
        hub="TIGER-Lab/MMLU-Pro",
        revision=MMLU_PRO_REVISION,
        split="test",
        count=sum(kept.values()),
        files=("data/test-*.parquet",),
        columns=("question_id", "question", "options", "answer", "answer_index", "category"),
        where={"category": (category,)} if category else {},
        tallies={"category": dict(kept)},
        id="question_id",
        make=items.mmlu_pro,
        answers="choice (3–10)",
        gold="label and place from 0",
        licence="MIT",
        domain=domain,
    )


def _supergpqa(name: str, count: int, discipline: str = "", domain: str = "general", note: str = "") -> Benchmark:
    return Benchmark(
        name=name,
        hub="m-a-p/SuperGPQA",
        split="train",
        count=count,
        files=("SuperGPQA-all.jsonl", "data/train-*.parquet", "*.jsonl", "*.parquet"),
        columns=("uuid", "question", "options", "answer", "answer_letter", "discipline", "field"),
        where={"discipline": (discipline,)} if discipline else {},
        id="uuid",
        make=items.supergpqa,
        answers="choice (4–10)",
        gold="label and text",
        licence="ODC-BY",
        domain=domain,
        note=note,
    )


def _mmmu(name: str, count: int, subjects: tuple[str, ...] = (), domain: str = "general", note: str = "") -> Benchmark:
    return Benchmark(
        name=name,
        hub="MMMU/MMMU",
        revision=MMMU_REVISION,
        config=f"{len(subjects)} subjects" if subjects else "30 subjects",
        split="validation",
        count=count,
        files=tuple(f"{s}/validation-*.parquet" for s in subjects) or ("*/validation-*.parquet",),
        join=True,
        columns=_MMMU_COLUMNS,
        id="id",
        make=items.mmmu,
        answers="choice, text",
        gold=_LIST_TEXT + "; open: text or a list as text",
        licence="Apache-2.0",
        domain=domain,
        modality="image",
        note=note or "the test split's answers are withheld",
    )


def _mmmu_pro(name: str, config: str, health: bool = False, note: str = "") -> Benchmark:
    vision = config == "vision"
    return Benchmark(
        name=name,
        hub="MMMU/MMMU_Pro",
        config=config,
        split="test",
        count=286 if health else 1730,
        files=(f"{config}/test-*.parquet",),
        columns=("id", "image", "options", "answer", "subject") if vision else _PRO_COLUMNS,
        where={"subject": HEALTH} if health else {},
        id="id",
        make=items.mmmu_pro_vision if vision else items.mmmu_pro,
        answers="choice (1–12)" if "10" in config else "choice",
        gold=_LIST_TEXT,
        licence="Apache-2.0",
        domain="clinical" if health else "general",
        modality="image",
        note=note,
    )


def _visual(name: str, hub: str, count: int, licence: str, note: str) -> Benchmark:
    return Benchmark(
        name=name,
        hub=hub,
        split="test",
        count=count,
        files=("data/test-*.parquet",),
        columns=("image", "question", "answer"),
        make=items.visual_question,
        answers="yes/no, text",
        gold="text",
        licence=licence,
        prompt="paper-train",
        domain="clinical",
        modality="image",
        note=note,
    )


def _medxpertqa(name: str, config: str, count: int) -> Benchmark:
    seen = config == "MM"
    return Benchmark(
        name=name,
        hub="TsinghuaC3I/MedXpertQA",
        config=config,
        split="test",
        count=count,
        files=(f"{config}/test.jsonl", f"{config}/test-*.parquet", f"*{config}/test.jsonl"),
        pictures=("images.zip",) if seen else (),
        columns=("id", "question", "options", "label", "medical_task", *(("images",) if seen else ())),
        golds={"E": 424, "B": 408, "A": 399, "D": 386, "C": 383} if seen else {},
        tallies={"medical_task": {"Diagnosis": 1199, "Treatment": 448, "Basic Science": 353}} if seen else {},
        id="id",
        make=items.medxpertqa,
        answers=f"choice ({5 if seen else 10})",
        gold="label",
        licence="MIT",
        domain="clinical",
        modality="image" if seen else "text",
        note="a fifth of the items have 2 to 6 images, without marks" if seen else "the question holds the options",
    )


CONTAINED_IN = {
    # a benchmark → the one that holds its items too, or asks them in another form: a cell counts them once
    "mmlu-medical-6": "mmlu-medical-9",
    "mmlu-pro-health": "mmlu-pro",
    "supergpqa-medicine": "supergpqa",
    "mmmu-health": "mmmu",
    "mmmu-pro-health": "mmmu-pro-10",
    "mmmu-pro-4": "mmmu-pro-10",
    "mmmu-pro-vision": "mmmu-pro-10",
    "medqa-5": "medqa",
    "pubmedqa": "pubmedqa-1000",
}

MEANS = {"mmmu-pro": ("mmmu-pro-10", "mmmu-pro-vision")}
"""A number that a benchmark's authors report: the mean over other entries."""
MACRO_F1 = {"pubmedqa": ("yes", "no", "maybe"), "pubmedqa-1000": ("yes", "no", "maybe")}
"""Benchmarks whose official result has the macro-averaged F1 over these answers beside the accuracy."""
CLOSED_AND_OPEN = ("pathvqa", "slake", "vqa-rad")
"""Benchmarks of closed questions (accuracy) and open ones (exact match and recall of the gold's words): two numbers,
which no mean mixes. A cell counts the closed ones."""

_ENTRIES = (
    Benchmark(
        name="gsm8k",
        hub="openai/gsm8k",
        revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        config="main",
        split="test",
        count=1319,
        files=("main/test-*.parquet",),
        columns=("question", "answer"),
        make=items.gsm8k,
        answers="number",
        gold="number behind #### in the solution",
        licence="MIT",
        prompt="paper-math",
    ),
    Benchmark(
        name="math-500",
        hub="HuggingFaceH4/MATH-500",
        split="test",
        count=500,
        files=("test.jsonl", "data/test-*.parquet"),
        columns=("problem", "answer", "subject", "level", "unique_id"),
        tallies={"level": {1: 43, 2: 90, 3: 105, 4: 128, 5: 134}},
        id="unique_id",
        make=items.math500,
        answers="latex",
        gold="LaTeX",
        licence="MIT",
        prompt="paper-math",
    ),
    Benchmark(
        name="aime-2024",
        hub="HuggingFaceH4/aime_2024",
        revision="e6cf0cd64082ada1c025717826bd40e155b1ec81",
        split="train",
        count=30,
        files=("data/train-*.parquet",),
        columns=("problem", "answer"),
        id="id",
        make=items.aime,
        answers="integer",
        gold="integer, in some copies with leading zeros",
        licence="open",
        prompt="paper-math",
        note="30 items: give --samples 16 or more",
    ),
    Benchmark(
        name="aime-2025",
        hub="yentinglin/aime_2025",
        split="train",
        count=30,
        files=("data/train-*.parquet", "*.jsonl"),
        columns=("problem", "answer"),
        id="id",
        make=items.aime,
        answers="integer",
        gold="integer",
        licence="open",
        prompt="paper-math",
        note="30 items: give --samples 16 or more",
    ),
    _mmlu_pro("mmlu-pro"),
    _supergpqa("supergpqa", 26529),
    Benchmark(
        name="gpqa-diamond",
        hub="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        count=198,
        files=("gpqa_diamond.csv", "gpqa_diamond/train-*.parquet"),
        columns=("Question", "Correct Answer", *(f"Incorrect Answer {k}" for k in (1, 2, 3))),
        id="Record ID",
        make=items.gpqa,
        answers="choice (4)",
        gold="text; shown in an order that follows from the item's id",
        licence="CC-BY-4.0",
        gate="accept the terms at https://huggingface.co/datasets/Idavidrein/gpqa and log in (hf auth login)",
        note="not to be passed on as plain text",
    ),
    _mmmu("mmmu", 900),
    _mmmu_pro("mmmu-pro-10", "standard (10 options)"),
    _mmmu_pro("mmmu-pro-4", "standard (4 options)"),
    _mmmu_pro("mmmu-pro-vision", "vision", note="question and options in the image only"),
    Benchmark(
        name="mathvista",
        hub="AI4Math/MathVista",
        revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
        split="testmini",
        count=1000,
        files=("data/testmini-*.parquet",),
        columns=(
            *("pid", "question", "image", "decoded_image", "choices", "unit"),
            *("precision", "answer", "question_type", "answer_type", "metadata"),
        ),
        tallies={"question_type": {"multi_choice": 540, "free_form": 460}},
        id="pid",
        make=items.mathvista,
        answers="choice, integer, number, list",
        gold="the choice's text; numbers with their own decimal places",
        licence="CC-BY-SA-4.0",
        prompt="paper-math",
        modality="image",
    ),
    Benchmark(
        name="mathverse",
        hub="AI4Math/MathVerse",
        config="testmini",
        split="testmini",
        count=3940,
        files=("testmini.parquet", "testmini/testmini-*.parquet", "data/testmini-*.parquet"),
        columns=("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type"),
        tallies={
            "problem_version": dict.fromkeys(
                ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"), 788
            )
        },
        id="sample_index",
        make=items.mathverse,
        answers="choice, latex",
        gold="label, or text",
        licence="MIT",
        prompt="paper-math",
        modality="image",
        note="five versions of 788 problems: read the families apart",
    ),
    Benchmark(
        name="mathvision",
        hub="MathLLMs/MathVision",
        split="test",
        count=3040,
        files=("data/test-*.parquet",),
        columns=("id", "question", "options", "decoded_image", "answer", "level", "subject"),
        id="id",
        make=items.mathvision,
        answers="choice (5), latex",
        gold="label, or LaTeX",
        licence="MIT",
        prompt="paper-math",
        modality="image",
        note="one merged image for all marks",
    ),
    Benchmark(
        name="mmstar",
        hub="Lin-Chen/MMStar",
        config="val",
        split="val",
        count=1500,
        files=("mmstar.parquet", "val/*.parquet", "data/val-*.parquet"),
        columns=("index", "question", "image", "answer", "category"),
        id="index",
        make=items.mmstar,
        answers="choice (4)",
        gold="label; the question holds the options",
        licence="not stated",
        modality="image",
    ),
    Benchmark(
        name="medqa",
        hub="GBaker/MedQA-USMLE-4-options",
        split="test",
        count=1273,
        files=("phrases_no_exclude_test.jsonl", "data/test-*.parquet"),
        columns=("question", "answer", "options", "answer_idx"),
        golds={"A": 353, "B": 309, "C": 346, "D": 265},
        make=items.medqa,
        answers="choice (4)",
        gold="label and text",
        licence="CC-BY-4.0 (the copy)",
        domain="clinical",
        note="one item (number 454) needs an image that is missing",
    ),
    Benchmark(
        name="medqa-5",
        hub="bigbio/med_qa",
        config="med_qa_en_source",
        split="test",
        count=1273,
        files=("questions/US/test.jsonl", "*US/test.jsonl", "med_qa_en_source/test-*.parquet"),
        pictures=("data_clean.zip",),
        columns=("question", "answer", "options", "answer_idx"),
        make=items.medqa,
        answers="choice (5)",
        gold="label and text",
        licence="not stated",
        domain="clinical",
    ),
    Benchmark(
        name="medmcqa",
        hub="openlifescienceai/medmcqa",
        split="validation",
        count=4183,
        files=("data/validation-*.parquet",),
        columns=("id", "question", "opa", "opb", "opc", "opd", "cop", "subject_name"),
        golds={"A": 1348, "B": 1085, "C": 925, "D": 825},
        id="id",
        make=items.medmcqa,
        answers="choice (4)",
        gold="place from 0 (lighteval's copy counts from 1 and is refused)",
        licence="Apache-2.0",
        domain="clinical",
        note="the test split's answers are withheld; always A is 32.2 %",
    ),
    Benchmark(
        name="pubmedqa",
        hub="openlifescienceai/pubmedqa",
        split="test",
        count=500,
        files=("data/test-*.parquet",),
        columns=("id", "data"),
        golds={"yes": 276, "no": 169, "maybe": 55},
        id="id",
        make=items.pubmedqa_nested,
        answers="yes/no/maybe",
        gold="label of a word",
        licence="MIT",
        prompt="paper-train",
        domain="clinical",
        note="the official 500",
    ),
    Benchmark(
        name="pubmedqa-1000",
        hub="qiaojin/PubMedQA",
        config="pqa_labeled",
        split="train",
        count=1000,
        files=("pqa_labeled/train-*.parquet",),
        columns=("pubid", "question", "context", "final_decision"),
        golds={"yes": 552, "no": 338, "maybe": 110},
        id="pubid",
        make=items.pubmedqa,
        answers="yes/no/maybe",
        gold="word",
        licence="MIT",
        prompt="paper-train",
        domain="clinical",
        note="all labelled items; not comparable with the official 500",
    ),
    _mmlu("mmlu-medical-6", MMLU_MEDICAL),
    _mmlu("mmlu-medical-9", MMLU_MEDICAL_9),
    _mmlu_pro("mmlu-pro-health", "health", "clinical"),
    _supergpqa("supergpqa-medicine", 2755, "Medicine", "clinical", "a tenth is traditional Chinese medicine"),
    _mmmu("mmmu-health", 150, HEALTH, "clinical", "150 items: ±8 points"),
    _mmmu_pro("mmmu-pro-health", "standard (10 options)", health=True),
    _medxpertqa("medxpertqa-text", "Text", 2450),
    _medxpertqa("medxpertqa-mm", "MM", 2000),
    _visual(
        "pathvqa", "flaviagiammarino/path-vqa", 6719, "MIT (the card)", "papers often report the closed items alone"
    ),
    Benchmark(
        name="slake",
        hub="BoKelvin/SLAKE",
        split="test",
        count=1061,
        files=("test.json",),
        pictures=("imgs.zip",),
        columns=("img_name", "question", "answer", "q_lang", "answer_type", "qid"),
        where={"q_lang": ("en",)},
        tallies={"answer_type": {"OPEN": 645, "CLOSED": 416}},
        id="qid",
        make=items.slake,
        answers="yes/no, text",
        gold="text",
        licence="CC-BY-4.0",
        prompt="paper-train",
        domain="clinical",
        modality="image",
        note="English only; a few closed items are not yes or no",
    ),
    _visual("vqa-rad", "flaviagiammarino/vqa-rad", 451, "CC0", "251 closed and 200 open items"),
    Benchmark(
        name="omnimedvqa",
        hub="foreverbeliever/OmniMedVQA",
        config="Open-access",
        split="test",
        count=(88996, 89195),
        files=("QA_information/Open-access/*.json", "*/QA_information/Open-access/*.json"),
        pictures=("OmniMedVQA.zip",),
        columns=(
            "dataset",
            "question_id",
            "question",
            "gt_answer",
            "option_A",
            "option_B",
            "modality_type",
            "image_path",
        ),
        id="question_id",
        make=items.omnimedvqa,
        answers="choice (2–4)",
        gold="the option's text",
        licence="mixed",
        domain="clinical",
        modality="image",
        gate="the restricted part holds paths alone: its images come from their own owners",
        note="sources disagree about the count; the paper's subset of 1,000 is not described",
    ),
    Benchmark(
        name="pmc-vqa",
        hub="RadGenome/PMC-VQA",
        split="test_clean",
        count=2000,
        files=("test_clean.csv",),
        pictures=("images.zip",),
        columns=("Figure_path", "Question", *(f"Choice {letter}" for letter in "ABCD"), "Answer_label"),
        make=items.pmc_vqa,
        answers="choice (4)",
        gold="label; choices carry labels and spaces",
        licence="CC-BY-SA",
        domain="clinical",
        modality="image",
        note="the images are an archive of 19 GB",
    ),
    Benchmark(
        name="nejm",
        hub="",
        split="local",
        count=None,
        files=tuple(f"nejm.{suffix}" for suffix in ("parquet", "jsonl", "json", "csv", "tsv")),
        columns=("question", "options", "answer", "image"),
        id="id",
        make=items.local_choice,
        answers="choice",
        gold="label, or the option's text",
        licence="NEJM's own; not to be passed on",
        domain="clinical",
        modality="image",
        gate="NEJM does not hand out its Image Challenge: put your copy into DIR/nejm/nejm.jsonl with its images",
        note="the paper has 947 items; columns question, options, answer, image (a file's name)",
    ),
)

TABLE: dict[str, Benchmark] = {entry.name: entry for entry in _ENTRIES}
"""The declared benchmarks by name, in the order in which they are shown."""
