"""The transfer report: one self-contained page that shows what post-training did."""

from __future__ import annotations

from xreasoner.reporting.page import write_report

__all__ = ["write_report"]
