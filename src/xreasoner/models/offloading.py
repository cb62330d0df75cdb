"""Weights that take no memory: copies of a model without any, and tensors that are read from a file when needed."""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from xreasoner.models.freezing import VISION


def copy_with(model: Any, replace: Callable[[str, Parameter], Parameter]) -> Any:
    """A copy of a model with other parameters; buffers are copied.

    Args:
        model: the model; parameters that modules share stay shared.
        replace: gives the copy's parameter for a name and a parameter, which may be the same.

    Returns:
        The copy.
    """
    memo: dict[int, Any] = {id(parameter): replace(name, parameter) for name, parameter in model.named_parameters()}
    return copy.deepcopy(model, memo)


def copy_text_part(model: Any) -> Any:
    """A copy of a model that shares the vision tower, which nothing in a text stage computes with or changes."""

    def replace(name: str, parameter: Parameter) -> Parameter:
        return parameter if VISION in name else Parameter(parameter.detach().clone(), parameter.requires_grad)

    return copy_with(model, replace)


def copy_structure(model: Any) -> Any:
    """A copy of a model whose text weights are on the meta device; it shares the vision tower."""

    def replace(name: str, parameter: Parameter) -> Parameter:
        if VISION in name:
            return parameter
        return Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)

    return copy_with(model, replace)


def offload_vision(model: Any, folder: Path) -> int:
    """Move the vision tower from memory to a file, from which whatever reads a weight reads it.

    The file has no name any more when this returns, so that nothing is left behind when the process ends.

    Args:
        model: the model, changed in place; a tower on the meta device stays as it is.
        folder: on a disk with room for the tower.

    Returns:
        The bytes that were moved.

    Raises:
        OSError: the disk is full.
    """
    moved = 0
    for name, parameter in model.named_parameters():
        if VISION in name and not parameter.is_meta:
            parameter.data = to_file(parameter.detach(), folder)
            moved += parameter.nbytes
    _return_freed_memory()
    return moved


def _return_freed_memory() -> None:
    """glibc keeps what was freed in blocks of up to 32 MB, which most of a tower's tensors are."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries have none
        if trim is not None:
            trim(0)


def to_file(tensor: Tensor, folder: Path) -> Tensor:
    """The tensor's values in a file that has no name, as a CPU tensor; the operating system may drop its pages."""
    data = tensor.detach().cpu().contiguous()
    if not data.numel():
        return data
    handle, name = tempfile.mkstemp(prefix=".offloaded-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            data.flatten().view(torch.uint8).numpy().tofile(file)
        # a file for each tensor: what saves a model takes tensors of one storage for the same one
        storage = torch.UntypedStorage.from_file(name, shared=False, nbytes=data.nbytes)
    finally:
        os.unlink(name)
    found: Tensor = torch.empty(0, dtype=data.dtype).set_(storage, 0, data.shape)  # type: ignore[call-overload]
    return found
