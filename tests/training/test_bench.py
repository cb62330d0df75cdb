"""The benchmark's own parts run here in small sizes, the GPU's in its CPU form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from xreasoner.tiny import base


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "training.py"
    spec = importlib.util.spec_from_file_location("bench_training", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FOLDER = str(Path(base.__file__).parent / "base")


@pytest.mark.parametrize("part", ["sft_ours", "rl_ours", "sizes_ours", "gpu_ours"])
def test_parts_run(bench: ModuleType, part: str) -> None:
    found = bench.PARTS[part](bench.QUICK, FOLDER)
    rows = found.get("table", [found])
    assert all(row.get("tokens_per_s", 1) > 0 and row.get("seconds", 1) > 0 for row in rows)
    assert json.loads(json.dumps(found))
    assert bench.table({part: found})
    if part == "rl_ours":
        assert found["reply_tokens"] >= bench.QUICK["reply"]


def test_flops_of_a_step_are_counted_as_torch_counts_them(bench: ModuleType) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from xreasoner.data.packing import hidden_states

    model = bench.shaped(128, 2, 4, 2, 256, True, 512, "cpu")
    language = model.model.language_model
    with FlopCounterMode(display=False) as counter:
        model.lm_head(hidden_states(model, torch.zeros(1, 64, dtype=torch.long))).sum().backward()
    weights = sum(p.numel() for name, p in language.named_parameters() if "proj" in name) + model.lm_head.weight.numel()
    # the embedding's gradient is no matrix product; attention is left out by torch's counter on a CPU
    assert counter.get_total_flops() == pytest.approx(6 * weights * 64, rel=0.02)
