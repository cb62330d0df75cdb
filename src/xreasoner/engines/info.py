"""What an engine says of its model: declared once, so that nobody guesses it from the engine's attributes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about an engine's model.

    Attributes:
        model_name: The name under which the engine knows its model; "" if it has none.
        context_length: Tokens that prompt and reply may have together; None if not known.
        min_pixels: Least image area of the image processor, in pixels; None if not known.
        max_pixels: Largest image area of the image processor, in pixels; None if not known; 0 if the service behind the
            engine chooses the size of images by itself.
        patch_size: Side of the square of pixels that becomes one image token (patch size × merge size: 28 in
            Qwen2.5-VL, 32 in Qwen3-VL); None if not known, or if the model has no such patches.
        supports_logprobs: Whether the engine gives the log-probability of each token.
    """

    model_name: str = ""
    context_length: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    patch_size: int | None = None
    supports_logprobs: bool = False


FAMILIES = (("qwen3vl", 32), ("qwen2vl", 28), ("qwen25vl", 28), ("xreasoner", 28))
"""What a model's name holds, in lower case without punctuation, and the side of its image tokens in pixels."""


def known_patch_size(model: str) -> int | None:
    """The side of an image token of a model that runs elsewhere: by its folder, if it is here, else by its name.

    Args:
        model: The name that a server knows; often a hub id or a folder.
    """
    path = Path(model) / "preprocessor_config.json"
    if model and path.is_file():
        return patch_size_in(path)
    name = re.sub(r"[^a-z0-9]", "", model.lower())
    return next((side for family, side in FAMILIES if family in name), None)


def patch_size_in(path: Path) -> int | None:
    """The side of an image token by a checkpoint's `preprocessor_config.json`; None if the file does not say."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return int(settings["patch_size"]) * int(settings.get("merge_size", 2))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
