"""Loading a vision-language model, and turning messages and pictures into its inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner.engines.base import Message
from xreasoner.errors import CheckpointError, UserError
from xreasoner.registry import MODELS, resolve


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer and image processor.

    folder: where it came from (a folder, or a hub id); name: as the user gave it; revision: a hub model's commit.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    folder: str
    name: str
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt.

    input_ids [T]; position_ids [3, T] (time, row, column); pixel_values [P, D], the patches of all N pictures, and
    image_grid_thw [N, 3], their grids in patches, or None where there is no picture.
    """

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
    _check_files(name, folder)
    return str(folder)


def _check_files(name: str, folder: Path) -> None:
    """Raise `CheckpointError` that names the first file that is cut short, or another model's."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            else:
                with safe_open(path, "pt"):
                    pass
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"model {name!r} cannot be read: {path} is damaged or cut short ({_line(error)}); {_mend(name)}"
            ) from error
    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if kind != "qwen2_5_vl":
        raise CheckpointError(f"model {name!r}: {folder / 'config.json'} is of type {kind!r}; expected 'qwen2_5_vl'")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _mend(name: str) -> str:
    if name in MODELS:
        return "reinstall the package, or make it again with `make base`"
    if not Path(name).exists():
        return f"fetch it again with `hf download {name} --force-download`"
    return "copy it again, or run `xreasoner train` with its recipe again"


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None) -> Loaded:
    """Load a model by registered name, folder or hub id: float32 on a CPU, bfloat16 on a GPU unless told.

    Raises `CheckpointError` for a damaged or foreign checkpoint, `UserError` for a name that stands for nothing.
    """
    where = find(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=dtype).to(device)
        tokenizer = AutoTokenizer.from_pretrained(where)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(where)
    except (SafetensorError, json.JSONDecodeError, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(f"model {name!r} cannot be read from {where}: {_line(error)}; {_mend(name)}") from error
    model.eval()
    return Loaded(model, tokenizer, image_processor, where, name, getattr(model.config, "_commit_hash", None))


_LOOKALIKE = str.maketrans({"|": "¦"})


def _plain(loaded: Loaded, text: str) -> str:
    """Text in which no special token is spelled: `<|image_pad|>` typed by a user is not a picture."""
    for token in loaded.tokenizer.added_tokens_decoder.values():
        if token.special and token.content in text:
            text = text.replace(token.content, token.content.translate(_LOOKALIKE))
    return text


def _safe(loaded: Loaded, messages: Sequence[Message]) -> list[Message]:
    safe = []
    for message in messages:
        content = message["content"]
        content = _plain(loaded, content) if isinstance(content, str) else _safe_parts(loaded, content)
        safe.append({**message, "role": _plain(loaded, message["role"]), "content": content})
    return safe


def _safe_parts(loaded: Loaded, parts: Sequence[Any]) -> list[Any]:
    """Neighbouring texts become one first, or a special token could be spelled across two of them."""
    merged: list[Any] = []
    for part in parts:
        if part.get("type") not in ("text", "image"):
            raise UserError(f"a message's part is of type {part.get('type')!r}; expected 'text' or 'image'")
        if merged and part["type"] == "text" == merged[-1]["type"]:
            merged[-1] = {"type": "text", "text": merged[-1]["text"] + part["text"]}
        else:
            merged.append(part)
    return [{**part, "text": _plain(loaded, part["text"])} if part["type"] == "text" else part for part in merged]


def encode(loaded: Loaded, messages: Sequence[Message], images: Sequence[Image] = ()) -> Encoded:
    """The ids of a chat prompt that ends where the assistant begins, pictures expanded to their tokens.

    Special tokens that the user's text spells stay text. Raises `UserError` when the number of pictures differs
    from that of the placeholders.
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
