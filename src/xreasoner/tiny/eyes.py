"""The vision tower's schooling: each cell of a picture tells the language model's own embeddings what it holds.

Learning to read through the caption loss alone stays at chance (docs/log.md), so the tower comes first, by
itself. A merged token h (192 wide) holds four answers at once, each in a rotation of its own: answer k is read by
the logits 25 · cos(h R_k, E), E being the embeddings of the words. R_0 is the identity, so that the first answer
looks to the language model like the word itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from xreasoner.tiny.architecture import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH, rotations
from xreasoner.tiny.drawing import Drawing, draw_scene
from xreasoner.tiny.lessons import all_words
from xreasoner.tiny.state import save_state
from xreasoner.tiny.world import DOMAINS, shape_scene, table_scene

NOTHING = "<|endoftext|>"
"""What an empty cell says, and the second answer of a cell that has only one."""
_SHARPNESS = 25.0


def pixels(images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Patches [P, 3·2·14·14] and grids [N, 3], as `Qwen2VLImageProcessorPil` gives for pictures of whole cells."""
    mean, std = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
    patches, grids = [], []
    for image in images:
        rows, columns = image.height // PATCH, image.width // PATCH
        values = (np.asarray(image, np.float32) / 255.0 - mean) / std
        blocks = values.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
        flat = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]  # …, channel, time, y, x
        patches.append(np.repeat(flat, 2, axis=5).reshape(rows * columns, -1))
        grids.append((1, rows, columns))
    return torch.from_numpy(np.concatenate(patches)), torch.tensor(grids)


class Vocabulary:
    """The words that cells say, their token ids, and labels for drawings."""

    def __init__(self, tokenizer: Any) -> None:
        texts = [f" {word}" for word in all_words()] + [f" {d}" for d in range(10)] + [str(d) for d in range(10)]
        self.ids = torch.tensor([tokenizer.convert_tokens_to_ids(NOTHING)] + [tokenizer.encode(t)[0] for t in texts])
        self.index = {text: i + 1 for i, text in enumerate(texts)}
        self.rotations = rotations()

    def label(self, first: str, second: str = "", before: tuple[str, str] = ("", "")) -> list[int]:
        """The four answers of a cell as indices; 0 says nothing, -100 is not asked."""
        spaced = [f" {word}" if word else "" for word in (first, second, *before)]
        if first.isdigit():
            spaced[1] = second  # a number's second digit has no space before it
        return [self.index[w] if w else 0 for w in spaced]

    def labels(self, drawing: Drawing) -> list[list[int]]:
        """One row of answers per cell in reading order; an empty cell answers only that it is empty."""
        rows, columns = drawing.grid
        empty = [0, 0, -100, -100]
        return [
            self.label(cell.first, cell.second, cell.before) if (cell := drawing.cells.get((r, c))) else empty
            for r in range(rows)
            for c in range(columns)
        ]

    def loss(self, merged_CD: Tensor, drawings: Sequence[Drawing], embeddings_VD: Tensor) -> tuple[Tensor, Tensor]:
        """The cells' loss, and which answers are right [R, 5] (the last: all four) in cells that hold something.

        embeddings_VD: the language model's, which stay as they are.
        """
        device = merged_CD.device
        label_CK = torch.tensor([row for drawing in drawings for row in self.labels(drawing)], device=device)
        words_WD = embeddings_VD.detach()[self.ids.to(device)]
        words_KWD = torch.einsum("wd,ked->kwe", F.normalize(words_WD, dim=-1), self.rotations.to(device))
        logits_CKW = _SHARPNESS * torch.einsum("cd,kwd->ckw", F.normalize(merged_CD, dim=-1), words_KWD)
        loss = F.cross_entropy(logits_CKW.flatten(0, 1), label_CK.flatten(), ignore_index=-100)
        norm = 2.0 * words_WD.norm(dim=-1).mean()
        loss = loss + 0.1 * (merged_CD.norm(dim=-1) / norm - 1).pow(2).mean()
        hit_CK = (logits_CKW.argmax(-1) == label_CK) | (label_CK == -100)
        hit_CK = torch.cat([hit_CK, hit_CK.all(-1, keepdim=True)], dim=-1)
        return loss, hit_CK[label_CK[:, 0] != 0]


def see(model: Any, images: Sequence[Image.Image]) -> list[Tensor]:
    """Merged tokens [cells, D] of each picture."""
    patches, grids = pixels(images)
    device = next(model.parameters()).device
    merged = model.model.visual(patches.to(device), grid_thw=grids.to(device)).pooler_output
    return list(torch.split(merged, (grids.prod(-1) // MERGE**2).tolist()))


def school(
    model: Any,
    tokenizer: Any,
    easy: Sequence[Drawing],
    *,
    state_file: Path,
    steps: int,
    seed: int,
    log: Callable[[dict[str, float]], None],
    batch: int = 16,
    lr: float = 1.5e-3,
) -> None:
    """Train tower and merger for so many steps, saving every minute and resuming what is there.

    easy: easy-vqa's train pictures, each cell of which tells the one shape.
    """
    vocabulary = Vocabulary(tokenizer)
    tower = model.model.visual
    optimiser = torch.optim.AdamW(tower.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    step, spent, hits_R = 0, 0.0, None
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        tower.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
    rng, start, saved = Random(seed * 1_000_003 + step), time.monotonic() - spent, time.monotonic()
    while step < steps:
        # from one font at one place to all the variety of evaluation, over the first half of the steps
        variety = min(1.0, 2.0 * step / steps)
        scenes = [(table_scene if rng.random() < 0.85 else shape_scene)(rng, rng.choice(DOMAINS)) for _ in range(batch)]
        drawings = [draw_scene(rng, scene, rng.uniform(0.5, 1.0) * variety if variety < 1 else 1.0) for scene in scenes]
        drawings += rng.sample(list(easy), batch // 8)
        merged_CD = torch.cat(see(model, [drawing.image for drawing in drawings]))
        loss, hit_RK = vocabulary.loss(merged_CD, drawings, model.model.language_model.embed_tokens.weight)
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100, max(0.02, 2.0 * (1 - step / steps)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimiser.step()
        step += 1
        full_R = hit_RK.float().mean(0)
        hits_R = full_R if hits_R is None else 0.98 * hits_R + 0.02 * full_R
        now = time.monotonic()
        spent = now - start
        if now - saved > 60 or step == steps:
            state = {"model": tower.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            save_state(state_file, state)
            saved = now
        if step % 100 == 0:
            names = ("first", "second", "before", "before_second", "all")
            row = {"step": step, "of": steps, "loss": loss.item(), "seconds": spent}
            log({**row, **dict(zip(names, hits_R.tolist(), strict=True))})
