"""`xreasoner eval` whole: a model here and behind a URL, its table, its store, and another grading of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines.served import Served

from xreasoner import cli
from xreasoner.benchmarks.store import read_rows
from xreasoner.errors import UserError
from xreasoner.evaluating import Settings, evaluate_model, own_prompt, stage_name
from xreasoner.models.loading import load
from xreasoner.progress import ensembles, time_left
from xreasoner.reasoner_settings import read_reasoner_settings

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
    assert "0 lines could not be judged" in capfd.readouterr().err
    verdicts = [[(row["key"], row["outcome"]) for row in read_rows(file)] for file in (path, tmp_path / "graded.jsonl")]
    assert verdicts[0] == verdicts[1]


def test_a_server_is_an_engine_too(tmp_path: Path) -> None:
    """Greedy replies over HTTP are those of the same weights in this process; running again asks nothing.

    Texts alone are compared: a model that is not known is sent pictures of the card's size.
    """
    settings = Settings(n=3, budget=40, prompt="brief")
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
