"""The plan's counts are the true models', its memory is what a step takes, and its advice makes things fit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from xreasoner import planning
from xreasoner.errors import UserError
from xreasoner.models.loading import load
from xreasoner.planning import Machine, plan, plan_stage, shape, told
from xreasoner.recipe import Recipe, RLStage, SFTStage, load_recipe
from xreasoner.training.common import MOST_LOGITS

RECIPE = {"name": "r", "model": "tiny-base", "stages": []}
SFT = {"name": "sft", "kind": "sft", "data": [{"source": "rows", "n": 1000}], "prompt": "brief"}
RL = {**SFT, "name": "rl", "kind": "rl", "steps": 10}
ADAM = {"optimiser": {"lr": 1e-5}}


def stage(**change: Any) -> SFTStage:
    found = Recipe.model_validate({**RECIPE, "stages": [{**SFT, **ADAM, **change}]}).stages[0]
    assert isinstance(found, SFTStage)
    return found


def rl(**change: Any) -> RLStage:
    found = Recipe.model_validate({**RECIPE, "stages": [{**RL, **ADAM, **change}]}).stages[0]
    assert isinstance(found, RLStage)
    return found


@pytest.mark.parametrize(
    ("name", "total"),  # what the published checkpoints hold
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
    ],
)
def test_parameters_are_the_published_models(name: str, total: int) -> None:
    found = shape(name)
    assert found.text + found.vision == total
    # by hand: Qwen's grouped attention (biases in 2.5, norms of queries and keys in 3) and gated feed-forward
    d, i, q, k = found.hidden, found.intermediate, found.query, found.key
    extra = q + 2 * k if "2.5" in name else 2 * 128
    assert found.layer == 2 * d * q + 2 * d * k + 3 * d * i + 2 * d + extra
    assert found.embeddings == found.vocab * d
    assert found.head == (found.embeddings if name.endswith("7B-Instruct") else 0)
    assert found.computed == found.layers * (2 * d * q + 2 * d * k + 3 * d * i) + found.vocab * d


def test_the_embedded_models_are_counted_too(random_folder: Path) -> None:
    for name in ("tiny", str(random_folder)):
        found = shape(name)
        assert found.text + found.vision == sum(p.numel() for p in load(name).model.parameters())


def _model(tmp_path: Path, random_folder: Path) -> Path:
    """A random model of 26 million parameters, with the small one's tokenizer."""
    loaded = load(str(random_folder))
    small = loaded.model.config.to_dict()
    text = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 4, "layer_types": ["full_attention"] * 8, "vocab_size": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}}
    vision = {**small["vision_config"], "out_hidden_size": 512}
    config = Qwen2_5_VLConfig(**{**small, "text_config": {**small["text_config"], **text}, "vision_config": vision})
    folder = tmp_path / "model"
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    loaded.image_processor.save_pretrained(folder)
    return folder


PROGRAM = """
import json, re, sys, torch
from pathlib import Path
from xreasoner.data.packing import Tokens
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import load
from xreasoner.recipe import Recipe
from xreasoner.training.common import ready
from xreasoner.training.run import quiet
from xreasoner.training.sft import train_sft

def memory(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
stage = Recipe.model_validate_json(sys.argv[1]).stages[0]
loaded = load(sys.argv[2], dtype=torch.float32)
freeze(loaded.model)
learner = ready(stage, loaded)
rows = [Tokens(tuple(torch.randint(20, 4000, (256,)).tolist()), 32) for _ in range(8)]
sum(parameter.sum().item() for parameter in loaded.model.parameters())  # mapped files are resident when read
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
train_sft(stage, learner, rows, Path(sys.argv[3]), 0, quiet)
print(json.dumps(memory("VmHWM") - before))
"""


@pytest.mark.timeout(1200)  # seconds on a quiet machine; page by page beside other work
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("change", [{}, {"activation_checkpointing": True}])
def test_memory_is_what_a_step_takes(tmp_path: Path, random_folder: Path, change: dict[str, Any]) -> None:
    """The resident peak of two real steps beside the plan's, within 20 %."""
    chosen = stage(max_length=256, chunk_tokens=1024, batch_examples=4, **change)
    recipe = Recipe.model_validate({**RECIPE, "stages": [chosen.model_dump(by_alias=True)]})
    folder = _model(tmp_path, random_folder)
    command = [sys.executable, "-c", PROGRAM, recipe.model_dump_json(by_alias=True), str(folder), str(tmp_path)]
    large = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc gives back what is freed
    measured = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=large).stdout)
    machine = Machine(1, 1e12, "cpu", 1e11, 1e10, logits=MOST_LOGITS["cpu"])
    memory = planning.parts(shape(str(folder)), chosen, machine)
    planned = planning.peak(memory) - memory["weights"]  # the weights were there before
    assert 0.8 < planned / measured < 1.2, (planned / 1e6, measured / 1e6, memory)


def test_what_autograd_keeps_is_counted(loaded: Any) -> None:
    """Between four layers' and two's: bytes of one token in one layer, to the byte in float32."""
    language = loaded.model.model.language_model
    found = shape(loaded.folder)
    held = []
    for layers in (4, 2):
        language.layers = language.layers[:layers]
        kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in loaded.model.parameters()}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = language(input_ids=torch.arange(256)[None] + 20, use_cache=False)
        held.append(sum(kept.values()))
        del result
    assert (held[0] - held[1]) / 2 / 256 == planning.kept_of_layer(found, half=False)


def test_a_7b_does_not_fit_and_the_advice_makes_it_fit() -> None:
    found = shape("Qwen/Qwen2.5-VL-7B-Instruct")
    machine = Machine.of(8, "80GB", price=2.0)
    recipe = load_recipe("x-reasoner-7b")
    heavy = stage(max_length=4096, chunk_tokens=32768)
    each = plan_stage(recipe, heavy, machine)
    assert each.mends
    assert each.peak > machine.memory
    settings = [part.split(".")[-1].split("=") for part in each.mends if part.startswith("--set")]
    cards = [int(part.split()[1]) for part in each.mends if part.startswith("--gpus")]
    mended = stage(max_length=4096, **{"chunk_tokens": 32768, **dict(settings)})
    again = plan_stage(recipe, mended, replace(machine, gpus=cards[0] if cards else 8))
    assert again.mends == ()
    assert again.peak < 0.92 * machine.memory
    assert planning.trainable(found, stage(lora={"rank": 16})) == 40_370_176
    assert planning.trainable(found, heavy) == found.text


def test_rl_that_does_not_fit_is_told_to_sample_elsewhere() -> None:
    """A whole copy is on the card only where the engine in this process samples from it."""
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(8, "80GB")
    sft, rl = plan(recipe, machine)
    assert "whole copy" not in sft.memory
    assert rl.memory["whole copy"] > 32e9
    assert rl.mends is not None
    (mend,) = rl.mends
    mended = load_recipe("x-reasoner-7b", shlex.split(mend)[1:])
    again = plan(mended, machine)[1]
    assert again.mends == ()
    assert "whole copy" not in again.memory


def test_a_stage_that_nothing_mends_says_what_is_too_large() -> None:
    recipe = load_recipe("x-reasoner-7b")
    machine = Machine.of(1, "10GB")
    text = told(plan(recipe, machine), recipe, machine, None)
    assert "does NOT fit in 10 GB" in text
    assert "no change of this recipe makes it fit" in text


def test_tokens_flops_hours_and_cost() -> None:
    recipe = Recipe.model_validate({**RECIPE, "model": "Qwen/Qwen2.5-VL-7B-Instruct", "stages": [{**SFT, **ADAM}]})
    machine = Machine.of(4, "40GB", price=3.0)
    (full,) = plan(recipe, machine)
    assert full.tokens == {"trained": 1000 * 4096}
    assert full.flops == pytest.approx(6 * full.tokens["trained"] * shape(recipe.model).computed, rel=0.15)
    (half,) = plan(recipe, machine, length=2048)
    assert half.tokens == {"trained": 1000 * 2048}
    assert full.cost == pytest.approx(full.hours["training"] * 12)
    assert full.hours["training"] == pytest.approx(full.flops / (4 * 312e12 * 0.4) / 3600)
    again = plan_stage(recipe, stage(activation_checkpointing=True), machine)
    assert again.flops == pytest.approx(full.flops * 4 / 3)
    sampled = plan_stage(recipe, rl(prompts_per_step=4, group_size=2, thinking_budget=100, answer_budget=20), machine)
    assert sampled.tokens["sampled"] == 10 * 4 * 2 * 120
    assert set(sampled.hours) == {"training", "rollouts"}


def test_cards_are_known_by_their_memory() -> None:
    assert Machine.of(2, "40GB").name == "A100 40GB"
    assert Machine.of(2, "80GiB").name == "H100 80GB"
    assert Machine.of(2, "22").memory == 22e9
    for size in ("plenty", "-5GB", "0", "nan", "inf"):
        with pytest.raises(UserError, match="such as 40GB"):
            Machine.of(2, size)


def test_rollouts_from_servers_leave_the_cards_to_training() -> None:
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(32, "80GB")
    own = plan_stage(recipe, recipe.stages[1], machine)
    served = load_recipe("x-reasoner-7b", ["stages.sft+rl.rollouts={urls: [http://a/v1, http://b/v1]}"]).stages[1]
    each = plan_stage(recipe, served, machine)
    assert "KV cache" in own.memory
    assert "KV cache" not in each.memory
    assert each.peak <= own.peak < machine.memory
    assert each.hours["rollouts"] > 0
