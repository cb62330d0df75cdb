"""A checkpoint keeps its behavior wherever it is moved: its own folder says how it is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from xreasoner import cli
from xreasoner.errors import CheckpointError
from xreasoner.evaluating import Settings, evaluate_model
from xreasoner.models.export import export
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import Loaded, load
from xreasoner.prompts import default_prompt
from xreasoner.reasoner import Reasoner
from xreasoner.reasoner_settings import (
    FILE,
    ReasonerSettings,
    read_reasoner_settings,
    warn_of_fallback,
    write_settings,
)
from xreasoner.registry import MODELS, resolve


def folder_of(name: str) -> Path:
    found: Path = resolve(MODELS, "model", name)()
    return found


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_copy_of_a_shipped_model_is_asked_as_the_model_is(name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(folder_of(name), tmp_path / "somewhere else" / "renamed")
    ours, theirs = Reasoner(str(copy)), Reasoner(name)
    assert (ours.prompt, ours.sampling) == (theirs.prompt, theirs.sampling)
    assert (ours.min_pixels, ours.max_pixels) == (theirs.min_pixels, theirs.max_pixels)
    assert ours.sampling.temperature == 0
    assert default_prompt(str(copy), []) == default_prompt(name, []) == ours.prompt
    question = "Ana has 14 and Ben has 9. Who has more?"
    assert ours.ask(question).text == theirs.ask(question).text


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_shipped_settings_are_of_the_shipped_weights(name: str) -> None:
    settings = read_reasoner_settings(name)
    assert settings is not None
    assert settings.provenance["weights_sha256"] == fingerprint(sorted(load(name).model.state_dict().items()))
    if name == "tiny":
        base = read_reasoner_settings("tiny-base")
        assert base is not None
        assert settings.provenance["base"] == {
            "model": "tiny-base",
            "weights_sha256": base.provenance["weights_sha256"],
        }


def test_eval_of_a_copy_gives_the_numbers_of_the_model(tmp_path: Path) -> None:
    copy = shutil.copytree(folder_of("tiny"), tmp_path / "after")
    benches = ["tiny-text-general", "tiny-image-general"]
    ours, theirs = (evaluate_model(str(m), benches, tmp_path / "out", Settings(n=4)) for m in (copy, "tiny"))
    assert ours == theirs
    protocols = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("protocol.json"))]
    assert len(protocols) == 2
    assert protocols[0] == protocols[1]


def test_every_reader_takes_prompt_budgets_and_pixels_from_the_file(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder_of("tiny"), tmp_path / "copy"))
    own = ReasonerSettings(
        prompt="paper-train",
        temperature=0.25,
        thinking_budget=33,
        answer_budget=11,
        exit_text=" Enough. </think> <answer>",
        min_pixels=4000,
        max_pixels=9000,
    )
    write_settings(copy, own)
    reasoner = Reasoner(str(copy))
    sampling = reasoner.sampling
    assert (reasoner.prompt, sampling.temperature, sampling.exit_text) == ("paper-train", 0.25, own.exit_text)
    assert (sampling.thinking_budget, sampling.answer_budget) == (33, 11)
    assert (reasoner.min_pixels, reasoner.max_pixels) == (4000, 9000)
    request = reasoner.request("What is 3 + 4?")
    assert "You will solve a problem/request" in str(request.messages)
    assert (request.min_pixels, request.max_pixels) == (4000, 9000)
    asked = Reasoner(str(copy), prompt="brief", temperature=0, thinking_budget=8, answer_budget=5, max_pixels=8000)
    assert (asked.prompt, asked.sampling.temperature, asked.sampling.thinking_budget) == ("brief", 0, 8)
    assert (asked.sampling.answer_budget, asked.max_pixels) == (5, 8000)
    evaluate_model(str(copy), ["tiny-text-general"], tmp_path / "out", Settings(n=2))
    (protocol,) = json.loads((tmp_path / "out/eval/copy/protocol.json").read_text()).values()
    assert (protocol["sampling"]["thinking_budget"], protocol["sampling"]["answer_budget"]) == (33, 11)
    assert protocol["sampling"]["exit_text"] == own.exit_text


def test_the_budgets_hold_on_the_command_line_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(folder_of("tiny"), tmp_path / "copy"))
    write_settings(copy, ReasonerSettings(prompt="brief", temperature=0.0, thinking_budget=3, answer_budget=2))
    assert cli.run(["ask", str(copy), "Ana has 14 and Ben has 9. Who has more?", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["exit"] in ("forced", "truncated")
    assert found["usage"]["thought_tokens"] <= 3 + 8, "the exit text is counted"
    assert found["usage"]["answer_tokens"] <= 2 + 8


def test_an_export_carries_its_settings_and_what_it_was_made_from(loaded: Loaded, tmp_path: Path) -> None:
    settings = ReasonerSettings(prompt="brief", thinking_budget=40, provenance={"stage": "sft"})
    folder = export(loaded.model, loaded.tokenizer, loaded.image_processor, tmp_path / "out", settings=settings)
    found = read_reasoner_settings(folder)
    assert found is not None
    assert (found.prompt, found.thinking_budget, found.provenance["stage"]) == ("brief", 40, "sft")
    again = load(str(folder))
    assert found.provenance["weights_sha256"] == fingerprint(sorted(again.model.state_dict().items()))
    assert found.provenance["xreasoner"]
    without = export(loaded.model, loaded.tokenizer, loaded.image_processor, tmp_path / "plain")
    assert not (without / FILE).exists()


def test_a_model_without_the_file_is_named_once_with_the_fallback(random_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(random_folder, tmp_path / "copy"))
    with pytest.warns(UserWarning, match=r"has no xreasoner\.json, so the model card's prompts .*1,024") as caught:
        _ = [Reasoner(str(copy)) for _ in range(2)]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reasoner(str(shutil.copytree(random_folder, tmp_path / "other")), prompt="brief")
        warn_of_fallback("microsoft/X-Reasoner-7B", "the card's own settings are right for it")
    third = shutil.copytree(random_folder, tmp_path / "third")
    with pytest.warns(UserWarning, match="so each benchmark's own prompt is used, thinking budget 4,096"):
        evaluate_model(str(third), ["tiny-text-general"], tmp_path / "out", Settings(n=1, budget=4))


def test_the_command_line_says_so_on_one_line_of_stderr(random_folder: Path) -> None:
    command = [sys.executable, "-m", "xreasoner.cli", "ask", str(random_folder), "What is 3 + 4?", "--budget", "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    warned = [line for line in result.stderr.splitlines() if "xreasoner.json" in line]
    assert len(warned) == 1
    assert warned[0].startswith(f"warning: model '{random_folder}' has no xreasoner.json, so the model card's prompts")


def test_an_export_of_an_earlier_version_takes_its_prompt_from_the_stage_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"prompt": "brief"}')
    with pytest.warns(UserWarning, match=r"'brief' is taken from .*manifest\.json"):
        assert default_prompt(str(tmp_path / "export"), []) == "brief"
    elsewhere = tmp_path / "renamed"
    elsewhere.mkdir()
    assert default_prompt(str(elsewhere), []) == "paper-train", "the manifest beside it is another model's"


WRONG: dict[str, tuple[str, str]] = {
    "no JSON": ('{"prompt": ', "not JSON"),
    "no object": ("[1]", "expected an object"),
    "wrong types": (
        '{"prompt": 3, "thinking_budget": "many", "max_pixels": -5}',
        r"found prompt 3, thinking_budget 'many', max_pixels -5; expected prompt: str, thinking_budget: int",
    ),
    "an unknown prompt": ('{"prompt": "of-tomorrow"}', "its prompt 'of-tomorrow' is unknown; give --prompt"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_damaged_file_is_refused_with_its_fields(wrong: str, tmp_path: Path) -> None:
    text, expected = WRONG[wrong]
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=expected):
        default_prompt(str(tmp_path), [])


def test_fields_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"prompt": "brief", "of_tomorrow": {"a": 1}, "thinking_budget": null}')
    assert read_reasoner_settings(tmp_path) == ReasonerSettings(prompt="brief")


def test_a_hub_ids_file_is_fetched_and_one_that_is_not_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(tmp_path, ReasonerSettings(prompt="brief"))
    asked: list[str] = []

    def of_the_hub(hub: str, name: str) -> Path | None:
        asked.append(f"{hub}: {name}")
        return tmp_path / FILE if hub == "somebody/reasoner" else None

    monkeypatch.setattr("xreasoner.reasoner_settings.optional_hub_file", of_the_hub)
    assert read_reasoner_settings("somebody/reasoner") == ReasonerSettings(prompt="brief")
    assert read_reasoner_settings("somebody/other") is None
    assert read_reasoner_settings("somebody/reasoner", hub=False) is None
    assert asked == ["somebody/reasoner: xreasoner.json", "somebody/other: xreasoner.json"]
