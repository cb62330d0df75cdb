"""Low-rank adapters on the language model (peft), put in before training and merged for the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import Linear, Parameter

from xreasoner.errors import RecipeError
from xreasoner.models.offloading import copy_with, to_file
from xreasoner.recipe import LoRA


def adapt(model: Any, settings: LoRA) -> None:
    """Put float32 adapters beside the language model's linear layers, in place; they alone train then.

    Raises `RecipeError` for a target that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    language = model.model.language_model
    modules = language.layers.named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, Linear)}
    unknown = [target for target in settings.targets if target not in names]
    if unknown:
        raise RecipeError(f"lora.targets: no linear layer is named {unknown[0]!r}; known: {', '.join(sorted(names))}")
    model.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=rf"layers\..*\.({'|'.join(settings.targets)})",
        ),
        language,
    )
    for name, parameter in language.named_parameters():
        if ".lora_" in name:  # made in the type of the weights beside them
            parameter.data = parameter.data.float()


def merged(model: Any, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A copy with the adapters added to the weights, in float32; the model itself where it has none.

    Args:
        model: the model; the copy shares all weights that have no adapter.
        folder: on a disk with room for the sums, which are kept there instead of in memory; None: in memory.
        dtype: what the sums are rounded to.

    Returns:
        The copy.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    model = copy_with(model, lambda _, parameter: parameter)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            base = layer.get_base_layer()
            with torch.no_grad():
                weight = (base.weight.float() + layer.get_delta_weight("default").float()).to(dtype)
            base.weight = Parameter(weight if folder is None else to_file(weight, folder), requires_grad=False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, base)
    if hasattr(model.model.language_model, "peft_config"):
        del model.model.language_model.peft_config
    return model
