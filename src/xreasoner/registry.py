"""The names under which checkpoints, data and benchmarks are known. Each is imported only when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
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


LISTED = {"benchmark": "`xreasoner benches` lists them", "data source": "docs/cli.md lists them"}
"""Where all names of a kind are listed."""


def nearest(name: str, known: Iterable[str], listed: str = "") -> str:
    """A hint for a message: up to three close names, and how to see all of them.

    Args:
        name: what was found.
        known: the names that are accepted.
        listed: where all names are listed, such as "`xreasoner benches` lists them"; short lists are shown whole.
    """
    names = sorted(known)
    by_case = [each for each in names if each.casefold() == name.casefold()]
    close = list(dict.fromkeys([*by_case, *difflib.get_close_matches(name, names, n=3)]))[:3]
    if close:
        hint = f"did you mean {_either([repr(each) for each in close])}?"
        return f"{hint} {listed}".rstrip() if listed and len(names) > FEW else hint
    if len(names) <= FEW or not listed:
        shown = names if len(names) <= FEW else difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        return f"expected {_either(shown)}" if len(names) <= FEW else f"such as {_either(shown)}"
    return listed


FEW = 12
"""Names that a message lists whole."""


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def resolve(table: dict[str, str], kind: str, name: str) -> Callable[..., Any]:
    """The function behind a registered name. Raises `UserError` with the nearest name for an unknown one."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; {nearest(name, table, LISTED.get(kind, ''))}")
    module, function = table[name].split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
