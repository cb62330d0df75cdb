"""One question to one model, as the card shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from xreasoner.completion import Completion
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import CheckpointError, UserError
from xreasoner.media import Guard, picture
from xreasoner.models.loading import load
from xreasoner.problem import LABELS, Problem
from xreasoner.prompts import PROMPTS, chat_messages
from xreasoner.registry import MODELS, nearest


def read_picture(path: Path) -> Image.Image:
    """An RGB picture from a file that the user named, wherever it lies. Raises `MediaError`."""
    whole = path.absolute()
    return picture(whole, Guard(root=Path(whole.anchor)), name=str(path))


def default_prompt(model: str, options: Sequence[str]) -> str:
    """What the model was trained with where that is known, else the card's (the paper's where there are no options)."""
    if model in MODELS:
        return "brief-direct" if model.endswith("-base") else "brief"
    return trained_prompt(Path(model)) or ("card-mc-vllm" if options else "paper-train")


def trained_prompt(folder: Path) -> str | None:
    """The prompt that a checkpoint's training recorded: in its own folder, or in the stage's manifest beside it."""
    for path in (folder / "xreasoner.json", folder.parent / "manifest.json"):
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{path}: not JSON ({error}); give --prompt, or export the model again") from None
            if isinstance(found, dict) and found.get("prompt") in PROMPTS:
                return str(found["prompt"])
    return None


def ask(
    model: str,
    question: str,
    pictures: Sequence[Path] = (),
    options: Sequence[str] = (),
    *,
    prompt: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    thinking_budget: int = 4000,
    answer_budget: int = 256,
) -> Completion:
    """Put a question to a model. Raises `UserError` for an empty question or an unknown prompt."""
    if not question.strip():
        raise UserError('the question is empty; expected some text, as in: xreasoner ask tiny "What is 3 + 4?"')
    if len(options) > len(LABELS):
        raise UserError(f"{len(options)} options were given, at most {len(LABELS)} have a label")
    images = tuple(read_picture(path) for path in pictures)
    chosen = prompt or default_prompt(model, options)
    if chosen not in PROMPTS:
        raise UserError(f"unknown prompt {chosen!r}; {nearest(chosen, PROMPTS)}")
    problem = Problem("question", question, "", "text", tuple(options), images)
    loaded = load(model)
    room = loaded.model.config.text_config.max_position_embeddings // 2
    sampling = Sampling(temperature, thinking_budget=min(thinking_budget, room), answer_budget=answer_budget, seed=seed)
    return TorchEngine(loaded).generate([Request(chat_messages(problem, chosen), images, sampling=sampling)])[0][0]
