"""Rollouts from servers in processes of their own: weights after each step, versions, overlap, and a dead server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from test_stages import coin, recorded

from xreasoner.errors import EngineError, RecipeError
from xreasoner.models.loading import Loaded, load
from xreasoner.recipe import Recipe, RLStage, Servers, load_recipe
from xreasoner.training.rollouts import Fleet, Versioned
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


class Gate(ThreadingHTTPServer):
    """Servers that have loaded weights only when all of them have been asked to."""

    everyone = threading.Barrier(2, timeout=20)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        super().__init__(("127.0.0.1", 0), _Asked)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Asked(BaseHTTPRequestHandler):
    server: Gate

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/collective_rpc" and not self.server.fault:
            self.server.everyone.wait()
        self._answer(500 if self.server.fault == self.path else 200, {})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_servers_load_weights_at_the_same_time_and_those_that_fail_are_named(loaded: Loaded, tmp_path: Path) -> None:
    gates = [Gate(), Gate(), Gate("/collective_rpc"), Gate("/reset_prefix_cache")]
    fleet = Fleet(Servers(urls=tuple(gate.url for gate in gates)), loaded)
    try:
        with pytest.warns(UserWarning, match="weights of step 4 were not loaded by") as warned:
            fleet.load(tmp_path, 4)
        text = str(warned[0].message)
        assert f"{gates[2].url}: /collective_rpc: status 500" in text
        assert f"{gates[3].url}: /reset_prefix_cache: status 500" in text
        assert gates[0].url not in text
        assert [server.current for server in fleet.servers if isinstance(server, Versioned)] == [
            True,
            True,
            False,
            False,
        ]
    finally:
        fleet.close()
        for gate in gates:
            gate.shutdown()
            gate.server_close()


def test_servers_are_given_bfloat16_weights(taught: Path, tmp_path: Path) -> None:
    """In adapters' case the sums, made in float32; the trainer's own weights stay what they were."""
    sizes: list[int] = []
    with servers(taught, 0) as found:
        changes = {"lora": {"rank": 2}, "steps": 1, "rollout_dtype": "bfloat16"}
        recipe = remote(taught, tmp_path, found, 0, **changes)

        def look(*_: Any) -> None:
            (folder,) = (tmp_path / "rl" / "weights").glob("step-*")
            sizes.append((folder / "model.safetensors").stat().st_size)
            assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"

        run_stage(recipe, recipe.stages[0], tmp_path, look)
    exported = tmp_path / "rl" / "export"
    assert json.loads((exported / "config.json").read_text())["dtype"] == "float32"
    assert sizes == [pytest.approx((exported / "model.safetensors").stat().st_size / 2, rel=0.05)]
    gap = metrics(tmp_path / "rl")[0]["logprob_gap"]
    assert 1e-6 < gap < 0.05


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
