"""Rollouts from servers in processes of their own: weights after each step, versions, overlap, and a dead server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_stages import coin, recorded

from xreasoner.errors import EngineError, RecipeError
from xreasoner.models.loading import load
from xreasoner.recipe import Recipe, RLStage, Servers, load_recipe
from xreasoner.training.run import run_stage


class Server:
    """A process that serves."""

    def __init__(self, model: Path, pause: float = 0.0) -> None:
        source = Path(__file__).parents[2] / "src"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serving_weights.py")), str(model), str(pause)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    @property
    def url(self) -> str:
        """Its address, when it is there."""
        if not hasattr(self, "_url"):
            assert self.process.stdout is not None
            self._url = self.process.stdout.readline().strip()
            assert self._url.startswith("http")
        return self._url

    def loaded(self) -> list[str]:
        """The weights that it has loaded; ends it."""
        self.process.kill()
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            return []
        found = self.process.stdout.read().split("\n")
        self.process.wait()
        self.process.stdout.close()
        return [line.removeprefix("loaded ") for line in found if line]


@contextmanager
def servers(model: Path, *pauses: float) -> Iterator[list[Server]]:
    found = [Server(model, pause) for pause in pauses]
    try:
        yield found
    finally:
        for server in found:
            server.loaded()


@pytest.fixture(scope="module")
def taught(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coin after SFT: its replies differ within a group."""
    out = tmp_path_factory.mktemp("taught")
    recipe = coin(random_folder, out, sft={"checkpoint_seconds": 1000})
    return run_stage(recipe, recipe.stages[0], out)


def remote(taught: Path, folder: Path, found: list[Server], staleness: int, **changes: Any) -> Recipe:
    rollouts = {"urls": [server.url for server in found], "max_staleness": staleness, "patience_seconds": 5}
    settings = {
        "from": "base",
        "steps": 3,
        "checkpoint_seconds": 1000,
        "minibatches": 1,
        "prompts_per_step": 2,
        "group_size": 4,
        "rollouts": rollouts,
        "correction": "token",
        **changes,
    }
    whole = coin(taught, folder, rl=settings)
    return whole.model_copy(update={"stages": whole.stages[1:]})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("staleness", [0, 1])
def test_servers_have_the_trainers_weights(taught: Path, tmp_path: Path, staleness: int) -> None:
    with servers(taught, 0, 0) as found:
        recipe = remote(taught, tmp_path, found, staleness)
        with recorded() as read:
            run_stage(recipe, recipe.stages[0], tmp_path)
        assert {name for part, name in read if part is Servers} >= set(Servers.model_fields)
        loaded = [server.loaded() for server in found]
    lines = metrics(tmp_path / "rl")
    assert loaded == [[f"step-{version:06d}" for version in range(4)]] * 2
    assert [line["staleness"] for line in lines] == [0, staleness, staleness]
    gaps = [line["logprob_gap"] for line in lines]
    assert max(gaps if staleness == 0 else gaps[:1]) < 1e-3  # what the servers say is what the trainer computes
    assert not (tmp_path / "rl" / "weights").exists()
    before, after = (load(str(folder)).model.state_dict() for folder in (taught, tmp_path / "rl" / "export"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_server_that_dies_is_left_out_and_the_run_goes_on(taught: Path, tmp_path: Path) -> None:
    with servers(taught, 0, 0.05) as found:
        recipe = remote(taught, tmp_path, found, 0)

        def kill(stage: str, step: int, total: int, line: dict[str, Any]) -> None:
            found[1].process.kill()

        with pytest.warns(UserWarning, match=rf"weights of step 2 were not loaded by {found[1].url}: ConnectError"):
            run_stage(recipe, recipe.stages[0], tmp_path, kill)
        assert [line["step"] for line in metrics(tmp_path / "rl")] == [1, 2, 3]
        assert found[0].loaded()[-1] == "step-000003"


def test_no_server_at_all_is_said(taught: Path, tmp_path: Path) -> None:
    with servers(taught, 0) as found:
        recipe = remote(taught, tmp_path, found, 0)
        with pytest.raises(EngineError, match="no server"):
            run_stage(recipe, recipe.stages[0], tmp_path, lambda *_: found[0].process.kill())
        assert [line["step"] for line in metrics(tmp_path / "rl")] == [1]


def test_older_weights_need_a_correction() -> None:
    servers = "stages.sft+rl.rollouts={urls: ['http://localhost:8000/v1'], max_staleness: 1}"
    with pytest.raises(RecipeError, match="set correction: token"):
        load_recipe("demo", [servers])
    stage = load_recipe("demo", [servers, "stages.sft+rl.correction=sequence"]).stages[-1]
    assert isinstance(stage, RLStage)
    assert stage.rollouts is not None
