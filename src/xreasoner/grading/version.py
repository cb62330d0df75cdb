"""Which grader judged a reply: a hash over the grader's own code and the library that reads mathematics."""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from importlib.resources import files

_NOT_RULES = ("__init__.py", "rescoring.py", "rewards.py", "version.py")
"""Modules that read files or pay rewards and decide no verdict."""


@cache
def grader_version() -> str:
    """The first 12 digits of a sha256 over the modules that decide verdicts and the version of math-verify."""
    modules = sorted(
        (path for path in files("xreasoner.grading").iterdir() if path.name.endswith(".py")),
        key=lambda path: path.name,
    )
    code = hashlib.sha256()
    for path in modules:
        if path.name not in _NOT_RULES:
            code.update(path.name.encode() + b"\0" + path.read_bytes())
    code.update(importlib.metadata.version("math-verify").encode())
    return code.hexdigest()[:12]
