"""`xreasoner eval` whole: a model here and behind a URL, its table, its store, and another grading of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines.served import Served

from xreasoner import cli
from xreasoner.benchmarks.protocol import SAMPLING, ImageSettings
from xreasoner.benchmarks.running import prompt_of
from xreasoner.benchmarks.store import Row, read_rows
from xreasoner.benchmarks.summary import summary_of
from xreasoner.engines.opening import open_engine
from xreasoner.errors import UserError
from xreasoner.evaluating import (
    Settings,
    evaluate_model,
    evaluate_stage,
    own_prompt,
    recipe_harness,
    stage_name,
    stage_parts,
)
from xreasoner.models.loading import find, load
from xreasoner.problem import Problem
from xreasoner.progress import ensembles, time_left
from xreasoner.prompts import render
from xreasoner.reasoner_settings import read_reasoner_settings
from xreasoner.recipe import Recipe, load_recipe, shipped

BENCHES = ["easy-vqa", "gym:gcd", "tiny-text-general"]


def test_real_pictures_and_procedural_problems_run_by_name(tmp_path: Path) -> None:
    settings = Settings(n=4, samples=3, budget=24)
    found = evaluate_model("tiny", BENCHES, tmp_path, settings)
    assert list(found) == BENCHES
    for result in found.values():
        assert result["n"] == 12
        together = result["ensemble"]
        assert together["samples"] == 3
        assert together["average"] == pytest.approx(result["accuracy"])
        assert together["average"] == pytest.approx(together["pass"][1])
        assert together["pass"][1] <= together["pass"][2] <= together["pass"][3]
    assert len(ensembles(found).splitlines()) == 4
    rows = read_rows(tmp_path / "eval" / "tiny" / "results.jsonl")
    assert {row["temperature"] for row in rows} == {0.3}  # the paper's, for several samples
    protocol = json.loads((tmp_path / "eval" / "tiny" / "protocol.json").read_text())
    assert protocol["gym:gcd (seen)"]["samples"] == 3


def test_another_grading_needs_no_model_and_agrees(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_model("tiny", BENCHES, tmp_path, Settings(n=4))
    path = tmp_path / "eval" / "tiny" / "results.jsonl"
    assert cli.run(["grade", str(path), "--out", str(tmp_path / "graded.jsonl")]) == 0
    assert "0 lines could not be graded" in capfd.readouterr().err
    verdicts = [[(row["key"], row["outcome"]) for row in read_rows(file)] for file in (path, tmp_path / "graded.jsonl")]
    assert verdicts[0] == verdicts[1]


def test_a_server_is_an_engine_too(tmp_path: Path) -> None:
    """Greedy replies over HTTP are those of the same weights in this process; running again asks nothing.

    Texts alone are compared: a model that is not known is sent images of the card's size. Its exit text would be the
    paper's, the embedded model's is its own.
    """
    settings = Settings(n=3, budget=40, prompt="brief", exit_text=" </think> <answer>")
    benches = ["tiny-text-general", "tiny-image-general"]
    evaluate_model("tiny", benches, tmp_path, settings)
    here = read_rows(tmp_path / "eval" / "tiny" / "results.jsonl")
    with Served(load("tiny"), owner="vllm") as served:
        evaluate_model(served.url, benches, tmp_path, settings)
        there = read_rows(tmp_path / "eval" / stage_name(served.url) / "results.jsonl")
        assert len(there) == 6
        evaluate_model(served.url, benches, tmp_path, settings)
        assert read_rows(tmp_path / "eval" / stage_name(served.url) / "results.jsonl") == there
    said = [{row["id"]: row["response"] for row in rows if row["modality"] == "text"} for rows in (here, there)]
    assert said[0] == said[1]
    assert len(said[0]) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's base and two stages measured; their exports are the shipped models."""
    out = tmp_path_factory.mktemp("run")
    for stage in RECIPE.stages:
        shutil.copytree(find("tiny" if stage.name == "sft" else "tiny-base"), out / stage.name / "export")
    for measured in (None, *RECIPE.stages):
        evaluate_stage(RECIPE, measured, out)
    return out


def _recipe(**evaluation: Any) -> Recipe:
    stages = [{"name": "sft"}, {"name": "direct", "style": "direct", "prompt": "brief-direct", "from": "base"}]
    shared = {"kind": "sft", "prompt": "brief", "data": [{"source": "tiny", "n": 1}], "optimizer": {"lr": 1e-3}}
    benches = {"benches": ["tiny-image-general"], "reading": ["tiny-read-text-general"], "others": ["gym-train"]}
    small = {"n": 2, "thinking_budget": 24, "answer_budget": 8}
    return Recipe.model_validate(
        {
            "name": "measured",
            "model": "tiny-base",
            "stages": [{**shared, **stage} for stage in stages],
            "evaluation": {**benches, **small, **evaluation},
        }
    )


RECIPE = _recipe()
PROTOCOL = (*SAMPLING, "samples", "grader", "parser", "template_hash", "prompt", *ImageSettings._fields)


def _stored(run: Path, stage: str) -> list[Row]:
    return read_rows(run / "eval" / stage / "results.jsonl")


def test_base_and_stages_are_measured_by_one_harness(run: Path) -> None:
    rows = {stage: {(r["bench"], r["id"], r["condition"]): r for r in _stored(run, stage)} for stage in ("base", "sft")}
    assert rows["base"].keys() == rows["sft"].keys()
    assert len(rows["base"]) == 8  # two seen and two blind cells, two readings, two of gym-train
    for place, ours in rows["base"].items():
        theirs = rows["sft"][place]
        assert ours.keys() == theirs.keys()
        assert {name: ours[name] for name in PROTOCOL} == {name: theirs[name] for name in PROTOCOL}
        assert not ours["control"]
    assert {entry["difference"] is None for entry in summary_of(_by_stage(run))["gains"]} == {False}


def _by_stage(run: Path) -> dict[str, list[Row]]:
    return {stage: _stored(run, stage) for stage in ("base", "sft")}


def test_a_base_is_not_told_of_options_that_are_not_there(run: Path) -> None:
    for stage in ("base", "sft"):
        rows = _stored(run, stage)
        assert {row["prompt"] for row in rows if row["bench"] == "gym-train"} == {"paper-train"}
        assert {row["prompt"] for row in rows if row["options"]} <= {"paper-mc"}
    for recipe in (name for name in shipped() if name != "demo"):
        evaluation = load_recipe(recipe).evaluation
        assert (evaluation.prompt, evaluation.base_prompt) == (None, None)
        assert (evaluation.exit_text, evaluation.min_pixels, evaluation.max_pixels) == ("</think>", 262_144, 262_144)
        base = stage_parts(evaluation, None)["others"]
        assert "gsm8k" in base.benches
        problem = Problem("1", "What is 3 + 4?", "7", "integer")
        asked = render(problem, prompt_of("gsm8k", problem, base.prompt))
        assert "options" not in asked.casefold()
        for stage in load_recipe(recipe).stages:
            assert stage_parts(evaluation, stage) == stage_parts(evaluation, None)


def test_a_stage_of_bare_answers_and_a_base_with_its_own_prompt_are_declared_controls(run: Path) -> None:
    direct = _stored(run, "direct")
    assert {row["control"] for row in direct if row["bench"] != "tiny-read-text-general"} == {True}
    assert {row["prompt"] for row in direct if row["bench"] == "gym-train"} == {"brief-direct"}
    demo = load_recipe("demo")
    parts = {stage.name if stage else "base": stage_parts(demo.evaluation, stage) for stage in (None, *demo.stages)}
    prompts = {name: (part["cells"].prompt, part["cells"].control) for name, part in parts.items()}
    assert prompts == {
        "base": ("brief-direct", True),
        "base-direct": ("brief-direct", True),
        "sft": ("brief", False),
        "sft+rl": ("brief", False),
    }
    assert {(part["reading"].prompt, part["reading"].control) for part in parts.values()} == {("brief-direct", False)}


def test_a_recipes_numbers_and_evals_are_of_one_model(run: Path, tmp_path: Path) -> None:
    """The same identity, the same fields, the same replies where both ask alike."""
    settings = Settings(n=2, budget=24, prompt="paper-mc", exit_text=RECIPE.evaluation.exit_text)
    evaluate_model(str(run / "sft" / "export"), ["tiny-image-general"], tmp_path, settings)
    (alone,) = (read_rows(path) for path in tmp_path.glob("eval/*/results.jsonl"))
    within = [row for row in _stored(run, "sft") if row["bench"] == "tiny-image-general" and row["condition"] == "seen"]
    assert [row.keys() for row in alone] == [row.keys() for row in within]
    assert {row["model"] for row in alone} == {row["model"] for row in within}
    assert (run / "eval" / "sft" / "protocol.json").is_file()
    assert (run / "eval" / "sft" / "model.json").is_file()


def test_the_cards_area_is_for_every_model_that_can_have_it_also_in_a_recipe(tmp_path: Path) -> None:
    """A checkpoint's own settings say nothing in a recipe: base and stages are asked alike."""
    engine = open_engine("tiny")
    assert recipe_harness(_recipe().evaluation, engine, {}).images == (None, None, "processor")
    asked = _recipe(min_pixels=3136, max_pixels=50_176, preprocessing="qwen-vl-utils").evaluation
    assert recipe_harness(asked, engine, {}).images == (3136, 50_176, "qwen-vl-utils")

    class Larger:
        name, info = "torch", replace(engine.info, max_pixels=12_845_056)

    larger: Any = Larger()
    assert recipe_harness(_recipe().evaluation, larger, {}).images == (262_144, 262_144, "processor")


def test_what_cannot_be_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="greedy samples are all alike"):
        evaluate_model("tiny", BENCHES, tmp_path, Settings(samples=2, temperature=0.0))
    with pytest.raises(UserError, match="did you mean 'easy-vqa'"):
        evaluate_model("tiny", ["tiny-text-general", "easyvqa"], tmp_path, Settings())
    with pytest.raises(UserError, match="none of its files"):
        evaluate_model("tiny", ["tiny-text-general", "medqa"], tmp_path, Settings(data=tmp_path))
    with pytest.raises(UserError, match="exit_text is 'enough'; expected a text with </think>"):
        evaluate_model("tiny", BENCHES, tmp_path, Settings(n=1, exit_text="enough"))
    with pytest.raises(UserError, match="min_pixels is 900 and max_pixels 800"):
        evaluate_model("tiny", BENCHES, tmp_path, Settings(n=1, min_pixels=900, max_pixels=800))
    assert not (tmp_path / "eval").exists()
    with pytest.raises(UserError, match="no item has an image, and the blind condition"):
        evaluate_model("tiny", ["tiny-text-general"], tmp_path, Settings(n=1, condition="blind"))


def test_names_prompts_and_time() -> None:
    assert stage_name("http://localhost:8000/v1") == "localhost-8000-v1"
    assert stage_name("microsoft/X-Reasoner-7B") == "microsoft--X-Reasoner-7B"
    assert own_prompt("tiny", read_reasoner_settings("tiny")) == "brief"
    assert own_prompt("microsoft/X-Reasoner-7B", None) is None  # the benchmark's own
    assert time_left(10, 5, 10) == "left 0:00:20"
    assert time_left(10, 0, 10) == ""


def test_benches_lists_what_is_known(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["benches"]) == 0
    printed = capfd.readouterr().out
    assert cli.run(["eval", "tiny", "--list"]) == 0
    assert capfd.readouterr().out == printed
    assert "gpqa-diamond" in printed
    assert "accept the terms" in printed
