"""Stage 1: supervised fine-tuning on text, over the assistant's tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xreasoner.data.packing import Tokens, chunks, flat, hidden_states, pad, schedule
from xreasoner.models.attention import Documents
from xreasoner.recipe import SFTStage
from xreasoner.training import losses, parallel
from xreasoner.training.common import (
    Journal,
    Learner,
    Progress,
    StepContext,
    accumulate,
    make_optimiser,
    rate,
    uninterrupted,
    update,
)


def train_sft(
    stage: SFTStage, learner: Learner, data: Sequence[Tokens], out: Path, seed: int, progress: Progress
) -> Journal:
    """Train in place. Loss: cross-entropy of the assistant's tokens, over their number in the whole batch.

    Ctrl-C and SIGTERM wait for the step's end; the state is then saved, and the same call resumes from there. Returns
    the state, which can still be saved where the export fails.
    """
    model = learner.model
    optimiser = make_optimiser(model, stage.optimiser)
    journal = Journal(out, model, optimiser, stage)
    journal.resume()
    lengths = [len(item.ids) for item in data]
    batches = schedule(lengths, stage.batch_examples, stage.epochs, seed)
    model.train()
    try:
        while journal.step < len(batches):
            start, batch = time.monotonic(), batches[journal.step]
            lr = rate(stage.optimiser, journal.step, len(batches), stage.epochs)
            with uninterrupted():
                rows, context = [data[i] for i in batch], journal.context()
                metrics = _accumulate(stage, learner, rows, context)
                every, ids = range(len(rows)), [row.ids for row in rows]
                norm = update(model, optimiser, lr, stage.optimiser.clip, context, every, ids)
                metrics |= {"lr": lr, "grad_norm": norm}
                spent = time.monotonic() - start
                journal.write({**metrics, "tokens_per_s": metrics["tokens"] / spent, "seconds": spent})
            progress(stage.name, journal.step, len(batches), metrics)
    except KeyboardInterrupt:
        journal.save()
        raise
    model.eval()
    return journal


def passes(lengths: Sequence[int], most: int, packed: bool) -> list[tuple[list[int], float]]:
    """This rank's forward passes over a batch: which examples, and what they weigh.

    Every rank makes as many, for a sharded model's weights are gathered in step; one that has none left repeats an
    example at the weight 0.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    shares = [list(chunks(parallel.share(order, of=r), lengths, most, packed)) for r in range(parallel.size())]
    own, longest = shares[parallel.rank()], max(map(len, shares))
    idle = own[-1] if own else order[:1]
    return [(part, 1.0) for part in own] + [(idle, 0.0)] * (longest - len(own))


def _accumulate(stage: SFTStage, learner: Learner, batch: Sequence[Tokens], context: StepContext) -> dict[str, float]:
    """Gradients of one batch's loss; returns the loss, the tokens and the share of padding (and the KL if asked)."""
    lengths = [len(item.ids) for item in batch]
    learnt = sum(len(item.ids) - item.prompt for item in batch)
    total, divergence, padded = 0.0, 0.0, 0.0
    for part, weight in passes(lengths, stage.chunk_tokens, learner.packed):
        rows = [batch[i] for i in part]
        with learner.computing():
            task = partial(summed_loss, rows=rows, packed=learner.packed, most=learner.most_logits())
            cross, kl = parallel.forward(learner.model, task, learner.reference)
        loss = (cross + stage.kl_to_base * kl) / learnt * weight
        context.check_finite(learner.model, {"KL": kl, "loss": loss}, part, [row.ids for row in rows])
        accumulate(loss)
        total += loss.item()
        divergence += weight * kl.item() / learnt
        computed = [lengths[i] for i in part]
        padded += weight * (sum(computed) if learner.packed else len(part) * max(computed))
    total, divergence, padded = parallel.totals([total, divergence, padded])
    found = {"loss": total, "tokens": sum(lengths), "padding_share": 1 - sum(lengths) / padded}
    return found if learner.reference is None else {**found, "kl_to_base": divergence}


def summed_loss(model: Any, reference: Any, rows: Sequence[Tokens], packed: bool, most: int) -> tuple[Tensor, Tensor]:
    """Sums over the assistant's tokens: cross-entropy, and KL to the reference model (0 without one).

    Logits are made at those positions alone, and no more than `most` of them at a time.
    """
    device = model.get_input_embeddings().weight.device  # the vision tower is elsewhere
    ids, lengths = [row.ids for row in rows], [len(row.ids) for row in rows]
    ids_BT = flat(ids, device) if packed else pad(ids, device)
    documents = Documents.of(lengths, device) if packed else None
    learnt_BT = _learnt(rows, packed, device)
    target_M = ids_BT[:, 1:][learnt_BT]
    hidden_MD = hidden_states(model, ids_BT, documents)[:, :-1][learnt_BT]
    if reference is None:
        cross = losses.linear_cross_entropy(hidden_MD, model.lm_head.weight, target_M, most)
        return cross, cross.new_zeros(())
    with torch.no_grad():
        base_MD = parallel.forward(reference, hidden_states, ids_BT, documents)[:, :-1][learnt_BT]
        # gathered once: ranks differ in how many parts they make, and a gathering is everybody's
        base_VD = parallel.whole(reference.lm_head.weight).to(base_MD.dtype)

    def both(hidden_RD: Tensor, base_RD: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        logits_RV = F.linear(hidden_RD, model.lm_head.weight).float()
        with torch.no_grad():
            base_RV = F.linear(base_RD, base_VD).float()
        return F.cross_entropy(logits_RV, target_R, reduction="sum"), losses.kl_full(base_RV, logits_RV).sum()

    return losses.in_parts(both, max(1, most // len(model.lm_head.weight)), hidden_MD, base_MD, target_M)


def _learnt(rows: Sequence[Tokens], packed: bool, device: torch.device) -> Tensor:
    """Where the next token is the assistant's: [B, T − 1] of padded rows, [1, T − 1] of a packed one."""
    width = max(len(row.ids) for row in rows)
    found = torch.zeros(len(rows), width, dtype=torch.bool)
    for k, row in enumerate(rows):
        found[k, row.prompt : len(row.ids)] = True
    if packed:
        found = torch.cat([found[k, : len(row.ids)] for k, row in enumerate(rows)])[None]
    return found[:, 1:].to(device)
