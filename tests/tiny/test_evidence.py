"""The bars of `make evidence`, on summaries whose values are written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from xreasoner.progress import CELLS
from xreasoner.tiny import evidence


def summary(final: float = 0.9, blind: float = 0.2, low: float = 0.6, read: float = 0.95) -> dict[str, Any]:
    """Base 0.3 everywhere, SFT 0.8; gains over the base as given."""

    def cells(accuracy: float, cut: float) -> dict[str, Any]:
        return {cell: {"accuracy": accuracy, "blind": blind, "forced": cut, "truncated": 0.0} for cell in CELLS}

    gains = []
    for cell in CELLS:
        entry = {
            "kind": "cell",
            "cell": cell,
            "after": "sft+rl",
            "before": "base",
            "difference": final - 0.3,
            "low": low,
        }
        if cell.startswith("image"):
            entry["above_blind"] = final - max(0.3, blind)
        gains += [entry, {**entry, "before": "sft", "difference": final - 0.8}]
    readings = {f"{cell}": {"accuracy": 0.99} for cell in CELLS}
    return {
        "cells": {"base": cells(0.3, 0.0), "sft": cells(0.8, 0.02), "sft+rl": cells(final, 0.01)},
        "gains": gains,
        "perception": {"base": readings, "sft+rl": {cell: {"accuracy": read} for cell in CELLS}},
        "benchmarks": {},
    }


def held(found: dict[str, Any]) -> set[str]:
    return {name for name, value, holds, _ in evidence.BARS if holds(value(found))}


def test_a_run_that_passes_passes_every_bar() -> None:
    assert held(summary()) == {name for name, *_ in evidence.BARS}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"blind": 0.6}, {"image/general over the best direct", "image gain ÷ text gain, general"}),
        ({"low": -0.01}, {"lowest end of the four 95 % intervals"}),
        ({"read": 0.93}, {"transcription of pictures lost"}),
        ({"final": 0.82}, {"RL over SFT, text/general"}),
    ],
)
def test_each_bar_can_be_missed(changes: dict[str, float], missed: set[str]) -> None:
    assert missed <= {name for name, *_ in evidence.BARS} - held(summary(**changes))


def test_the_table_counts_the_seeds() -> None:
    table = evidence.table([summary(), summary(read=0.9)])
    assert "| transcription of pictures lost | at most 5 points | +4.0 | +9.0 | 1 of 2 |" in table
    assert "| sft+rl | 90.0 (90.0–90.0) | 90.0 (90.0–90.0) | 90.0 (90.0–90.0, blind 20.0) |" in table
