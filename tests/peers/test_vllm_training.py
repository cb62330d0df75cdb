"""RL by two training ranks with a real vLLM for its rollouts: three steps, and the server has the trainer's weights.

`make test-vllm` makes vLLM's environment; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.openai_engine import OpenAIEngine
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.loading import find, load
from xreasoner.prompts import chat_messages
from xreasoner.recipe import load_recipe
from xreasoner.training.run import rl_data

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm/bin/vllm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM lives in an environment of its own"),
]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a vLLM that takes new weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "16"]
    with (tmp_path / "vllm.log").open("w") as log:
        process = subprocess.Popen(
            [VLLM, "serve", find("tiny"), "--host", "127.0.0.1", "--port", str(port), *options],
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_SERVER_DEV_MODE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "vllm.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).read()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def test_two_ranks_and_a_server_take_three_steps(served: str, tmp_path: Path) -> None:
    changes = [
        "model=tiny",
        "stages.sft+rl.from=base",
        "stages.sft+rl.data.0.n=40",
        "stages.sft+rl.data.1.n=1",
        "stages.sft+rl.steps=3",
        "stages.sft+rl.prompts_per_step=4",
        "stages.sft+rl.group_size=4",
        "stages.sft+rl.correction=token",
        "stages.sft+rl.drop_zero_variance=false",
        f"stages.sft+rl.rollouts={{urls: ['{served}']}}",
    ]
    whole = load_recipe("demo", changes)
    recipe = whole.model_copy(update={"stages": whole.stages[-1:]})
    (stage,) = recipe.stages
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "xreasoner.cli", "train", str(path), "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (out / stage.name / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert max(line["logprob_gap"] for line in lines) < 5e-3  # what vLLM says it sampled at, beside the trainer's
    problems, _ = rl_data(stage, 1)  # type: ignore[arg-type]
    sampling = Sampling(thinking_budget=120, answer_budget=24, logprobs=True)
    requests = [Request(chat_messages(problem, "brief"), sampling=sampling) for problem in problems[:4]]
    engine = OpenAIEngine([served])
    theirs = engine.generate(requests)
    engine.close()
    trained = TorchEngine(load(str(out / stage.name / "export"))).generate(requests)
    start = TorchEngine(load("tiny")).generate(requests)
    for (one,), (other,), (old,) in zip(theirs, trained, start, strict=True):
        assert one.token_ids[:20] == other.token_ids[:20]
        assert one.logprobs[:20] == pytest.approx(other.logprobs[:20], abs=2e-3)
        assert one.logprobs[:20] != pytest.approx(old.logprobs[:20], abs=1e-5)  # it has learnt
