"""Both stages on a random model: frozen means frozen, nothing leaks, and a killed run ends as an unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from xreasoner.data import packing
from xreasoner.data.sources import Example
from xreasoner.errors import RecipeError, TrainingError, UserError
from xreasoner.models.loading import Loaded, load
from xreasoner.problem import Problem
from xreasoner.recipe import Recipe, load_recipe
from xreasoner.training import checkpoints
from xreasoner.training.run import check, run_recipe, sft_data


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def _recipe(folder: Path, *more: str) -> Recipe:
    data = "[{source: tiny, n: 40}]"
    return load_recipe(
        "demo",
        [
            f"model={folder}",
            f"stages.base-direct.data={data}",
            f"stages.sft.data={data}",
            "stages.sft.batch_examples=8",
            "stages.base-direct.batch_examples=20",
            "stages.sft.checkpoint_seconds=1e-6",
            f"stages.sft+rl.data={data}",
            "stages.sft+rl.steps=3",
            "stages.sft+rl.prompts_per_step=3",
            "stages.sft+rl.group_size=4",
            "stages.sft+rl.thinking_budget=12",
            "stages.sft+rl.answer_budget=6",
            "stages.sft+rl.format_reward=0.5",
            "stages.sft+rl.drop_zero_variance=false",
            "stages.sft+rl.checkpoint_seconds=1e-6",
            *more,
        ],
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(str(folder)).model.state_dict()


def test_killed_runs_end_as_unbroken_ones_and_the_tower_stays(random_folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(random_folder)
    run_recipe(recipe, tmp_path / "whole")
    for stage, at in (("sft", 2), ("sft+rl", 1), ("sft+rl", 2)):

        def kill(name: str, step: int, total: int, metrics: dict[str, Any], stage: str = stage, at: int = at) -> None:
            if name == stage and step == at:
                raise Killed

        with pytest.raises(Killed):
            run_recipe(recipe, tmp_path / "killed", kill)
    run_recipe(recipe, tmp_path / "killed")
    for stage in ("base-direct", "sft", "sft+rl"):
        whole, killed = (_weights(tmp_path / run / stage / "export") for run in ("whole", "killed"))
        assert all(torch.equal(whole[name], killed[name]) for name in whole), stage
        lines = [json.loads(line) for line in (tmp_path / "killed" / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        manifest = json.loads((tmp_path / "whole" / stage / "manifest.json").read_text())
        assert manifest["frozen"]["before"] == manifest["frozen"]["after"]
        assert manifest["pictures"] == 0
        assert manifest["domains"] == ["general"]
    base = _weights(random_folder)
    tuned = _weights(tmp_path / "whole" / "sft" / "export")
    assert all(torch.equal(base[name], tuned[name]) for name in base if "visual" in name)
    assert any(not torch.equal(base[name], tuned[name]) for name in base if "visual" not in name)
    with pytest.raises(UserError, match="another recipe"):
        run_recipe(_recipe(random_folder, "seed=7"), tmp_path / "whole")


def test_examples_alone_equal_examples_batched(loaded: Loaded, random_folder: Path) -> None:
    stage = _recipe(random_folder).stages[1]
    tokens, facts = sft_data(stage, loaded, 0)  # type: ignore[arg-type]
    assert facts["alone_gap"] < 1e-4
    loaded.model.config._attn_implementation = "eager"

    class Leaky(torch.nn.Module):
        """A mask that is not causal: pads are seen."""

    original = packing.hidden_states
    try:
        packing.hidden_states = lambda model, ids: original(model, ids) + ids.float().mean()  # type: ignore[assignment]
        with pytest.raises(TrainingError, match="do not equal"):
            packing.alone_equals_batched(loaded, tokens)
    finally:
        packing.hidden_states = original


def test_no_picture_and_no_foreign_domain_enters(random_folder: Path) -> None:
    from PIL import Image

    stage = _recipe(random_folder).stages[1]
    with pytest.raises(RecipeError, match="clinical"):
        check(stage, [Problem("p", "q?", "1", "integer", domain="clinical")])
    with pytest.raises(RecipeError, match="picture"):
        check(stage, [Problem("p", "q?", "1", "integer", images=(Image.new("RGB", (56, 56)),))])


@pytest.mark.parametrize("policy", ["drop", "close", "cut"])
def test_long_examples_follow_the_policy(loaded: Loaded, policy: Any) -> None:
    problem = Problem("p", "What is 1 + 1?", "2", "integer")
    example = Example(problem, "<think> " + "1 + 1 = 2. " * 60 + "</think> <answer>2</answer>")
    items, lengths = packing.tokenise(loaded, [example], "brief", 120, policy, " </think> ")
    assert lengths.total == 1
    if policy == "drop":
        assert not items
        assert lengths.dropped == 1
        return
    text = loaded.tokenizer.decode(items[0].ids)
    assert len(items[0].ids) <= 120
    assert ("</think>" in text) == (policy == "close")
    assert text.endswith("</answer><|im_end|>") == (policy == "close")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"value": step})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-000002.pt", "step-000003.pt"]
    newest = tmp_path / "step-000003.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="step-000003"):
        state = checkpoints.latest(tmp_path)
    assert state is not None
    assert state["value"] == 2
