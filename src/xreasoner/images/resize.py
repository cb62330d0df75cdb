"""Resizing images as the model card's two snippets do, before a model's image processor sees them.

The card's vLLM snippet gives images to the processor as they are. Its Transformers snippet sends them through
qwen-vl-utils 0.0.14 first, which makes each side a multiple of the image token's side; the processor then resizes the
result to its own limits, so grids differ from the first way's for about a quarter of all sizes.
"""

from __future__ import annotations

import math

from PIL.Image import Image, Resampling

from xreasoner.errors import UserError

MIN_TOKENS, MAX_TOKENS = 4, 16_384
"""Image tokens of one image in qwen-vl-utils 0.0.14, unless a message says otherwise."""
MAX_RATIO = 200
"""Of the longer side to the shorter."""


def first_size(width: int, height: int, patch_size: int) -> tuple[int, int]:
    """(width, height) to which qwen-vl-utils 0.0.14 resizes an image that says nothing of its pixels.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        patch_size: Side of an image token in pixels.

    Raises:
        UserError: One side is more than 200 times as long as the other.
    """
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UserError(
            f"an image of {width} × {height}: expected a side at most {MAX_RATIO} times as long as the other"
        )
    least, most = (tokens * patch_size**2 for tokens in (MIN_TOKENS, MAX_TOKENS))
    sides = [max(patch_size, round(side / patch_size) * patch_size) for side in (width, height)]
    if sides[0] * sides[1] > most:
        shrink = math.sqrt(width * height / most)
        sides = [math.floor(side / shrink / patch_size) * patch_size for side in (width, height)]
    elif sides[0] * sides[1] < least:
        grow = math.sqrt(least / (width * height))
        sides = [math.ceil(side * grow / patch_size) * patch_size for side in (width, height)]
    return sides[0], sides[1]


def first_resized(image: Image, patch_size: int) -> Image:
    """The image as qwen-vl-utils 0.0.14 hands it to the processor. patch_size: side of an image token in pixels."""
    return image.resize(first_size(*image.size, patch_size))


def resized_within(image: Image, least: int | None, most: int | None, patch_size: int) -> Image:
    """The image within limits of its area, as Qwen's own processor resizes it; each side a multiple of patch_size.

    Args:
        image: Any image.
        least: Least area in pixels; None: 4 image tokens.
        most: Largest area in pixels; None: 16,384 image tokens.
        patch_size: Side of an image token in pixels.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # seconds to import

    token = patch_size**2
    height, width = smart_resize(
        image.height, image.width, patch_size, least or MIN_TOKENS * token, most or MAX_TOKENS * token
    )
    return image if (width, height) == image.size else image.resize((width, height), Resampling.BICUBIC)
