"""Every shipped recipe loads; mistakes are named with the nearest field; every field is read by some code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import xreasoner
from xreasoner.errors import RecipeError
from xreasoner.recipe import AdamW, DataEntry, Evaluation, Recipe, RLStage, SFTStage, load_recipe, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name


def test_there_are_recipes() -> None:
    assert {"demo", "paper-7b-main-text", "paper-7b-appendix-b"} <= set(shipped())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sft.optimiser.lr=-0.1", "lr.*greater than 0.*-0.1"),
        ("stages.sft.batch_exampels=3", "batch_exampels.*did you mean 'batch_examples'"),
        ("stages.sft.prompt=breif", "did you mean 'brief'"),
        ("stages.sft+rl.from=sftt", "unknown stage 'sftt'"),
        ("stages.nothing.lr=3", "no item 'nothing'"),
        ("seed", "expected key=value"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [override])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        load_recipe("demoo")


def test_every_field_is_read() -> None:
    source = "\n".join(p.read_text() for p in Path(xreasoner.__file__).parent.rglob("*.py"))
    for part in (Recipe, SFTStage, RLStage, Evaluation, AdamW, DataEntry):
        for field in part.model_fields:
            if field != "kind":  # read by pydantic itself, to tell the stages apart
                assert re.search(rf"\.{field}\b", source), f"{part.__name__}.{field} is read by nothing"
