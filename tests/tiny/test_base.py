"""Making the base: it goes on where it stopped."""

import json
from pathlib import Path

import pytest

from xreasoner.models.loading import load
from xreasoner.tiny import architecture, base


@pytest.mark.slow
def test_a_stopped_base_goes_on_at_its_step(tmp_path: Path) -> None:
    tokenizer = load("tiny-base").tokenizer
    world = base.outside_world(0)
    for steps in (50, 100):
        base.teach(architecture.build(tokenizer, 0), tokenizer, world, tmp_path, steps=steps, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100]
    assert rows[1]["loss"] < rows[0]["loss"]
