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
