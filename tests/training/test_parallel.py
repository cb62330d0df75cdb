"""One process and two under `torchrun` (gloo): the same curve, the same rollouts, and checkpoints that either reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_stages import coin

from xreasoner.models.loading import load
from xreasoner.recipe import load_recipe
from xreasoner.training.run import run_recipe, run_stage

SIZES = {"epochs": 50, "batch_examples": 8, "chunk_tokens": 128, "checkpoint_seconds": 1000, "optimiser": {"lr": 5e-5}}

REINFORCED = {
    **{"from": "base", "steps": 2, "checkpoint_seconds": 1000},
    **{"kl": 0.01, "correction": "token", "lora": {"rank": 4, "alpha": 8}},
}


def write(model: Path, folder: Path, **changes: Any) -> Path:
    """The coin's first stage as a file, with eight examples a step."""
    whole = coin(model, folder, sft={**SIZES, **changes})
    recipe = whole.model_copy(update={"stages": whole.stages[:1]})
    path = folder / "coin.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    return path


def command(ranks: int, *arguments: str) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *torchrun, "-m", "xreasoner.cli", "train", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def train(ranks: int, *arguments: str) -> None:
    done = subprocess.run(command(ranks, *arguments), env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(str(folder)).model.state_dict()
    return found


@pytest.fixture(scope="module")
def one_and_two(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    recipe = write(random_folder, folder)
    run_recipe(load_recipe(str(recipe)), folder / "1")
    train(2, str(recipe), "--out", str(folder / "2"))
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def test_two_ranks_learn_as_one(one_and_two: dict[int, Path]) -> None:
    one, two = (metrics(one_and_two[ranks] / "sft") for ranks in (1, 2))
    assert [line["step"] for line in two] == list(range(1, 51))  # rank 0 alone wrote them
    assert one[-1]["loss"] < 0.9 * one[0]["loss"]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
        assert a["tokens"] == b["tokens"]
    manifest = json.loads((one_and_two[2] / "sft" / "manifest.json").read_text())
    assert manifest["ranks"] == 2
    assert manifest["frozen"]["before"] == manifest["frozen"]["after"]
    whole = json.loads((one_and_two[1] / "sft" / "manifest.json").read_text())
    assert manifest["frozen"] == whole["frozen"]
    assert (one_and_two[2] / "report.html").exists()  # torchrun's whole command: stages, evaluation, report


@pytest.mark.slow
def test_two_ranks_are_held_to_the_base_as_one(random_folder: Path, tmp_path: Path) -> None:
    recipe = write(random_folder, tmp_path, epochs=6, kl_to_base=0.5)
    run_recipe(load_recipe(str(recipe)), tmp_path / "1")
    train(2, str(recipe), "--out", str(tmp_path / "2"))
    one, two = (metrics(tmp_path / ranks / "sft") for ranks in "12")
    assert len(one) == 6
    assert one[-1]["kl_to_base"] > 1e-3
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["kl_to_base"] == pytest.approx(a["kl_to_base"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_two_ranks_train_adapters_on_a_bfloat16_base_as_one(random_folder: Path, tmp_path: Path) -> None:
    """Shards of two types: the frozen weights in bfloat16, the adapters in float32."""
    lora = {"rank": 4, "alpha": 8, "base_dtype": "bfloat16"}
    recipe = write(random_folder, tmp_path, epochs=6, precision="bfloat16", lora=lora, optimiser={"lr": 1e-3})
    run_recipe(load_recipe(str(recipe)), tmp_path / "1")
    train(2, str(recipe), "--out", str(tmp_path / "2"))
    one, two = (metrics(tmp_path / ranks / "sft") for ranks in "12")
    assert one[-1]["loss"] < one[0]["loss"]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)
    exported = weights(tmp_path / "2" / "sft" / "export")
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}


def test_two_ranks_reinforce_as_one(random_folder: Path, tmp_path: Path) -> None:
    """With adapters, a KL to where the stage began, and a correction, which reads the replies once more."""
    taught = coin(random_folder, tmp_path, sft={"checkpoint_seconds": 1000})
    start = run_stage(taught, taught.stages[0], tmp_path)
    whole = coin(start, tmp_path, rl=REINFORCED)
    recipe = whole.model_copy(update={"stages": whole.stages[1:]})
    path = tmp_path / "rl.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    run_recipe(recipe, tmp_path / "1")
    train(2, str(path), "--out", str(tmp_path / "2"))
    one, two = (metrics(tmp_path / ranks / "rl") for ranks in "12")
    for a, b in zip(one, two, strict=True):
        assert a["outcomes"] == b["outcomes"]  # the same rollouts, whoever made them
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["kl"] == pytest.approx(a["kl"], rel=1e-3, abs=1e-6)
        assert b["entropy"] == pytest.approx(a["entropy"], rel=1e-3)
    base = weights(start)
    ours, theirs = (weights(tmp_path / ranks / "rl" / "export") for ranks in "12")
    moved = torch.stack([(ours[name] - base[name]).norm() for name in ours]).norm()
    apart = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
    assert 0 < apart < 0.05 * moved  # AdamW makes a sign of a gradient near 0


@pytest.mark.slow
def test_two_ranks_sample_from_bfloat16_copies_as_one(random_folder: Path, tmp_path: Path) -> None:
    """A whole copy on each rank, filled from the shards for the rollouts and freed before the update."""
    taught = coin(random_folder, tmp_path, sft={"checkpoint_seconds": 1000})
    start = run_stage(taught, taught.stages[0], tmp_path)
    settings = {"from": "base", "steps": 2, "checkpoint_seconds": 1000, "rollout_dtype": "bfloat16", "refills": 3}
    whole = coin(start, tmp_path, rl={**settings, "batching": "packed", "chunk_tokens": 64})
    recipe = whole.model_copy(update={"stages": whole.stages[1:]})
    path = tmp_path / "rl.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    run_recipe(recipe, tmp_path / "1")
    train(2, str(path), "--out", str(tmp_path / "2"))
    one, two = (metrics(tmp_path / ranks / "rl") for ranks in "12")
    assert one[0]["outcomes"] == two[0]["outcomes"]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-4)
    assert two[0]["logprob_gap"] == pytest.approx(one[0]["logprob_gap"], rel=1e-2)
    assert len(two) == 2


def stop(ranks: int, recipe: Path, out: Path, at: int) -> None:
    """Train until so many steps are written, then SIGTERM, which saves first."""
    process = subprocess.Popen(command(ranks, str(recipe), "--out", str(out), "--resume"), env=environment())
    path = out / "sft" / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < at:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_gone_on_with_by_one_and_back(
    one_and_two: dict[int, Path], random_folder: Path, tmp_path: Path
) -> None:
    recipe = write(random_folder, one_and_two[1].parent)
    out = tmp_path / "out"
    for ranks, at in ((2, 8), (1, 20)):
        stop(ranks, recipe, out, at)
        assert list((out / "sft" / "checkpoints").glob("step-*"))
    train(2, str(recipe), "--out", str(out), "--resume")
    expected = [line["loss"] for line in metrics(one_and_two[1] / "sft")]
    found = metrics(out / "sft")
    assert [line["step"] for line in found] == list(range(1, 51))
    assert [line["loss"] for line in found] == pytest.approx(expected, rel=1e-5)
