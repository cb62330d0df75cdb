"""A run's folder: whose it is. The one rule: the same command in the same folder resumes; anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xreasoner.checks import check_output
from xreasoner.errors import CheckpointError, UserError
from xreasoner.recipe import Recipe, difference

RULE = "the same command in the same --out resumes"
"""How a stopped run continues, as help, messages and docs state it."""


def check_run_folder(recipe: Recipe, out: Path) -> None:
    """Raise `UserError` unless a recipe may run in a folder: a new or empty one, or one of its own.

    Nothing is written. A run's manifest says whose it is, and so do its stages'.
    """
    check_output(out, folder=True)
    if not out.exists() or not any(_entries(out)):
        return
    wanted = recipe.model_dump(mode="json", by_alias=True)
    manifests = [path for path in (out / "manifest.json", *sorted(out.glob("*/manifest.json"))) if path.is_file()]
    recipes = [(path, found) for path in manifests if isinstance(found := _read(path).get("recipe"), dict)]
    for path, found in recipes:
        # a stage's manifest has no evaluation: how a model is measured does not change how it is trained
        compared = wanted if path.parent == out else {k: v for k, v in wanted.items() if k != "evaluation"}
        differs = difference(found, compared)
        if differs:
            raise UserError(f"{out} holds a run of another recipe ({differs}); set it back, or choose another --out")
    if not recipes:
        raise UserError(f"{out} is not empty and holds no run to resume; choose another --out")


def _entries(folder: Path) -> list[Path]:
    return [
        path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix not in (".partial", ".part")
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or choose another --out") from None
    return found if isinstance(found, dict) else {}
