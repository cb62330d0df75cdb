"""Writing a plain Hugging Face folder that old and new transformers, and vLLM, load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch


def export(model: Any, tokenizer: Any, image_processor: Any, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """Write model, tokenizer and image processor aside, then rename; an older folder is replaced whole.

    transformers 5 saves a configuration that the card's 4.57.1 cannot read, so the old form of the rotary
    settings and of the tokenizer's class stand beside the new one.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    state = {name: tensor.to(dtype) if dtype else tensor for name, tensor in model.state_dict().items()}
    before = model.config.dtype
    model.config.dtype = dtype or before
    try:
        model.save_pretrained(aside, state_dict=state)
    finally:
        model.config.dtype = before
    tokenizer.save_pretrained(aside)
    image_processor.save_pretrained(aside)
    _write_old_form(aside)
    _replace(aside, folder)
    return folder


def _write_old_form(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config["text_config"].get("rope_parameters")
    if rope and "mrope_section" in rope:
        old = {
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
            "rope_theta": rope["rope_theta"],
        }
        config["text_config"].update(old)
        config.update(old)
    path.write_text(json.dumps(config, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _replace(aside: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
