"""Low-rank adapters on the language model (peft), put in before training and merged for the export."""

from __future__ import annotations

import copy
from typing import Any

from torch.nn import Linear

from xreasoner.errors import RecipeError
from xreasoner.recipe import LoRA


def adapt(model: Any, settings: LoRA) -> None:
    """Put adapters beside the language model's linear layers, in place; they alone train then.

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


def merged(model: Any) -> Any:
    """A copy with the adapters added to the weights; the model itself where it has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    if hasattr(model.model.language_model, "peft_config"):
        del model.model.language_model.peft_config
    return model
