"""What rollouts are sampled from: the model itself, or a copy that has memory only while it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_parallel import environment
from test_stages import coin

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import RecipeError
from xreasoner.models.export import export
from xreasoner.models.freezing import VISION, freeze
from xreasoner.models.loading import load
from xreasoner.recipe import RLStage, load_recipe
from xreasoner.training.common import ready
from xreasoner.training.replicas import Replica
from xreasoner.training.run import run_stage

HALF = {"precision": "bfloat16"}
REQUEST = Request(
    [{"role": "user", "content": "Say it."}], n=4, sampling=Sampling(thinking_budget=8, answer_budget=8, seed=3)
)


def _stage(folder: Path, **changes: Any) -> RLStage:
    stage = coin(folder, folder, rl=changes).stages[1]
    assert isinstance(stage, RLStage)
    return stage


def _text_bytes(replica: Replica) -> int:
    weights = [p for name, p in replica.loaded.model.named_parameters() if VISION not in name]
    return sum(weight.untyped_storage().nbytes() for weight in weights)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, None),
        (HALF, torch.bfloat16),
        ({**HALF, "rollout_dtype": "float32"}, None),
        ({"rollout_dtype": "bfloat16"}, torch.bfloat16),
        ({**HALF, "lora": {"rank": 2, "base_dtype": "bfloat16"}}, None),
        ({**HALF, "lora": {"rank": 2, "base_dtype": "bfloat16"}, "rollout_dtype": "float32"}, torch.float32),
        ({"rollouts": {"urls": ["http://node1:8000/v1"]}, "rollout_dtype": "bfloat16"}, None),
    ],
)
def test_a_copy_is_kept_only_where_the_model_itself_does_not_serve(
    random_folder: Path, tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype | None
) -> None:
    loaded = load(str(random_folder))
    freeze(loaded.model)
    sampler = ready(_stage(tmp_path, **changes), loaded).sampler
    assert (sampler is None) == (dtype is None)
    if sampler is not None:
        assert sampler.loaded.model.lm_head.weight.dtype == dtype


def test_a_copy_has_memory_only_between_filling_and_release(random_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(random_folder))
    freeze(loaded.model)
    learner = ready(_stage(tmp_path, **HALF), loaded)
    sampler = learner.sampler
    assert sampler is not None
    assert _text_bytes(sampler) == 0
    sampler.allocate()
    engine = TorchEngine(sampler.loaded)
    for change in (0.0, 0.3):  # as after a step of training
        with torch.no_grad():
            loaded.model.model.language_model.layers[0].mlp.down_proj.weight.add_(change)
        sampler.fill(learner.model)
        text = sum(p.numel() for name, p in loaded.model.named_parameters() if VISION not in name)
        assert _text_bytes(sampler) == 2 * text
        found = engine.generate([REQUEST])[0]
        expected_folder = tmp_path / str(change)
        export(loaded.model, loaded.tokenizer, loaded.image_processor, expected_folder, torch.bfloat16)
        expected = TorchEngine(load(str(expected_folder), dtype=torch.bfloat16)).generate([REQUEST])[0]
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        engine.release()
        sampler.release()
        assert _text_bytes(sampler) == 0


def test_rollouts_in_bfloat16_are_trained_on_with_the_trainers_old_logprobs(
    random_folder: Path, tmp_path: Path
) -> None:
    taught = coin(random_folder, tmp_path, sft={"checkpoint_seconds": 1000})
    start = run_stage(taught, taught.stages[0], tmp_path)
    recipe = coin(
        start, tmp_path, rl={"from": "base", "steps": 2, "minibatches": 1, "rollout_dtype": "bfloat16", "refills": 2}
    )
    recipe = recipe.model_copy(update={"stages": recipe.stages[1:]})
    stage = recipe.stages[0]
    assert isinstance(stage, RLStage)
    assert stage.recomputes_old_logprobs
    run_stage(recipe, stage, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    learned = [line for line in lines if "ratio_max" in line]
    assert learned
    assert all(line["ratio_max"] == 1.0 and line["logprob_gap"] > 1e-4 for line in learned)


def test_a_base_in_bfloat16_is_merged_in_float32(random_folder: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 16, "base_dtype": "bfloat16"}
    recipe = coin(random_folder, tmp_path, sft={"lora": lora, "epochs": 8, "checkpoint_seconds": 1000, **HALF})
    run_stage(recipe, recipe.stages[0], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    base, tuned = (load(str(folder)).model.state_dict() for folder in (random_folder, tmp_path / "sft" / "export"))
    config = json.loads((tmp_path / "sft" / "export" / "config.json").read_text())
    assert config["dtype"] == "float32"
    moved = 0
    for name, weight in base.items():
        rounded = weight.bfloat16().float()
        if "_proj.weight" in name and "language_model.layers" in name:
            change = (tuned[name] - rounded).double()
            assert torch.linalg.matrix_rank(change, rtol=1e-2) <= 4  # the sum was not rounded
            moved += bool(change.any())
        else:
            assert torch.equal(tuned[name], rounded)
    assert moved
    assert not [path for path in (tmp_path / "sft").iterdir() if path.name.startswith(".offloaded")]


def test_a_bfloat16_base_that_computes_in_float32_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"lora\.base_dtype: .* set precision: bfloat16"):
        load_recipe("demo", ["stages.sft+rl.lora={rank: 2, base_dtype: bfloat16}"])


def test_one_rank_reads_the_weights_and_the_others_get_their_shards(tmp_path: Path, random_folder: Path) -> None:
    """With a whole copy on each rank, eight of 7B took 265 GB of the host."""
    script = str(Path(__file__).with_name("loading_ranks.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run(
        [*command, str(random_folder), str(tmp_path)], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert second["peak"] < 0.75 * second["whole"]  # half of the model, and one weight at a time
    assert first["equal"]
    assert second["equal"]
