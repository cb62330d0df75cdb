"""Freezing the vision tower, and proving that it stayed frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from xreasoner.errors import UserError

VISION = "visual."
"""Part of every name in Qwen2.5-VL's vision tower and merger."""


def vision_tensors(model: Any) -> list[tuple[str, Tensor]]:
    """The named tensors of the tower and the merger, in a fixed order."""
    return sorted((name, tensor) for name, tensor in model.state_dict().items() if VISION in name)


def freeze(model: Any, lower_layers: int = 0, embeddings: bool = False, lora: bool = False) -> list[tuple[str, Tensor]]:
    """Take tower and merger out of training, and so many lower layers of the language model, and its embeddings.

    lora: all but the adapters. Returns what is frozen, by name. Tied output weights are frozen with the embeddings.
    """
    if not any(VISION in name for name, _ in model.named_parameters()):
        raise UserError(
            f"a model of type {model.config.model_type!r} names no tensor {VISION!r}, so its vision tower could not be "
            "frozen; expected one of the Qwen-VL families to train"
        )
    layers = model.config.text_config.num_hidden_layers
    if lower_layers >= layers:
        raise UserError(f"lower_layers_frozen: found {lower_layers}, expected less than the model's {layers} layers")
    low = tuple(f"language_model.layers.{index}." for index in range(lower_layers))
    low += ("embed_tokens.",) if embeddings else ()
    frozen = []
    for name, parameter in model.named_parameters():
        still = VISION in name or any(part in name for part in low) or (lora and ".lora_" not in name)
        parameter.requires_grad_(not still)
        if still:
            frozen.append((name, parameter))
    return sorted(frozen)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
