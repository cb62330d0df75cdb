"""Writing a plain Hugging Face folder that old and new transformers, and vLLM, load."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xreasoner import __version__
from xreasoner.errors import UserError
from xreasoner.models.freezing import fingerprint
from xreasoner.reasoner_settings import ReasonerSettings, write_settings

SHARD_SIZE = "4GB"
"""Of one file of weights; a larger model has several and their index."""


def export(
    model: Any,
    tokenizer: Any,
    image_processor: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    settings: ReasonerSettings | None = None,
) -> Path:
    """Write model, tokenizer and image processor aside, then rename; an older folder is replaced whole.

    transformers 5 saves what the card's 4.57.1 cannot read, so the old form of the rotary settings, of the
    tokenizer's class and special tokens, and of the pictures' size is written too.

    Args:
        model: What is written; its own dtype stays.
        tokenizer: With its chat template.
        image_processor: With its limits.
        folder: Where to.
        dtype: What the weights are written in; None: as they are.
        settings: How the model is asked, written as `xreasoner.json` together with the version of this package and
            the fingerprint of the tensors as they are written.

    Raises:
        OSError: The disk is full; the older folder then stays as it was.
    """
    state = model.state_dict() if dtype is None else _converted(model.state_dict(), dtype)
    # before it is saved, as save_pretrained takes tied tensors out of the dictionary
    digest = None if settings is None else fingerprint(sorted(state.items()))
    with _aside(folder) as aside:
        before = model.config.dtype  # which save_pretrained overwrites
        try:
            model.save_pretrained(aside, state_dict=state, max_shard_size=SHARD_SIZE)
        finally:
            model.config.dtype = before
        tokenizer.save_pretrained(aside)
        image_processor.save_pretrained(aside)
        for path in aside.glob("*.safetensors"):
            path.chmod(
                (aside / "config.json").stat().st_mode
            )  # safetensors makes them for the owner alone, and a server may be somebody else
        _write_old_form(aside)
        if dtype:
            _write_dtype(aside / "config.json", str(dtype).removeprefix("torch."))
        if settings is not None:
            identity = {"xreasoner": __version__, "weights_sha256": digest}
            write_settings(aside, replace(settings, provenance={**settings.provenance, **identity}))
    return folder


def _converted(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in another type; those that are tied stay one, or both would be written."""
    found: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        found.setdefault(key, tensor.to(dtype))
    return {name: found[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def check_exportable(model: Any, tokenizer: Any, image_processor: Any, folder: Path) -> None:
    """Write everything that `export` writes but the weights into a scratch folder beside `folder`, and remove it.

    Raises:
        UserError: a part of the model cannot be written, such as a generation_config.json that contradicts itself.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-check-") as scratch:
        try:
            model.config.save_pretrained(scratch)
            if model.can_generate():
                model.generation_config.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            image_processor.save_pretrained(scratch)
            _write_old_form(Path(scratch))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the model could not be exported at the end: {reason}; fix its folder's JSON files"
            ) from None


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` at the end, or is removed when something fails."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        refused = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers raise kinds of their own
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(folder)) from error
    _replace(aside, folder)


def _write_old_form(folder: Path) -> None:
    for name, change in (
        ("config.json", _old_rope),
        ("tokenizer_config.json", _old_tokenizer),
        ("preprocessor_config.json", _old_sizes),
    ):
        path = folder / name
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _write_dtype(path: Path, dtype: str) -> None:
    """save_pretrained writes down the model's type, not that of the tensors it was given."""
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _old_rope(config: dict[str, Any]) -> None:
    """4.57 fails in the forward pass without `rope_scaling` and `rope_theta`; Qwen3-VL's have another form."""
    rope = config["text_config"].get("rope_parameters")
    if not rope or "mrope_section" not in rope:
        return
    old: dict[str, Any] = {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    if rope.get("mrope_interleaved"):
        old["rope_scaling"] = {key: rope[key] for key in ("rope_type", "mrope_section", "mrope_interleaved")}
    old["rope_theta"] = rope["rope_theta"]
    config["text_config"].update(old)
    if not rope.get("mrope_interleaved"):
        config.update(old)


def _old_tokenizer(settings: dict[str, Any]) -> None:
    """4.57 knows no `TokenizersBackend`, and calls `keys()` on the list of `extra_special_tokens`."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")


def _old_sizes(settings: dict[str, Any]) -> None:
    """4.57 puts its own defaults over `size` where `min_pixels` and `max_pixels` are missing."""
    size = settings["size"]
    settings["min_pixels"], settings["max_pixels"] = size["shortest_edge"], size["longest_edge"]


def _replace(aside: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
