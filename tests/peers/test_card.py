"""The model card's own pins beside ours: folders go both ways between transformers 4.57.1 and this project.

`make test-card` makes the environment and runs this.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from xreasoner.engines.base import Preprocessing, Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.export import export
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import Encoded, Loaded, encode, load
from xreasoner.tiny import benchmarks
from xreasoner.tiny.checkpoints import reasoner_folder

pytestmark = [pytest.mark.card, pytest.mark.timeout(600)]
PYTHON = Path(__file__).parents[2] / ".venv-card/bin/python"


@pytest.fixture(scope="module", params=["random float32", "embedded, trained", "embedded, exported again in bfloat16"])
def exported(request: pytest.FixtureRequest, random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders as we write them."""
    if request.param == "random float32":
        return random_folder
    if request.param == "embedded, trained":
        return reasoner_folder()
    found = load("tiny")
    folder = tmp_path_factory.mktemp("again") / "model"
    return export(found.model, found.tokenizer, found.image_processor, folder, torch.bfloat16)


@pytest.fixture(scope="module")
def other_side(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the card's transformers made of the folder."""
    assert PYTHON.is_file(), f"{PYTHON} is missing; make it with `make test-card`"
    out = tmp_path_factory.mktemp("card")
    problem = benchmarks.cell("clinical", "image", 1, 3)[0]
    problem.images[0].save(out / "picture.png")
    (out / "question.txt").write_text(problem.question)
    script = Path(__file__).with_name("card_side.py")
    ran = subprocess.run([PYTHON, script, exported, out], capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out


def _ours(loaded: Loaded, out: Path, name: str) -> tuple[Encoded, Request]:
    question = {"type": "text", "text": (out / "question.txt").read_text()}
    pictures = [Image.open(out / "picture.png").convert("RGB")] if name == "image" else []
    parts = [{"type": "image"}, question] if pictures else [question]
    # the card's snippet says nothing of a system prompt: the template does
    sampling = Sampling(thinking_budget=24, answer_budget=0, logprobs=True)
    request = Request([{"role": "user", "content": parts}], pictures, 1, sampling)
    return encode(loaded, request.messages, pictures), request


def _logits(loaded: Loaded, prompt: Encoded) -> torch.Tensor:
    ids = prompt.input_ids[None]
    kinds = (ids == loaded.model.config.image_token_id).int()
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(input_ids=ids, mm_token_type_ids=kinds, **prompt.pictures).logits
    return logits


@pytest.mark.parametrize("name", ["text", "image"])
def test_what_we_export_the_card_reads_and_computes_the_same(exported: Path, other_side: Path, name: str) -> None:
    theirs = load_file(other_side / f"{name}.safetensors")
    loaded = load(str(exported))
    prompt, request = _ours(loaded, other_side, name)
    assert prompt.input_ids.tolist() == theirs["input_ids"][0].tolist()
    if name == "image":
        assert prompt.image_grid_thw is not None
        assert prompt.image_grid_thw.tolist() == theirs["image_grid_thw"].tolist()
    logits = _logits(loaded, prompt)
    torch.testing.assert_close(logits, theirs["logits"], atol=1e-4, rtol=1e-4)
    assert theirs["logits"].std() > 0.01
    (completion,) = TorchEngine(loaded).generate([request])[0]
    written = theirs["written"][0].tolist()
    length = min(len(written), len(completion.token_ids))
    assert list(completion.token_ids[:length]) == written[:length]


@pytest.mark.parametrize("name", ["text", "image"])
def test_what_the_card_saves_loads_here(exported: Path, other_side: Path, name: str) -> None:
    saved = other_side / "saved"
    assert json.loads((saved / "config.json").read_text())["transformers_version"] == "4.57.1"
    back, before = load(str(saved)), load(str(exported))
    assert fingerprint(sorted(back.model.state_dict().items())) == fingerprint(
        sorted(before.model.state_dict().items())
    )
    prompt, _ = _ours(back, other_side, name)
    theirs = load_file(other_side / f"{name}.safetensors")
    assert prompt.input_ids.tolist() == theirs["input_ids"][0].tolist()
    torch.testing.assert_close(_logits(back, prompt), theirs["logits"], atol=1e-4, rtol=1e-4)
    assert back.tokenizer.eos_token_id == before.tokenizer.eos_token_id


def test_both_preprocessing_paths_have_the_cards_grids(tmp_path: Path) -> None:
    """200 sizes by the real qwen_vl_utils 0.0.14 and the real processor, at the card's pixels."""
    assert PYTHON.is_file(), f"{PYTHON} is missing; make it with `make test-card`"
    folder, noise = reasoner_folder(), Random(0)
    sizes = [(noise.randint(28, 1600), noise.randint(28, 1600)) for _ in range(200)]
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    script, out = Path(__file__).with_name("card_grids.py"), tmp_path / "grids.json"
    arguments = [PYTHON, script, folder, tmp_path / "sizes.json", out]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    theirs, loaded = json.loads(out.read_text()), load("tiny")
    message = [{"role": "user", "content": [{"type": "image"}]}]
    paths: tuple[Preprocessing, ...] = ("processor", "qwen-vl-utils")
    for size, grids in zip(sizes, theirs, strict=True):
        for path, grid in zip(paths, grids, strict=True):
            found = encode(loaded, message, [Image.new("RGB", size)], 262_144, 262_144, path).image_grid_thw
            assert found is not None
            assert found[0, 1:].tolist() == grid, (path, size)
    assert sum(first != second for first, second in theirs) > 20
