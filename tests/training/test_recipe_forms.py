"""Every shipped recipe starts: its form on a small random model of its family. Every field states its source."""

from __future__ import annotations

import json
import re
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from small_models import FAMILIES, small_folder

from xreasoner.models.loading import load
from xreasoner.recipe import Recipe, load_recipe, shipped
from xreasoner.training import rollouts
from xreasoner.training.run import run_stage

NAMES = [name for name in shipped() if name != "demo"]
SMALL: dict[str, dict[str, Any]] = {
    "sft": {"batch_examples": 4, "epochs": 1},
    "rl": {"steps": 1, "prompts_per_step": 2, "group_size": 2, "thinking_budget": 8, "answer_budget": 6},
}


def _family(model: str) -> str:
    return "qwen3_vl" if "Qwen3-VL" in model else "qwen2_5_vl"


def _rows(folder: Path, domain: str) -> list[dict[str, Any]]:
    """Eight rows of unlike lengths, as one data entry."""
    path = folder / "rows.jsonl"
    rows = [
        {
            "question": "Say " + "it " * (k % 4 + 1),
            "gold": "1",
            "answer_type": "integer",
            "domain": domain,
            "response": f"<think> {'so ' * (3 * k + 1)}</think> <answer>1</answer>",
        }
        for k in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [{"source": "jsonl", "n": 8, "options": {"path": str(path)}}]


def _small(recipe: Recipe, model: Path, folder: Path, **changes: Any) -> Recipe:
    """The recipe with its form kept (packing, precision, adapters, objective) and its sizes made small."""
    raw = recipe.model_dump(mode="json", by_alias=True) | {"model": str(model)}
    for stage in raw["stages"]:
        stage |= {"data": _rows(folder, stage["allowed_domains"][0]), **SMALL[stage["kind"]], **changes}
        if stage["lora"]:
            stage["lora"] |= {"rank": 4, "alpha": 8}
    return Recipe.model_validate(raw)


def _run(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of SFT and one of RL; a random model is never right, so every other reply is called right."""
    worth = cycle([1.0, 0.0])
    monkeypatch.setattr(rollouts, "reward", lambda verdict: next(worth))
    for stage in recipe.stages:
        exported = run_stage(recipe, stage, out)
        lines = [json.loads(line) for line in (out / stage.name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == ([1, 2] if stage.kind == "sft" else [1])
        assert all(line["grad_norm"] > 0 for line in lines)
        if stage.kind == "rl":
            assert lines[0]["ratio_max"] == pytest.approx(1.0, abs=1e-4)
        manifest = json.loads((out / stage.name / "manifest.json").read_text())
        assert manifest["frozen"]["before"] == manifest["frozen"]["after"]
        assert load(str(exported)).model.config.model_type == _family_of(recipe)


def _family_of(recipe: Recipe) -> str:
    found: str = load(recipe.model).model.config.model_type
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_starts(
    name: str, random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(name)
    model = small_folder(_family(recipe.model), random_folder, tmp_path)
    _run(_small(recipe, model, tmp_path), tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_in_padded_rows_too(
    family: str, random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, with a KL term: what the recipes' own forms leave out."""
    recipe = load_recipe("x-reasoner-7b-appendix-b")
    model = small_folder(family, random_folder, tmp_path)
    form = {"batching": "padded", "activation_checkpointing": False, "precision": "float32"}
    _run(_small(recipe, model, tmp_path, **form), tmp_path / "run", monkeypatch)


SOURCE = re.compile(r"(main text|appendix [BC]|appendix:|the card|ours, because)")
PLACE = re.compile(r"\s*(- )?(name|kind|from|model|seed|stages|evaluation|data|optimizer):|\s*- \{source:")
"""Lines that say what a stage is, not how it learns; a data entry's source says itself where it is from."""


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_field_of_a_recipe_states_its_source(name: str) -> None:
    lines = shipped()[name].read_text().splitlines()
    if name == "demo":  # whose measurement is described in docs/evidence.md
        lines = lines[: lines.index("evaluation:")]
    fields = [line for line in lines if line.strip() and not line.lstrip().startswith("#") and not PLACE.match(line)]
    unsourced = [line for line in fields if not SOURCE.search(line.partition("#")[2])]
    assert not unsourced
    if name != "demo":
        assert "Where the paper disagrees with itself" in "\n".join(lines)


@pytest.mark.parametrize("name", [name for name in NAMES if "24gb" not in name])
def test_a_reply_has_the_papers_total_of_4096_tokens(name: str) -> None:
    stage = load_recipe(name).stages[-1]
    assert stage.kind == "rl"
    assert (stage.thinking_budget + stage.answer_budget, stage.forced) == (4096, "zero")
