"""Tests that run inside another project's environment are collected there alone (`make test-trl`)."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [f"test_{name}.py" for name in ("trl", "verl") if not find_spec(name)]
