"""A run cannot be lost: killed with -9 at random moments and resumed, it ends as an unbroken one, bit for bit.

`make kills` does it fifty times; the fast suite three times. Also: full disks, missing permission, a damaged run.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from test_stages import coin

from xreasoner.models.loading import load
from xreasoner.recipe import Recipe
from xreasoner.training.run import run_recipe

SETTINGS: dict[str, dict[str, Any]] = {"sft": {"epochs": 8}, "rl": {"steps": 4, "refills": 1}}


def go(recipe: Recipe, out: Path) -> None:
    """What the process that is killed does: begin, or go on."""
    torch.set_num_threads(1)
    run_recipe(recipe, out)


def start(recipe: Recipe, out: Path) -> Any:
    """A process of its own, forked from one that has imported everything, so that it trains at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xreasoner.training.run", "test_kills"])
    process = context.Process(target=go, args=(recipe, out))
    process.start()
    return process


def moment(out: Path) -> str:
    """What the kill fell upon, as the files tell."""
    for stage in ("rl", "sft"):
        folder = out / stage
        if not (folder / "manifest.json").exists():
            continue
        if (folder / "checkpoints" / ".partial").exists():
            return f"{stage}, while saving"
        if (folder / "export.partial").exists():
            return f"{stage}, while exporting"
        saved = max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)
        lines = (folder / "metrics.jsonl").read_text().count("\n") if (folder / "metrics.jsonl").exists() else 0
        return f"{stage}, before saving" if lines > saved else f"{stage}, in a step"
    return "before the first stage"


def facts(out: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on kills: weights, and metrics but for the clock."""
    clock = ("seconds", "rollout_seconds", "tokens_per_s")
    found: dict[str, Any] = {}
    for stage in ("sft", "rl"):
        lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        found[stage] = [{key: value for key, value in line.items() if key not in clock} for line in lines]
        state = load(str(out / stage / "export")).model.state_dict()
        found[f"{stage} weights"] = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
    return found


def killed(model: Path, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Run and kill until so many kills are done, and every run begun has ended as the unbroken one."""
    rng, moments = Random(seed), Counter[str]()
    recipe = coin(model, folder, sft=SETTINGS["sft"], rl=SETTINGS["rl"])
    begin = time.monotonic()
    whole = start(recipe, folder / "whole")
    whole.join()
    assert whole.exitcode == 0
    lasts, expected = time.monotonic() - begin, facts(folder / "whole")
    assert [line["step"] for line in expected["sft"]] == list(range(1, len(expected["sft"]) + 1))
    while sum(moments.values()) < kills:
        out = folder / "killed"
        done = False
        while not done:
            process = start(recipe, out)
            enough = sum(moments.values()) >= kills
            process.join(None if enough else rng.uniform(0.1, 0.6) * lasts)
            done = process.exitcode is not None
            if not done:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                moments[moment(out)] += 1
        assert process.exitcode == 0
        assert facts(out) == expected
        shutil.rmtree(out)
    return moments


def test_three_kills_change_nothing(random_folder: Path, tmp_path: Path) -> None:
    assert sum(killed(random_folder, tmp_path, 3, seed=1).values()) == 3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_change_nothing(random_folder: Path, tmp_path: Path) -> None:
    moments = killed(random_folder, tmp_path, 50, seed=2)
    print(dict(moments))
    assert {"sft, while saving", "rl, in a step"} <= set(moments)


def command(recipe: Recipe, folder: Path, before: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    return subprocess.run(
        [sys.executable, "-m", "xreasoner.cli", "train", str(path), "--out", str(folder / "out"), "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        preexec_fn=before,
        capture_output=True,
        text=True,
    )


def full() -> None:
    """No file may grow beyond 1 MB: what a full disk is to one who writes a checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_full_disk_is_said_and_nothing_is_lost(random_folder: Path, tmp_path: Path) -> None:
    recipe = coin(random_folder, tmp_path, sft=SETTINGS["sft"], rl=SETTINGS["rl"])
    short = recipe.model_copy(update={"stages": recipe.stages[:1]})
    refused = command(short, tmp_path, full)
    assert refused.returncode == 1, refused.stderr
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("error: File too large"), refused.stderr
    assert "what was saved before stays as it was" in last
    assert not list((tmp_path / "out" / "sft" / "checkpoints").glob("step-*"))
    assert command(short, tmp_path, lambda: None).returncode == 0
    lines = (tmp_path / "out" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))


def bound() -> None:
    """Root as anybody else: file modes hold for it too."""
    drop_bounding_capability, override = 24, 1
    if ctypes.CDLL(None).prctl(drop_bounding_capability, override, 0, 0, 0) != 0:
        raise OSError("this machine lets nobody give up a capability")


def test_missing_permission_is_said(random_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    refused = command(coin(random_folder, tmp_path), tmp_path, bound if os.getuid() == 0 else lambda: None)
    assert refused.returncode == 1, refused.stderr
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Permission denied"), refused.stderr
    assert str(tmp_path / "out") in last
