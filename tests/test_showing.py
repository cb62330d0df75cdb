"""What is shown is what is trained on: text, ids and mask of the batches, and what the limit does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xreasoner import cli
from xreasoner.data import packing
from xreasoner.errors import CheckpointError
from xreasoner.models.loading import load
from xreasoner.recipe import load_recipe
from xreasoner.showing import histogram, reader, shown
from xreasoner.training.run import sft_data


def recipe(random_folder: Path, tmp_path: Path, longer: str = "close") -> Any:
    rows = [
        {"question": "1 + 1?", "gold": "2", "response": f"<think>{' so' * n}</think> <answer>2</answer>"}
        for n in (1, 2, 3, 60, 80)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"[{{source: rows, n: 9, options: {{path: {path}}}}}]"
    stages = [f"stages.{name}.data={source}" for name in ("base-direct", "sft", "sft+rl")]
    changes = ["stages.sft.max_length=110", f"stages.sft.longer={longer}", "stages.sft.batch_examples=3"]
    return load_recipe("demo", [f"model={random_folder}", *stages, *changes])


def text(wanted: Any, **options: Any) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        for part in shown(wanted, **options):
            console.print(part, soft_wrap=True)
    return capture.get()


@pytest.mark.parametrize(("longer", "said"), [("drop", "2 dropped"), ("close", "2 closed early"), ("cut", "2 cut")])
def test_what_is_shown_is_what_is_trained_on(random_folder: Path, tmp_path: Path, longer: str, said: str) -> None:
    wanted = recipe(random_folder, tmp_path, longer)
    loaded = load(str(random_folder))
    stage = wanted.stages[1]
    trained, facts = sft_data(stage, loaded, 0)
    found = text(wanted, examples=5)
    part = found.split("== sft (sft)")[1].split("== sft+rl")[0]
    ids = re.findall(r"^ids: ([\d ]+) ⟦([\d ]+)⟧$", part, flags=re.MULTILINE)
    assert [(len(a.split()), tuple(map(int, f"{a} {b}".split()))) for a, b in ids] == [
        (item.prompt, item.ids) for item in trained
    ]
    for item in trained:
        assert loaded.tokenizer.decode(item.ids[item.prompt :]) in part
    assert f"longer than max_length 110 (longer: {longer}): {said} of 5" in part
    assert facts["lengths"][{"drop": "dropped", "close": "closed", "cut": "cut"}[longer]] == 2
    assert "over the limit" in part
    first = packing.schedule([len(item.ids) for item in trained], 3, stage.epochs, 0)[0]
    assert f"examples {first}" in part
    assert "gold (number): 2" in found.split("== sft+rl")[1]


def test_colour_on_a_terminal_and_a_limit(random_folder: Path, tmp_path: Path) -> None:
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as capture:
        for part in shown(recipe(random_folder, tmp_path), examples=1, limit=2):
            console.print(part, soft_wrap=True)
    assert re.search(r"\x1b\[1;32m[^\x1b]*<answer>2</answer>", capture.get())
    assert "at most 2 rows of each source" in capture.get()
    assert " of 2\n" in re.sub(r"\x1b\[[\d;]*m", "", capture.get())


def test_the_histogram_is_parted_at_the_limit() -> None:
    plain = str(histogram([10, 20, 30, 63, 64, 65, 200], 64))
    low, high = plain.split("over the limit", 1)[0].rsplit("\n", 1)
    assert re.search(r"–64 ", low)
    assert re.search(r"65–", high)
    counts = [int(line.split()[1]) for line in plain.splitlines()[1:]]
    assert sum(counts) == 7
    assert sum(int(line.split()[1]) for line in plain.splitlines() if "over" in line) == 2
    assert "over" not in str(histogram([3, 4, 5]))


def test_no_weights_are_needed(random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in random_folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert reader(str(tmp_path)).device.type == "meta"
    with pytest.raises(CheckpointError, match=r"nobody/nothing.*hf download nobody/nothing"):
        reader("nobody/nothing")


def test_a_dry_run_prints_the_recipe_the_plan_and_the_batch(
    random_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = recipe(random_folder, tmp_path)
    path = wanted.stages[0].data[0].options["path"]
    source = f"[{{source: rows, n: 9, options: {{path: {path}}}}}]"
    sets = [f"stages.{name}.data={source}" for name in ("base-direct", "sft", "sft+rl")]
    arguments = [part for change in [f"model={random_folder}", *sets] for part in ("--set", change)]
    assert cli.run(["train", "demo", "--dry-run", *arguments]) == 0
    out = capfd.readouterr().out
    assert "group_size: 8" in out
    assert "GB per GPU: fits" in out
    assert "first batch: 5 examples" in out
    assert cli.run(["data", "show", "demo", "--examples", "1", *arguments]) == 0
    assert "⟦" in capfd.readouterr().out
