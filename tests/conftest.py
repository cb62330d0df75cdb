"""A random model of the embedded architecture: everything but its weights is real."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest
import torch

from xreasoner.models.export import export
from xreasoner.models.loading import Loaded, load
from xreasoner.tiny import architecture, chains, lessons
from xreasoner.tiny.tokenizer import train_tokenizer
from xreasoner.tiny.world import make_scene, make_task, write_scene

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # what is started in the background ignores Ctrl-C, children too
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that cannot run here fails the session: what needs another environment has a marker and a make target."""
    on_controller = not hasattr(session.config, "workerinput")
    if on_controller and skipped and os.environ.get("XREASONER_ALLOW_SKIPS") != "1":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if skipped and os.environ.get("XREASONER_ALLOW_SKIPS") != "1":
        terminalreporter.section("skipped tests fail the run (XREASONER_ALLOW_SKIPS=1 lets them pass)")
        terminalreporter.write_line("\n".join(skipped))


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights, wide enough apart that greedy decoding has no near ties."""
    rng, texts = Random(0), []
    for _ in range(300):
        scene = make_scene(rng, "general")
        task = make_task(rng, scene)
        texts += [write_scene(rng, scene), task.question, chains.chain(rng, scene, task, ())]
    tokenizer = train_tokenizer(texts, lessons.all_words())
    model = architecture.build(tokenizer, seed=0)
    folder = tmp_path_factory.mktemp("models") / "random"
    return export(model, tokenizer, architecture.image_processor(), folder)


@pytest.fixture
def loaded(random_folder: Path) -> Loaded:
    return load(str(random_folder))
