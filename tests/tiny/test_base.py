"""Making the base: it goes on where it stopped."""

import json
from pathlib import Path

import pytest
import torch

from xreasoner.models.loading import load
from xreasoner.tiny import architecture, base


@pytest.mark.slow
def test_a_stopped_base_goes_on_at_its_step(tmp_path: Path) -> None:
    tokenizer = load("tiny-base").tokenizer
    world = base.outside_world(0)
    base.teach(architecture.build(tokenizer, 0), tokenizer, world, tmp_path, steps=50, seed=0)
    state = torch.load(tmp_path / "language.pt", weights_only=False)
    torch.save({**state, "read": 1000.0}, tmp_path / "language.pt")  # the mark of a moving average that goes on
    base.teach(architecture.build(tokenizer, 0), tokenizer, world, tmp_path, steps=100, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[1]["cells"] > 300.0
