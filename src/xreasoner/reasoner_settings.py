"""`xreasoner.json`: how a checkpoint was trained to be asked, and where it comes from, in its own folder.

An export carries it, so a copied, renamed or uploaded folder keeps its behavior. Readers (`Reasoner`, `ask`, `chat`,
`batch`, `serve`, `eval`) take their defaults from it. Without the file they fall back, first to the manifest of the
stage that the export lies in (exports of earlier versions), then to the model card's settings, and say so once.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from xreasoner.errors import CheckpointError
from xreasoner.hub import optional_hub_file
from xreasoner.registry import MODELS, resolve

FILE = "xreasoner.json"
CARD_MODELS = ("microsoft/x-reasoner",)
"""What hub ids begin with (in lower case) whose own settings are the fallback."""


@dataclass(frozen=True, slots=True)
class ReasonerSettings:
    """A checkpoint's own defaults. None: the reader's default holds, and for pixels the image processor's.

    Attributes:
        prompt: Name of the prompt (`prompts.PROMPTS`) that it was trained with.
        temperature: Sampling temperature for single questions; 0 is greedy.
        thinking_budget: Tokens until the thought is closed.
        answer_budget: Tokens of the answer after a thought that was closed at its budget.
        exit_text: Text that closes the thought at its budget.
        min_pixels: Least area of an image, in pixels.
        max_pixels: Largest area of an image, in pixels.
        provenance: recipe (name, sha256), stage, base (model, revision, weights_sha256), weights_sha256 of the export
            (`models.freezing.fingerprint` of its tensors), xreasoner (version). Never read for asking.
    """

    prompt: str | None = None
    temperature: float | None = None
    thinking_budget: int | None = None
    answer_budget: int | None = None
    exit_text: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "temperature": (int, float),
    "thinking_budget": (int,),
    "answer_budget": (int,),
    "exit_text": (str,),
    "min_pixels": (int,),
    "max_pixels": (int,),
    "provenance": (dict,),
}


def write_settings(folder: Path, settings: ReasonerSettings) -> None:
    """Write `xreasoner.json` into a checkpoint's folder."""
    text = json.dumps(asdict(settings), indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_reasoner_settings(model: str | Path, hub: bool = True) -> ReasonerSettings | None:
    """The settings that a model carries, or None.

    Args:
        model: A registered name, a folder, or a hub id.
        hub: Whether a hub id's file is fetched (or taken from the cache).

    Raises:
        CheckpointError: The file is damaged, or a field is of the wrong type; all such fields are named.
    """
    folder = _folder(str(model))
    if folder is None:
        path = optional_hub_file(str(model), FILE) if hub else None
        return None if path is None else _parse(path)
    return _parse(folder / FILE) if (folder / FILE).is_file() else None


def warn_of_fallback(model: str | Path, fallback: str) -> None:
    """Warn, once for each model, that it carries no settings.

    Args:
        model: As `read_reasoner_settings` takes it.
        fallback: What is used instead, in words.
    """
    name = str(model)
    if name in _warned or name.lower().startswith(CARD_MODELS):
        return
    _warned.add(name)
    warnings.warn(f"model {name!r} has no {FILE}, so {fallback}; give --prompt to choose", stacklevel=3)


_warned: set[str] = set()


def _folder(model: str) -> Path | None:
    if model in MODELS:
        found: Path = resolve(MODELS, "model", model)()
        return found
    return Path(model) if Path(model).exists() or model.count("/") != 1 or model.startswith((".", "/")) else None


def _parse(path: Path) -> ReasonerSettings:
    found = _read_object(path)
    names = {entry.name for entry in fields(ReasonerSettings)}
    settings = {name: value for name, value in found.items() if name in names and value is not None}
    wrong = [name for name, value in settings.items() if not _fits(name, value)]
    if wrong:
        shown = ", ".join(f"{name} {settings[name]!r:.40}" for name in wrong)
        expected = ", ".join(f"{name}: {_TYPES[name][-1].__name__}" for name in wrong)
        raise CheckpointError(f"{path}: found {shown}; expected {expected}; correct it, or remove the file")
    return ReasonerSettings(**settings)


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, _TYPES[name]):
        return False
    least = {"min_pixels": 1, "max_pixels": 1, "answer_budget": 1, "thinking_budget": 0, "temperature": 0}
    number: Any = value
    return name not in least or bool(number >= least[name])


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected an object")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}); export the model again, or remove the file and give --prompt"
        ) from None
    return found


def manifest_prompt(model: str) -> str | None:
    """The prompt that the manifest of the stage around an export names; exports of earlier versions carry nothing."""
    folder = Path(model)
    path = folder.parent / "manifest.json"
    if folder.name != "export" or not path.is_file():
        return None
    prompt = _read_object(path).get("prompt")
    if not isinstance(prompt, str):
        return None
    if model not in _warned:
        _warned.add(model)
        warnings.warn(f"model {model!r} has no {FILE}, so the prompt {prompt!r} is taken from {path}", stacklevel=3)
    return prompt
