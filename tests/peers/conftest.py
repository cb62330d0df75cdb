"""Tests that run inside another project's environment are collected there alone (`make test-trl`)."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("trl") else ["test_trl.py"]
