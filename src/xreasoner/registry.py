"""The names under which checkpoints, data and benchmarks are known. Each is imported only when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from xreasoner.errors import UserError

MODELS: dict[str, str] = {
    "tiny": "xreasoner.tiny.checkpoints:reasoner_folder",
    "tiny-base": "xreasoner.tiny.checkpoints:base_folder",
}
"""name → "module:function"; the function returns the checkpoint's folder as a `Path`."""

SOURCES: dict[str, str] = {
    "tiny": "xreasoner.tiny.sources:world",
    "tiny-read": "xreasoner.tiny.sources:reading",
    "gym": "xreasoner.tiny.sources:gym",
    "jsonl": "xreasoner.data.rows:questions",
    "rows": "xreasoner.data.rows:questions",
    "messages": "xreasoner.data.rows:messages",
    "openthoughts": "xreasoner.data.public:openthoughts",
    "orz": "xreasoner.data.public:orz",
    "medqa": "xreasoner.data.public:medqa",
    "medmcqa": "xreasoner.data.public:medmcqa",
    "reasoning-gym": "xreasoner.data.procedural:procedural",
}
"""name → "module:function"; the function takes the data entry's `options` and returns a `data.sources.Source`."""

BENCHMARKS: dict[str, str] = {
    "tiny-text-general": "xreasoner.tiny.benchmarks:text_general",
    "tiny-text-clinical": "xreasoner.tiny.benchmarks:text_clinical",
    "tiny-image-general": "xreasoner.tiny.benchmarks:image_general",
    "tiny-image-clinical": "xreasoner.tiny.benchmarks:image_clinical",
    "tiny-read-text-general": "xreasoner.tiny.benchmarks:read_text_general",
    "tiny-read-text-clinical": "xreasoner.tiny.benchmarks:read_text_clinical",
    "tiny-read-image-general": "xreasoner.tiny.benchmarks:read_image_general",
    "tiny-read-image-clinical": "xreasoner.tiny.benchmarks:read_image_clinical",
    "easy-vqa": "xreasoner.benchmarks.easyvqa:easy_vqa",
    "gym-train": "xreasoner.tiny.benchmarks:gym_train",
    "gym-held-out": "xreasoner.tiny.benchmarks:gym_held_out",
}
"""name → "module:function"; the function takes (n, seed) and returns a list of `Problem`."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the closest known name, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def resolve(table: dict[str, str], kind: str, name: str) -> Callable[..., Any]:
    """The function behind a registered name. Raises `UserError` with the nearest name for an unknown one."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; {nearest(name, table)}")
    module, function = table[name].split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
