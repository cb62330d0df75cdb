"""What an export says of itself: how its model is asked, and which recipe, stage and base it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from xreasoner.engines.base import Sampling
from xreasoner.models.loading import Loaded
from xreasoner.reasoner import PIXELS
from xreasoner.reasoner_settings import ReasonerSettings, read_reasoner_settings
from xreasoner.recipe import Recipe, RLStage, SFTStage


def export_settings(recipe: Recipe, stage: SFTStage | RLStage, parent: Loaded, parent_sha256: str) -> ReasonerSettings:
    """The `xreasoner.json` of a stage's export.

    Budgets, exit text and pixels are those under which the recipe evaluates, if it says so; else the stage's. The
    temperature is the base's own, if it has one.

    Args:
        recipe: The run's.
        stage: The stage that was trained.
        parent: The model that it started from.
        parent_sha256: The fingerprint of that model's tensors.
    """
    before = read_reasoner_settings(parent.name) or ReasonerSettings()
    started = {"model": parent.name, "revision": parent.revision, "weights_sha256": parent_sha256}
    is_first = recipe.parent(stage) == "base"
    provenance = {
        "recipe": {"name": recipe.name, "sha256": recipe_sha256(recipe)},
        "stage": stage.name,
        "base": started if is_first else before.provenance.get("base", {"model": recipe.model}),
    }
    if not is_first:
        provenance["parent"] = {"stage": recipe.parent(stage), "weights_sha256": parent_sha256}
    budgets = _budgets(recipe, stage)
    area = PIXELS if parent.image_processor.size["longest_edge"] >= PIXELS else None
    measured = recipe.evaluation
    return ReasonerSettings(
        prompt=stage.prompt,
        temperature=before.temperature,
        thinking_budget=budgets.thinking_budget,
        answer_budget=budgets.answer_budget,
        exit_text=_exit_text(recipe, stage),
        min_pixels=measured.min_pixels or area,
        max_pixels=measured.max_pixels or area,
        provenance=provenance,
    )


def _exit_text(recipe: Recipe, stage: SFTStage | RLStage) -> str:
    """The evaluation's, if the recipe says so; else the stage's own."""
    if "exit_text" in recipe.evaluation.model_fields_set:
        return recipe.evaluation.exit_text
    return stage.exit_text if isinstance(stage, RLStage) or stage.longer == "close" else Sampling().exit_text


def _budgets(recipe: Recipe, stage: SFTStage | RLStage) -> Any:
    """The part of the recipe that holds the budgets."""
    says = "thinking_budget" in recipe.evaluation.model_fields_set
    return recipe.evaluation if says or isinstance(stage, SFTStage) else stage


def recipe_sha256(recipe: Recipe) -> str:
    """Of everything that determines the training; how it is evaluated is left out."""
    dumped = recipe.model_dump(mode="json", by_alias=True, exclude={"evaluation"})
    return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()
