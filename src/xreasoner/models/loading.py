"""Loading a vision-language model, and turning messages and pictures into its inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner.engines.base import Message
from xreasoner.errors import CheckpointError, UserError
from xreasoner.registry import MODELS, resolve


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer and image processor. folder: where it came from; name: as the user gave it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    folder: str
    name: str

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt. input_ids [T]; position_ids [3, T] (time, row, column); patches [P, D] and grids [N, 3] or None."""

    input_ids: Tensor
    position_ids: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None


def find(name: str) -> str:
    """The folder or hub id behind a model's name. Raises `CheckpointError` for a folder that is no checkpoint."""
    folder = resolve(MODELS, "model", name)() if name in MODELS else Path(name)
    if not folder.is_dir():
        if name in MODELS:
            raise CheckpointError(
                f"model {name!r}: its folder is missing from this installation; make it with `make base`"
            )
        if name.count("/") == 1 and not name.startswith((".", "/")) and not folder.exists():
            return name  # a hub id
        known = ", ".join(sorted(MODELS))
        raise UserError(f"model {name!r}: no such folder; expected a checkpoint's folder, a hub id, or one of {known}")
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise CheckpointError(f"model {name!r}: {folder / needed} is missing; expected a Hugging Face folder")
    return str(folder)


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None) -> Loaded:
    """Load a model by registered name, folder or hub id: float32 on a CPU, bfloat16 on a GPU unless told."""
    where = find(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype).to(device)
        tokenizer = AutoTokenizer.from_pretrained(where)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(where)
    except (SafetensorError, json.JSONDecodeError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"model {name!r} cannot be read from {where}: {reason}; export or copy it again"
        ) from error
    model.eval()
    return Loaded(model, tokenizer, image_processor, where, name)


_LOOKALIKE = str.maketrans({"|": "¦"})


def _plain(loaded: Loaded, text: str) -> str:
    """Text in which no special token is spelled: `<|image_pad|>` typed by a user is not a picture."""
    for token in loaded.tokenizer.all_special_tokens:
        if token in text:
            text = text.replace(token, token.translate(_LOOKALIKE))
    return text


def _safe(loaded: Loaded, messages: Sequence[Message]) -> list[Message]:
    safe = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = _plain(loaded, content)
        else:
            content = [
                {**part, "text": _plain(loaded, part["text"])} if part["type"] == "text" else part for part in content
            ]
        safe.append({**message, "content": content})
    return safe


def encode(loaded: Loaded, messages: Sequence[Message], images: Sequence[Image] = ()) -> Encoded:
    """The ids of a chat prompt that ends where the assistant begins, pictures expanded to their tokens.

    Raises `UserError` when the number of pictures differs from that of the placeholders.
    """
    text = loaded.tokenizer.apply_chat_template(_safe(loaded, messages), tokenize=False, add_generation_prompt=True)
    pad = loaded.model.config.image_token_id
    ids: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False)
    if ids.count(pad) != len(images):
        raise UserError(f"the messages have {ids.count(pad)} places for pictures, {len(images)} were given")
    patches = grids = None
    if images:
        pixels = loaded.image_processor([image.convert("RGB") for image in images], return_tensors="pt")
        patches, grids = pixels["pixel_values"], pixels["image_grid_thw"]
        merge = loaded.image_processor.merge_size**2
        counts = iter((grids.prod(-1) // merge).tolist())
        ids = [token for i in ids for token in ([pad] * next(counts) if i == pad else [i])]
    input_ids = torch.tensor(ids)
    if grids is None:
        return Encoded(input_ids, torch.arange(len(ids)).expand(3, -1), None, None)
    kinds = (input_ids == pad).long()
    position_ids, _ = loaded.model.model.get_rope_index(
        input_ids[None], mm_token_type_ids=kinds[None], image_grid_thw=grids
    )
    return Encoded(input_ids, position_ids[:, 0], patches, grids)
