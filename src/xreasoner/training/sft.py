"""Stage 1: supervised fine-tuning on text, over the assistant's tokens."""

from __future__ import annotations

import copy
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
from xreasoner.training import losses
from xreasoner.training.common import Journal, Progress, make_optimiser, rate, stop_on_nan, uninterrupted, update

CHUNK_TOKENS = 8192
"""Padded tokens of one forward pass."""


def train_sft(
    stage: SFTStage, loaded: Loaded, data: Sequence[Tokens], out: Path, seed: int, progress: Progress
) -> None:
    """Train in place. Loss: cross-entropy of the assistant's tokens, over their number in the whole batch.

    Ctrl-C and SIGTERM wait for the step's end; the state is then saved, and the same call goes on from there.
    """
    model = loaded.model
    reference = copy.deepcopy(model).requires_grad_(False) if stage.kl_to_base > 0 else None
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
            with uninterrupted():
                metrics = _accumulate(stage, loaded, reference, [data[i] for i in batch], out)
                norm = update(optimiser, lr, stage.optimiser.clip, out, [data[i].ids for i in batch])
                metrics |= {"lr": lr, "grad_norm": norm}
                spent = time.monotonic() - start
                journal.write({**metrics, "tokens_per_s": metrics["tokens"] / spent, "seconds": spent})
            progress(stage.name, journal.step, len(batches), metrics)
    except KeyboardInterrupt:
        journal.save()
        raise
    model.eval()


def _accumulate(
    stage: SFTStage, loaded: Loaded, reference: Any, batch: Sequence[Tokens], out: Path
) -> dict[str, float]:
    """Gradients of one batch's loss; returns the loss, the tokens and the share of padding (and the KL if asked)."""
    lengths = [len(item.ids) for item in batch]
    learnt = sum(len(item.ids) - item.prompt for item in batch)
    total, divergence, padded = 0.0, 0.0, 0
    for part in chunks(range(len(batch)), lengths, CHUNK_TOKENS):
        rows = [batch[i] for i in part]
        ids_BT = pad([row.ids for row in rows], loaded.device)
        cross, kl = summed_loss(loaded.model, ids_BT, rows, reference)
        loss = (cross + stage.kl_to_base * kl) / learnt
        stop_on_nan(loss.item(), "loss", out, ids_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        divergence += kl.item() / learnt
        padded += ids_BT.numel()
    found = {"loss": total, "tokens": sum(lengths), "padding_share": 1 - sum(lengths) / padded}
    return found if reference is None else {**found, "kl_to_base": divergence}


def summed_loss(model: Any, ids_BT: Tensor, rows: Sequence[Tokens], reference: Any = None) -> tuple[Tensor, Tensor]:
    """Sums over the assistant's tokens: cross-entropy, and KL to the reference model (0 without one).

    Logits are made at those positions alone.
    """
    place_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begin_B1 = torch.tensor([[row.prompt] for row in rows], device=ids_BT.device)
    end_B1 = torch.tensor([[len(row.ids)] for row in rows], device=ids_BT.device)
    learnt_BT = (place_BT >= begin_B1) & (place_BT < end_B1)
    learnt_BT = learnt_BT[:, 1:]
    logits_MV = model.lm_head(hidden_states(model, ids_BT)[:, :-1][learnt_BT]).float()
    cross = F.cross_entropy(logits_MV, ids_BT[:, 1:][learnt_BT], reduction="sum")
    if reference is None:
        return cross, cross.new_zeros(())
    with torch.no_grad():
        base_MV = reference.lm_head(hidden_states(reference, ids_BT)[:, :-1][learnt_BT]).float()
    return cross, losses.kl_full(base_MV, logits_MV).sum()
