"""Planned beside measured memory: one training step of every form on a small random model (`make plan-check`).

One process imports everything; each form then runs in a fork of it. Counted is resident memory of the process's own,
from before the model is loaded: weights, gradients, moments, activations, and what kernels and the allocator take.
Pages of files (code, the vision tower) come and go as the operating system likes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from xreasoner.completion import Completion
from xreasoner.data.packing import Tokens
from xreasoner.models.freezing import VISION, freeze
from xreasoner.models.loading import load
from xreasoner.models.lora import adapt
from xreasoner.models.offloading import offload_vision
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
GIVE_BACK = "MALLOC_MMAP_THRESHOLD_"
"""glibc gives larger pieces back to the operating system when they are freed."""


def forms() -> dict[str, dict[str, Any]]:
    """Every form of a stage: {its name: the recipe's fields}."""
    found = {}
    kinds = itertools.product(
        ("sft", "rl"),
        ("full", "lora", "lora-bf16"),
        ("padded", "packed"),
        ("", "checkpointed"),
        ("float32", "bfloat16"),
    )
    for kind, weights, batching, again, precision in kinds:
        if kind == "rl" and batching == "padded" and again:
            continue  # refused by the recipe
        fields: dict[str, Any] = {"kind": kind, "batching": batching, "precision": precision}
        fields["activation_checkpointing"] = bool(again)
        if weights != "full":
            fields["lora"] = {"rank": 16, "base_dtype": "bfloat16" if weights == "lora-bf16" else "float32"}
        if weights == "lora-bf16" and precision == "float32":
            continue  # refused by the recipe
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
        common |= {"max_prompt": 64, "chunk_tokens": 64 + 4 * 192 if fields["batching"] == "padded" else 4 * LENGTH}
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


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most memory of this process's own (no file's) inside the block, above what there was before."""
    gc.collect()
    before, ended = anonymous(), threading.Event()
    found = {"measured": 0}

    def watch() -> None:
        while not ended.wait(0.002):
            found["measured"] = max(found["measured"], anonymous() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def step(stage: SFTStage | RLStage, folder: str) -> dict[str, int]:
    """What a model takes that is loaded and trained for one step."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out, watched() as found:
        halved = stage.lora is not None and stage.lora.base_dtype == "bfloat16"
        loaded = load(folder, dtype=torch.bfloat16 if halved else torch.float32)
        if stage.lora is not None:
            adapt(loaded.model, stage.lora)
        freeze(loaded.model, stage.lower_layers_frozen, stage.embeddings_frozen, lora=stage.lora is not None)
        offload_vision(loaded.model, Path(out))
        for name, parameter in loaded.model.named_parameters():
            if VISION not in name:
                parameter.data = parameter.data.clone()  # on a GPU they are in memory too, and not in a file
        learner = ready(stage, loaded)
        if isinstance(stage, SFTStage):
            rows = [Tokens(tuple(torch.randint(20, 1000, (LENGTH,)).tolist()), 32) for _ in range(8)]
            train_sft(stage, learner, rows, Path(out), 0, quiet)
        else:
            optimiser = make_optimiser(learner.model, stage.optimiser)
            loaded.model.train()
            Journal(Path(out), learner.model, optimiser, stage).resume()  # which makes AdamW's moments
            context = StepContext("s", 1, Path(out))
            improve(stage, learner, optimiser, rollouts(stage), (), 1e-5, Random(0), context)
    return found


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
            yield name, {"planned": planned.peak(parts), **forked(partial(step, stage, folder)), **parts[phase]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="only forms whose names hold one of these")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the tables")
    arguments = parser.parse_args()
    if GIVE_BACK not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, GIVE_BACK: "65536"})
    torch.set_num_threads(1)
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
