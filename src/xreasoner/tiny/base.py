"""`make base`: pretrain the embedded base from nothing, with one seed, and stop at the gates.

First the vision tower by itself (eyes.py), then the language model on lessons.py while the tower goes on. The state is
saved every minute; the same command goes on from it. The result is a plain Qwen2.5-VL folder in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from xreasoner.errors import TrainingError
from xreasoner.models.export import export
from xreasoner.prompts import PROMPTS
from xreasoner.tiny import architecture, chains, eyes, gates, lessons, outside
from xreasoner.tiny.lessons import Lesson
from xreasoner.tiny.state import record, save_state
from xreasoner.tiny.tokenizer import train_tokenizer
from xreasoner.tiny.world import DOMAINS, make_scene, make_task, write_scene

LEARNING_RATE = 1.5e-3
BATCH_TOKENS = 2560
POOL = 512


Item = tuple[Lesson, list[int], list[bool]]
"""A lesson, its token ids, and which of them are learnt."""


class Scribe:
    """Turns lessons into token ids, loss masks and positions by the chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.system = self.encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
        self.user = self.encode("<|im_start|>user\n")
        self.assistant = self.encode("<|im_start|>assistant\n")
        self.end = self.encode("<|im_end|>")
        self.newline = self.encode("\n")
        self.vision = self.encode("<|vision_start|>"), self.encode("<|vision_end|>")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def write(self, lesson: Lesson) -> tuple[list[int], list[bool]]:
        """Token ids and which of them are learnt, both of length T."""
        ids: list[int] = []
        learnt: list[bool] = []

        def add(tokens: list[int], learn: bool = False) -> None:
            ids.extend(tokens)
            learnt.extend([learn] * len(tokens))

        if lesson.chat:
            add(self.system)
        for index, (text, learn) in enumerate(lesson.pieces):
            if not lesson.chat:
                add(self.encode(text), learn)
                continue
            add(self.assistant if index % 2 else self.user)
            if index == 0 and lesson.drawing is not None:
                rows, columns = lesson.drawing.grid
                add([*self.vision[0], *[self.pad] * (rows * columns), *self.vision[1]])
            add(self.encode(text), learn)
            add(self.end, learn)
            add(self.newline)
        return ids, learnt

    def positions(self, ids: Sequence[int], grid: tuple[int, int] | None) -> list[tuple[int, int, int]]:
        """Qwen2.5-VL's three-part positions (time, row, column) of each token; grid in merged cells."""
        places: list[tuple[int, int, int]] = []
        position = 0
        index = 0
        while index < len(ids):
            if ids[index] == self.pad and grid is not None:
                rows, columns = grid
                places += [(position, position + r, position + c) for r in range(rows) for c in range(columns)]
                index += rows * columns
                position += max(rows, columns)
            else:
                places.append((position, position, position))
                position += 1
                index += 1
        return places


def batches(rng: Random, scribe: Scribe, world: dict[str, Any], progress: Callable[[], float]) -> Iterator[list[Item]]:
    """Endless batches of about `BATCH_TOKENS` padded tokens; lessons of like length stand together."""
    while True:
        pool = []
        for _ in range(POOL):
            lesson = lessons.lesson(rng, world["words"], world["easy"], world["gym"], progress())
            pool.append((lesson, *scribe.write(lesson)))
        pool.sort(key=lambda item: len(item[1]))
        groups: list[list[Item]] = [[]]
        for item in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(item[1]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        yield from groups


def forward(model: Any, scribe: Scribe, batch: Sequence[Item], seen_CD: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [M, V] and targets [M] at the M learnt positions of a batch, padded on the right.

    seen_CD: the merged tokens of the batch's pictures, in order.
    """
    device = next(model.parameters()).device
    width = max(len(ids) for _, ids, _ in batch)
    ids_BT = torch.zeros(len(batch), width, dtype=torch.long)
    learnt_BT = torch.zeros(len(batch), width, dtype=torch.bool)
    positions_BT3 = torch.zeros(len(batch), width, 3, dtype=torch.long)
    for row, (lesson, ids, learnt) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        learnt_BT[row, : len(ids)] = torch.tensor(learnt)
        grid = lesson.drawing.grid if lesson.drawing is not None else None
        positions_BT3[row, : len(ids)] = torch.tensor(scribe.positions(ids, grid))
    ids_BT, learnt_BT, positions_BT3 = ids_BT.to(device), learnt_BT.to(device), positions_BT3.to(device)
    language = model.model.language_model
    embedded_BTD = language.embed_tokens(ids_BT)
    if seen_CD is not None:
        embedded_BTD = embedded_BTD.masked_scatter((ids_BT == scribe.pad).unsqueeze(-1), seen_CD)
    hidden_BTD = language(inputs_embeds=embedded_BTD, position_ids=positions_BT3.permute(2, 0, 1), use_cache=False)[0]
    target = learnt_BT[:, 1:]
    return model.lm_head(hidden_BTD[:, :-1][target]), ids_BT[:, 1:][target]


def losses(
    model: Any, scribe: Scribe, vocabulary: eyes.Vocabulary, batch: Sequence[Item]
) -> tuple[Tensor, Tensor, Tensor]:
    """The language loss, the cells' loss (the tower goes on learning), and the share of cells read right."""
    drawings = [lesson.drawing for lesson, _, _ in batch if lesson.drawing is not None]
    seen_CD = torch.cat(eyes.see(model, [drawing.image for drawing in drawings])) if drawings else None
    logits, targets = forward(model, scribe, batch, seen_CD)
    language = F.cross_entropy(logits.float(), targets)
    if seen_CD is None:
        return language, torch.zeros(()), torch.ones(())
    cells, hit_RK = vocabulary.loss(seen_CD, drawings, model.model.language_model.embed_tokens.weight)
    return language, cells, hit_RK[:, -1].float().mean()


def learning_rate(progress: float) -> float:
    """Warm-up over 2 %, constant until half-way, then linear to 2 %."""
    return LEARNING_RATE * min(1.0, progress / 0.02 + 0.01, max(0.02, 2.0 * (1.0 - progress)))


def optimiser_for(model: Any) -> torch.optim.AdamW:
    language = model.model.language_model
    embedding = [language.embed_tokens.weight]
    rest = [p for name, p in language.named_parameters() if not name.startswith("embed_tokens")]
    tower = list(model.model.visual.parameters())
    groups = [
        {"params": rest, "scale": 1.0},
        {"params": embedding, "scale": 0.2},
        {"params": tower, "scale": 0.4},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)


def teach(model: Any, tokenizer: Any, world: dict[str, Any], out: Path, *, steps: int, seed: int) -> None:
    """Train the language model for so many steps, saving every minute and resuming what is there."""
    scribe, vocabulary, optimiser = Scribe(tokenizer), eyes.Vocabulary(tokenizer), optimiser_for(model)
    state_file, step, spent = out / "language.pt", 0, 0.0
    average, read = math.log(len(tokenizer)), 0.0  # the two moving averages that the metrics show
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, average, read = state["step"], state["spent"], state["average"], state["read"]
    stream = batches(Random(seed * 1_000_003 + step), scribe, world, lambda: step / steps)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    start, saved, tokens, mark = time.monotonic() - spent, time.monotonic(), 0, time.monotonic()
    while step < steps:
        batch = next(stream)
        language, cells, hits = losses(model, scribe, vocabulary, batch)
        for group in optimiser.param_groups:
            group["lr"] = group["scale"] * learning_rate(step / steps)
        optimiser.zero_grad(set_to_none=True)
        (language + cells).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        tokens += sum(len(ids) for _, ids, _ in batch)
        average = 0.98 * average + 0.02 * language.item()
        read = 0.98 * read + 0.02 * hits.item()
        now = time.monotonic()
        spent = now - start
        if step % 50 == 0:
            row = {"phase": "language", "step": step, "of": steps, "loss": average, "cells": read, "seconds": spent}
            record(out, {**row, "tokens_per_s": tokens / (now - mark)})
            tokens, mark = 0, now
        if now - saved > 60 or step == steps:
            weights = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            save_state(state_file, {**weights, "step": step, "spent": spent, "average": average, "read": read})
            saved = now


def corpus(rng: Random, world: dict[str, Any]) -> list[str]:
    """What the tokenizer is trained on: the world in both domains, the prompts, the outside texts."""
    texts = [*PROMPTS.values()] * 3
    for _ in range(6000):
        scene = make_scene(rng, rng.choice(DOMAINS))
        task = make_task(rng, scene)
        options = lessons.options_for(rng, task)
        asked = lessons.with_options(task.question, options)
        texts += [write_scene(rng, scene), asked, chains.chain(rng, scene, task, options)]
        texts += [text for text, _ in lessons.scene_lesson(rng, scene.domain, False, 2).pieces]
    texts += [question for _, question, _ in world["easy"][:4000]]
    texts += [question for question, _ in world["gym"]]
    return texts


def outside_world(seed: int) -> dict[str, Any]:
    """What lessons.lesson draws from besides the generator."""
    easy = outside.easy_train()
    drawings = list({id(drawing): drawing for drawing, _, _ in easy}.values())
    gym = list(outside.gym_direct(1500, seed + 1))
    return {"words": lessons.all_words(), "easy": easy, "drawings": drawings, "gym": gym}


def tokenizer_for(out: Path, world: dict[str, Any], seed: int) -> Any:
    """The tokenizer of an earlier run in the same folder, or a new one: saved weights belong to their tokenizer."""
    folder = out / "tokenizer"
    if not folder.exists():
        train_tokenizer(corpus(Random(seed), world), world["words"]).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make(out: Path, *, eyes_steps: int, language_steps: int, seed: int) -> Path:
    """The whole of `make base`; returns the exported folder. Raises `TrainingError` when a gate is missed."""
    out.mkdir(parents=True, exist_ok=True)
    world = outside_world(seed)
    tokenizer = tokenizer_for(out, world, seed)
    model = architecture.build(tokenizer, seed).to("cuda" if torch.cuda.is_available() else "cpu")
    eyes.school(
        model,
        tokenizer,
        world["drawings"],
        state_file=out / "eyes.pt",
        steps=eyes_steps,
        seed=seed,
        log=lambda row: record(out, {"phase": "eyes", **row}),
    )
    teach(model, tokenizer, world, out, steps=language_steps, seed=seed)
    folder = export(model, tokenizer, architecture.image_processor(), out / "export", dtype=torch.bfloat16)
    measured = gates.measure(folder, n=300, seed=seed)
    (out / "gates.json").write_text(json.dumps(measured, indent=1))
    missed = gates.missed(measured)
    if missed:
        raise TrainingError("the base missed its gates: " + "; ".join(missed) + "; train longer: --language-steps")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/base"))
    parser.add_argument("--eyes-steps", type=int, default=8000)
    parser.add_argument("--language-steps", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        folder = make(
            arguments.out,
            eyes_steps=arguments.eyes_steps,
            language_steps=arguments.language_steps,
            seed=arguments.seed,
        )
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; the same command goes on from {arguments.out}") from None
    except TrainingError as error:
        raise SystemExit(str(error)) from None
    print(folder)


if __name__ == "__main__":
    main()
