"""Planned beside measured memory: one training step of every form on a small random model (`make plan-check`).

One process imports everything and reads the model's files; each form then runs in a fork of it, so that a measurement
takes a second. Resident memory is counted from before the model is loaded: weights, gradients, moments, activations
and the allocator's own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from xreasoner.completion import Completion
from xreasoner.data.packing import Tokens
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import load
from xreasoner.models.lora import adapt
from xreasoner.planning import memory as planned
from xreasoner.planning import published
from xreasoner.planning.machine import Machine
from xreasoner.planning.shape import shape
from xreasoner.recipe import Recipe, RLStage, SFTStage
from xreasoner.training.common import MOST_LOGITS, Journal, StepContext, make_optimiser, ready
from xreasoner.training.rl import improve
from xreasoner.training.rollouts import Rollout
from xreasoner.training.run import quiet
from xreasoner.training.sft import train_sft
from xreasoner.verdict import Verdict

TEXT: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
TEXT |= {"num_key_value_heads": 4, "layer_types": ["full_attention"] * 8, "vocab_size": 4096}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}}
LENGTH = 256


def forms() -> dict[str, dict[str, Any]]:
    """Every form of a stage: {its name: the recipe's fields}."""
    found = {}
    kinds = itertools.product(
        ("sft", "rl"), ("full", "lora"), ("padded", "packed"), ("", "checkpointed"), ("float32", "bfloat16")
    )
    for kind, weights, batching, again, precision in kinds:
        if kind == "rl" and batching == "padded" and again:
            continue  # refused by the recipe
        fields: dict[str, Any] = {"kind": kind, "batching": batching, "precision": precision}
        fields["activation_checkpointing"] = bool(again)
        if weights == "lora":
            fields["lora"] = {"rank": 16}
        found[" ".join(filter(None, (kind, weights, batching, again, precision)))] = fields
    return found


def stage_of(fields: dict[str, Any]) -> SFTStage | RLStage:
    """One step with two passes of 1,024 tokens, all texts of the same length."""
    common: dict[str, Any] = {
        "name": "s",
        "data": [{"source": "rows", "n": 8}],
        "prompt": "brief",
        "optimizer": {"lr": 1e-5},
    }
    if fields["kind"] == "sft":
        common |= {"max_length": LENGTH, "chunk_tokens": 4 * LENGTH, "batch_examples": 8}
    else:
        common |= {"steps": 1, "thinking_budget": 184, "answer_budget": 8, "group_size": 4, "prompts_per_step": 2}
        common |= {"max_prompt": 64, "chunk_tokens": 4 * LENGTH}
    recipe = Recipe.model_validate({"name": "r", "model": "tiny-base", "stages": [{**common, **fields}]})
    return recipe.stages[0]


def save_model(folder: Path, source: str = "tiny-base") -> Path:
    """A random model of 26 million parameters, with another one's tokenizer."""
    loaded = load(source)
    small = loaded.model.config.to_dict()
    vision = {**small["vision_config"], "out_hidden_size": TEXT["hidden_size"]}
    config = Qwen2_5_VLConfig(**{**small, "text_config": {**small["text_config"], **TEXT}, "vision_config": vision})
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    loaded.image_processor.save_pretrained(folder)
    return folder


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def release_freed() -> None:
    """Give what is freed back to the operating system; pages that are held in memory cannot be given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def step(stage: SFTStage | RLStage, folder: str) -> dict[str, float]:
    """The resident peak of training steps, in bytes above what was there before the model was loaded."""
    torch.manual_seed(0)
    release_freed()
    before = resident("VmRSS")
    loaded = load(folder, dtype=torch.float32)
    if stage.lora is not None:
        adapt(loaded.model, stage.lora)
    freeze(loaded.model, stage.lower_layers_frozen, stage.embeddings_frozen, lora=stage.lora is not None)
    learner = ready(stage, loaded)
    sum(parameter.sum().item() for parameter in loaded.model.parameters())  # mapped files are resident when read
    standing = resident("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as out:
        if isinstance(stage, SFTStage):
            rows = [Tokens(tuple(torch.randint(20, 1000, (LENGTH,)).tolist()), 32) for _ in range(8)]
            train_sft(stage, learner, rows, Path(out), 0, quiet)
        else:
            optimiser = make_optimiser(learner.model, stage.optimiser)
            context = StepContext("s", 1, Path(out))
            loaded.model.train()
            Journal(Path(out), learner.model, optimiser, stage).resume()  # which makes AdamW's moments
            improve(stage, learner, optimiser, rollouts(stage), (), 1e-5, Random(0), context)
    return {"measured": resident("VmHWM") - before, "standing": standing}


def rollouts(stage: RLStage) -> list[Rollout]:
    """Replies of 192 tokens to prompts of 64, every other one right."""
    found: list[Rollout] = []
    for k in range(stage.prompts_per_step * stage.group_size):
        ids = tuple(torch.randint(20, 1000, (192,)).tolist())
        right = k % 2 == 0
        completion = Completion(
            text="", thought="", answer="", exit="natural", prompt_tokens=64, thought_tokens=192, answer_tokens=0,
            token_ids=ids, logprobs=(-8.0,) * 192, forced=(False,) * 192,
        )  # fmt: skip
        prompt = tuple(torch.randint(20, 1000, (64,)).tolist()) if k % stage.group_size == 0 else found[-1].prompt
        verdict = Verdict("correct" if right else "wrong", "", "")
        found.append(Rollout(prompt, completion, verdict, float(right), (-8.0,) * 192, (True,) * 192, float(right)))
    return found


def forked(task: Callable[[], Any]) -> Any:
    """What a task returns (as JSON) in a fork of this process, whose memory nothing else has touched."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(task()).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text or b"null")


def measure(stage: SFTStage | RLStage, folder: str) -> dict[str, float]:
    """One form, in a fork: a small model takes the same step first, so that code and tables are in memory.

    They are held there where that is allowed, for the operating system may drop a file's pages at any time.
    """

    def task() -> dict[str, float]:
        step(stage, "tiny-base")
        release_freed()
        ctypes.CDLL(None).mlockall(1)
        return step(stage, folder)

    found: dict[str, float] = forked(task)
    return found


def compare(names: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each form's name, and its planned and measured bytes."""
    with tempfile.TemporaryDirectory() as parent:
        folder = str(forked(lambda: str(save_model(Path(parent) / "model"))))
        found = shape(folder)
        machine = Machine(1, 1e12, "cpu", 1e11, 1e10, logits=MOST_LOGITS["cpu"], cpu=True)
        for name, fields in forms().items():
            if names and not any(part in name for part in names):
                continue
            stage = stage_of(fields)
            parts = planned.phases(found, stage, machine)
            parts.pop("rollouts", None)
            phase = planned.largest_phase(parts)
            yield name, {"planned": planned.peak(parts), **measure(stage, folder), **parts[phase]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="only forms whose names hold one of these")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1_000_000)  # M_MMAP_THRESHOLD: what is freed goes back to the operating system
    rows = {}
    for name, row in compare(arguments.names):
        rows[name] = row
        if not arguments.json:
            line = f"{name:38} planned {row['planned'] / 1e6:7.1f} MB, measured {row['measured'] / 1e6:7.1f} MB, "
            print(f"{line}{100 * (row['planned'] / row['measured'] - 1):+5.1f} %", flush=True)
    if arguments.json:
        print(json.dumps(rows))
    else:
        print(f"\n{published.told()}")


if __name__ == "__main__":
    main()
