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
from xreasoner.training import rl
from xreasoner.training.run import run_recipe

SETTINGS: dict[str, dict[str, Any]] = {"sft": {"epochs": 8}, "rl": {"steps": 4, "refills": 1}}
SHORT: dict[str, dict[str, Any]] = {"sft": {"epochs": 4}, "rl": {"steps": 2, "refills": 1}}


def go(recipe: Recipe, out: Path) -> None:
    """What the process that is killed does: begin, or go on. A file tells whether RL learns or rolls out."""
    torch.set_num_threads(1)
    improve, learning = rl.improve, out.parent / "learning"

    def told(*arguments: Any) -> dict[str, float]:
        learning.touch()
        try:
            return improve(*arguments)
        finally:
            learning.unlink()

    rl.improve = told
    learning.unlink(missing_ok=True)
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
        if lines > saved:
            return f"{stage}, before saving"
        if stage == "sft":
            return "sft, in a step"
        return "rl, in an update" if (out.parent / "learning").exists() else "rl, in a rollout"
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


def killed(model: Path, folder: Path, kills: int, seed: int, settings: dict[str, dict[str, Any]]) -> Counter[str]:
    """Run and kill until so many kills are done, and every run begun has ended as the unbroken one."""
    rng, moments = Random(seed), Counter[str]()
    recipe = coin(model, folder, **settings)
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
    assert sum(killed(random_folder, tmp_path, 3, 1, SHORT).values()) == 3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_change_nothing(random_folder: Path, tmp_path: Path) -> None:
    moments = killed(random_folder, tmp_path, 50, 2, SETTINGS)
    print(dict(moments))
    assert {"sft, while saving", "rl, in a rollout", "rl, in an update"} <= set(moments)


def begin(recipe: Recipe, folder: Path, before: Callable[[], None]) -> subprocess.Popen[str]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    return subprocess.Popen(
        [sys.executable, "-m", "xreasoner.cli", "train", str(path), "--out", str(folder / "out"), "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        preexec_fn=before,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def deaf() -> None:
    """A file that may not grow is an error of the call, as on a full disk, and not a signal that kills."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_is_said_and_nothing_is_lost(random_folder: Path, tmp_path: Path) -> None:
    """The disk fills up (no file may grow beyond 1 MB) when some checkpoints have been saved."""
    recipe = coin(random_folder, tmp_path, sft={"epochs": 30})
    short = recipe.model_copy(update={"stages": recipe.stages[:1]})
    sft, running = tmp_path / "out" / "sft", begin(short, tmp_path, deaf)
    while not list((sft / "checkpoints").glob("step-*")):
        assert running.poll() is None, running.stderr
        time.sleep(0.01)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    _, said = running.communicate(timeout=100)
    assert running.returncode == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: File too large"), said
    assert "what was saved before stays as it was" in last
    saved = [path.name for path in (sft / "checkpoints").glob("step-*")]
    assert saved
    again = begin(short, tmp_path, deaf)
    _, said = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert "damaged" not in said
    lines = (sft / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    first = min(int(name[5:]) for name in saved)
    assert first < len(lines), "it was over before the disk was full"


def bound() -> None:
    """Root as anybody else: file modes hold for it too."""
    drop_bounding_capability, override = 24, 1
    if ctypes.CDLL(None).prctl(drop_bounding_capability, override, 0, 0, 0) != 0:
        raise OSError("this machine lets nobody give up a capability")


def test_missing_permission_is_said(random_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    refused = begin(coin(random_folder, tmp_path), tmp_path, bound if os.getuid() == 0 else lambda: None)
    _, said = refused.communicate(timeout=100)
    assert refused.returncode == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: cannot write"), said
    assert "Permission denied" in last
    assert str(tmp_path / "out") in last
