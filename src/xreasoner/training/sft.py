"""Stage 1: supervised fine-tuning on text, over the assistant's tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xreasoner.data.packing import Tokens, chunks, hidden_states, pad, schedule
from xreasoner.models.loading import Loaded
from xreasoner.recipe import SFTStage
from xreasoner.training.common import Journal, Progress, make_optimiser, rate, stop_on_nan, update

CHUNK_TOKENS = 8192
"""Padded tokens of one forward pass."""


def train_sft(
    stage: SFTStage, loaded: Loaded, data: Sequence[Tokens], out: Path, seed: int, progress: Progress
) -> None:
    """Train in place. Loss: cross-entropy of the assistant's tokens, over their number in the whole batch."""
    model = loaded.model
    optimiser = make_optimiser(model, stage.optimiser)
    journal = Journal(out, model, optimiser, stage.checkpoint_seconds)
    journal.resume()
    lengths = [len(item.ids) for item in data]
    batches = schedule(lengths, stage.batch_examples, stage.epochs, seed)
    model.train()
    try:
        while journal.step < len(batches):
            start, batch = time.monotonic(), batches[journal.step]
            lr = rate(stage.optimiser, journal.step, len(batches), stage.epochs)
            loss, padding = _accumulate(loaded, data, batch, lengths, out)
            norm = update(model, optimiser, lr, stage.optimiser.clip)
            spent, tokens = time.monotonic() - start, sum(lengths[i] for i in batch)
            metrics = {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens, "padding_share": padding}
            journal.write({**metrics, "tokens_per_s": tokens / spent, "seconds": spent})
            progress(stage.name, journal.step, len(batches), metrics)
    except KeyboardInterrupt:
        optimiser.zero_grad(set_to_none=True)
        journal.save()
        raise
    model.eval()


def _accumulate(
    loaded: Loaded, data: Sequence[Tokens], batch: Sequence[int], lengths: Sequence[int], out: Path
) -> tuple[float, float]:
    """Gradients of one batch's loss; returns the loss and the share of padding."""
    learnt = sum(lengths[i] - data[i].prompt for i in batch)
    total, padded = 0.0, 0
    for part in chunks(batch, lengths, CHUNK_TOKENS):
        ids_BT = pad([data[i].ids for i in part], loaded.device)
        loss = summed_loss(loaded.model, ids_BT, [data[i] for i in part]) / learnt
        stop_on_nan(loss, out, ids_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        padded += ids_BT.numel()
    return total, 1 - sum(lengths[i] for i in batch) / padded


def summed_loss(model: Any, ids_BT: Tensor, rows: Sequence[Tokens]) -> Tensor:
    """Sum of the cross-entropies of the assistant's tokens; logits are made at those positions alone."""
    place_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begin_B1 = torch.tensor([[row.prompt] for row in rows], device=ids_BT.device)
    end_B1 = torch.tensor([[len(row.ids)] for row in rows], device=ids_BT.device)
    learnt_BT = (place_BT >= begin_B1) & (place_BT < end_B1)
    hidden_MD = hidden_states(model, ids_BT)[:, :-1][learnt_BT[:, 1:]]
    return F.cross_entropy(model.lm_head(hidden_MD).float(), ids_BT[:, 1:][learnt_BT[:, 1:]], reduction="sum")
