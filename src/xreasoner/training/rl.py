"""Stage 2: GRPO with verifiable rewards on text.

One step: draw problems, roll out a group for each, judge, turn rewards into advantages, drop the groups that
teach nothing, and take one optimiser step a minibatch. The old log-probabilities are the engine's own: it samples
from the very weights that are trained, and the gap to the trainer's is logged. Engines report them at temperature 1;
rollouts at another temperature have them computed again by the trainer, before the step's first update.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from xreasoner.completion import Exit
from xreasoner.data.packing import flat, hidden_states, pad
from xreasoner.grading.grader import TIMED_OUT
from xreasoner.models.attention import Documents
from xreasoner.recipe import RLStage
from xreasoner.training import losses, parallel
from xreasoner.training.common import (
    Journal,
    Learner,
    Progress,
    accumulate,
    make_optimiser,
    rate,
    stop_on_nan,
    uninterrupted,
    update,
)
from xreasoner.training.rollouts import Rollout, Sampler
from xreasoner.training.sft import passes
from xreasoner.verdict import Outcome


def train_rl(stage: RLStage, learner: Learner, source: Sampler, out: Path, seed: int, progress: Progress) -> None:
    """Train in place.

    Ctrl-C and SIGTERM wait for an update's end; the state is then saved, and the same call goes on from there.
    """
    optimiser = make_optimiser(learner.model, stage.optimiser)
    journal = Journal(out, learner.model, optimiser, stage)
    journal.kept = {"drawn": 0, "begun": None}
    journal.resume()
    journal.settle = lambda: journal.kept.update(begun=source.begun())
    source.updated(journal.step)
    try:
        while journal.step < stage.steps:
            # several ranks stop together, after a step; one stops at once where it rolls out
            with uninterrupted() if parallel.size() > 1 else nullcontext():
                metrics = _step(stage, learner, optimiser, journal, source, out, seed)
            progress(stage.name, journal.step, stage.steps, metrics)
    except KeyboardInterrupt:
        journal.settle = lambda: journal.kept.update(begun=None)
        journal.save()
        raise
    finally:
        source.close()


def _step(
    stage: RLStage,
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    journal: Journal,
    source: Sampler,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Roll out, learn, write down, and give the engine the new weights."""
    start, step = time.monotonic(), journal.step
    rollouts, drawn = source.take(step, journal.kept["drawn"], journal.kept["begun"])
    rolled = time.monotonic() - start
    lr = rate(stage.optimiser, step, stage.steps)
    with uninterrupted() if parallel.size() == 1 else nullcontext():
        if step + 1 < stage.steps:
            source.ahead(step + 1, drawn)
        learner.model.train()
        learnt = improve(stage, learner, optimiser, rollouts, source.banned, lr, Random(f"{seed}/{step}"), out)
        learner.model.eval()
        metrics = {**describe(stage, rollouts), **learnt, "lr": lr, "rollout_seconds": rolled}
        metrics["staleness"] = step - min(rollout.completion.version for rollout in rollouts)
        spent = time.monotonic() - start
        tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        journal.kept["drawn"], journal.kept["begun"] = drawn, None
        journal.write({**metrics, "tokens_per_s": tokens / spent, "seconds": spent})
    source.updated(step + 1)
    return metrics


def improve(
    stage: RLStage,
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    banned: Sequence[int],
    lr: float,
    rng: Random,
    out: Path,
) -> dict[str, float]:
    """The optimiser steps on one step's rollouts, a group never parted; returns the loss's metrics.

    No metric where every group was dropped: a 0 would read as an entropy that collapsed.
    """
    reward_B = torch.tensor([rollout.reward for rollout in rollouts])
    advantage_B = losses.group_advantages(reward_B, stage.group_size, stage.normalise_std)
    idle_P = losses.zero_variance(reward_B, stage.group_size)
    groups = [p for p in range(len(idle_P)) if not (stage.drop_zero_variance and idle_P[p])]
    rng.shuffle(groups)
    kept = [p * stage.group_size + k for p in groups for k in range(stage.group_size)]
    scorer = Scorer(learner, banned, stage.temperature, stage.group_size, stage.chunk_tokens)
    if stage.temperature != 1 or stage.correction != "none":
        rollouts = reread(scorer, rollouts, kept)
    size = max(1, -(-len(groups) // stage.minibatches)) * stage.group_size
    found: list[dict[str, float]] = []
    for begin in range(0, len(kept), size):
        rows = kept[begin : begin + size]
        found.append(_minibatch(stage, scorer, rollouts, rows, advantage_B, out))
        found[-1]["grad_norm"] = update(optimiser, lr, stage.optimiser.clip, out, [rollouts[i] for i in rows])
    if not found:
        return {}
    metrics = {name: sum(part[name] for part in found) / len(found) for name in LEARNT}
    # the gap is the first minibatch's: later ones would count the policy's own movement
    gap, largest = found[0]["logprob_gap"], max(part["ratio_max"] for part in found)
    return {**metrics, "logprob_gap": gap, "ratio_max": largest}


LEARNT = ("loss", "entropy", "kl", "clip_low", "clip_high", "logprob_gap", "ratio", "ratio_max", "grad_norm")
"""What `improve` measures. ratio and ratio_max: the mean and the largest of the ratio, before clipping."""


@torch.no_grad()
def reread(scorer: Scorer, rollouts: Sequence[Rollout], rows: Sequence[int]) -> list[Rollout]:
    """The rollouts, those of the rows (of whole groups) with the old log-probabilities computed by the trainer, at the
    temperature of the sampling. Groups that are dropped are not worth a pass.
    """
    found: dict[int, Rollout] = {}
    for part, weight in grouped(rows, rollouts, scorer):
        logprob_BR = scorer([rollouts[i] for i in part]).logprob
        for i, logprob_R in zip(part, logprob_BR.tolist(), strict=True):
            if weight:
                found[i] = replace(rollouts[i], old=tuple(logprob_R[: len(rollouts[i].completion.token_ids)]))
    for other in parallel.gathered([found]):
        found |= other
    return [found.get(i, rollout) for i, rollout in enumerate(rollouts)]


def grouped(rows: Sequence[int], rollouts: Sequence[Rollout], scorer: Scorer) -> list[tuple[list[int], float]]:
    """This rank's passes over the rows, of whole groups in order of length, and their weights (`sft.passes`)."""
    size = scorer.group_size
    groups = [list(rows[k : k + size]) for k in range(0, len(rows), size)]
    tokens = [scorer.tokens([rollouts[i] for i in group]) for group in groups]
    return [
        ([i for k in part for i in groups[k]], weight)
        for part, weight in passes(tokens, scorer.chunk_tokens, scorer.learner.packed)
    ]


def _minibatch(
    stage: RLStage,
    scorer: Scorer,
    rollouts: Sequence[Rollout],
    rows: Sequence[int],
    advantage_B: Tensor,
    out: Path,
) -> dict[str, float]:
    """Accumulate one minibatch's gradient; returns its metrics."""
    objective = losses.Objective(
        stage.epsilon_low, stage.epsilon_high, stage.ratio, stage.aggregation, stage.kl, stage.kl_estimator
    )
    longest, reference = stage.thinking_budget + stage.answer_budget, scorer.learner.reference
    mask_BR = torch.nn.utils.rnn.pad_sequence([torch.tensor(rollouts[i].free) for i in rows], batch_first=True)
    divisor = losses.normaliser(mask_BR, stage.aggregation, longest)
    total = Counter[str]()
    ratio_max = 0.0
    for part, weight in grouped(rows, rollouts, scorer):
        batch = [rollouts[i] for i in part]
        advantage = advantage_B[part].to(scorer.device)
        scored = scorer(batch)
        reference_BR = None if reference is None else scorer.of(reference, batch)
        loss, found = _part(stage, objective, batch, scored, advantage, divisor, reference_BR)
        loss = loss * weight
        stop_on_nan(loss.item(), "loss", out, batch)
        accumulate(loss)
        ratio_max = max(ratio_max, weight * found.pop("ratio_max"))
        total.update({name: weight * value for name, value in {"loss": loss.item(), **found}.items()})
    total = Counter(dict(zip(total, parallel.totals(list(total.values())), strict=True)))
    count = max(1.0, total["tokens"])
    means = {name: total[name] / count for name in SUMMED}
    return {"loss": total["loss"], **means, "ratio_max": max(parallel.gathered([ratio_max]))}


SUMMED = ("entropy", "kl", "clip_low", "clip_high", "logprob_gap", "ratio")


def _part(
    stage: RLStage,
    objective: losses.Objective,
    batch: Sequence[Rollout],
    scored: Scored,
    advantage_B: Tensor,
    divisor: float,
    reference_BR: Tensor | None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some of a minibatch's rows, and sums over their tokens of what is measured."""
    mask_BR = scored.mask
    old_BR = spread([rollout.old for rollout in batch], mask_BR)
    engine_BR = spread([rollout.completion.logprobs for rollout in batch], mask_BR)
    weight_BR = None
    if stage.correction != "none":
        weight_BR = losses.correction(old_BR, engine_BR, mask_BR, stage.correction, stage.correction_cap)
    loss = losses.policy_loss(objective, scored.logprob, old_BR, advantage_B, mask_BR, divisor, reference_BR, weight_BR)
    with torch.no_grad():
        ratio_BR = losses.log_ratio(scored.logprob, old_BR, mask_BR, stage.ratio).exp()
        low, high = losses.clip_shares(ratio_BR, advantage_B, mask_BR, stage.epsilon_low, stage.epsilon_high)
        count = mask_BR.sum().item()
        kl = 0.0
        if reference_BR is not None:
            kl = (losses.kl(scored.logprob, reference_BR, stage.kl_estimator) * mask_BR).sum().item()
    return loss, {
        "tokens": count,
        "entropy": scored.entropy.sum().item(),
        "kl": kl,
        "clip_low": low * count,
        "clip_high": high * count,
        "logprob_gap": (scored.plain - engine_BR).abs().sum().item(),
        "ratio": (ratio_BR * mask_BR).sum().item(),
        "ratio_max": (ratio_BR * mask_BR).max().item(),
    }


@dataclass(frozen=True, slots=True)
class Scored:
    """The trainer's view of a batch, each [B, R] over the tokens of the replies, and 0 where the mask is False.

    logprob: of the sampled token at the sampling's temperature. plain: the same at temperature 1, detached.
    entropy: in nats, at the sampling's temperature, detached. mask: True at the reply's tokens that are learnt from;
    forced tokens and padding are out.
    """

    logprob: Tensor
    plain: Tensor
    entropy: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Scorer:
    """Log-probabilities of the replies' tokens, the banned ones left out of the softmax as the engine does.

    group_size: so many neighbours in a batch have one prompt, which is computed once for them where batches are padded.
    """

    learner: Learner
    banned: Sequence[int]
    temperature: float
    group_size: int
    chunk_tokens: int

    @property
    def device(self) -> torch.device:
        return self.learner.loaded.device

    def tokens(self, group: Sequence[Rollout]) -> int:
        """What a group costs in tokens, padding included."""
        replies = [len(rollout.completion.token_ids) for rollout in group]
        if self.learner.packed:
            return sum(replies) + len(group) * len(group[0].prompt)
        return len(group[0].prompt) + len(group) * max(replies)

    def __call__(self, batch: Sequence[Rollout]) -> Scored:
        ids_BR = pad([rollout.completion.token_ids for rollout in batch], self.device)
        mask_BR = torch.zeros_like(ids_BR, dtype=torch.bool)
        for k, rollout in enumerate(batch):
            mask_BR[k, : len(rollout.free)] = torch.tensor(rollout.free, device=self.device)
        with self.learner.computing():
            found = parallel.forward(self.learner.model, self._score, batch, ids_BR, mask_BR)
        logprob_BR, plain_BR, entropy_BR = found
        return Scored(logprob_BR, plain_BR, entropy_BR, mask_BR)

    @torch.no_grad()
    def of(self, model: Any, batch: Sequence[Rollout]) -> Tensor:
        """The log-probabilities [B, R] under another model."""
        with self.learner.computing():
            found: Tensor = self.__class__(
                replace(self.learner, loaded=replace(self.learner.loaded, model=model)),
                self.banned,
                self.temperature,
                self.group_size,
                self.chunk_tokens,
            )(batch).logprob
        return found

    def _score(
        self, model: Any, batch: Sequence[Rollout], ids_BR: Tensor, mask_BR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.learner.packed:
            free_N = torch.tensor([free for rollout in batch for free in rollout.free], device=ids_BR.device)
            hidden_MD = packed_states(model, batch, ids_BR.device)[free_N]
        else:
            prompts = [rollout.prompt for rollout in batch[:: self.group_size]]
            lengths = [len(rollout.completion.token_ids) for rollout in batch]
            hidden_MD = reply_states(model, prompts, ids_BR, lengths, self.group_size)[mask_BR]
        weight_VD, chosen_M = model.lm_head.weight, ids_BR[mask_BR]
        rows = max(1, self.learner.most_logits() // len(weight_VD))
        if len(hidden_MD) <= rows:
            found = [self._tokens(weight_VD, hidden_MD, chosen_M)]
        else:
            found = [
                checkpoint(self._tokens, weight_VD, hidden_RD, chosen_R, use_reentrant=False)
                for hidden_RD, chosen_R in zip(torch.split(hidden_MD, rows), torch.split(chosen_M, rows), strict=True)
            ]
        values = [torch.cat(part) if len(part) > 1 else part[0] for part in zip(*found, strict=True)]
        return tuple(  # type: ignore[return-value]
            torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, value) for value in values
        )

    def _tokens(self, weight_VD: Tensor, hidden_MD: Tensor, chosen_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of M tokens: log-probability, the same at temperature 1, entropy."""
        logits_MV = F.linear(hidden_MD, weight_VD).float()
        logits_MV[:, list(self.banned)] = -torch.inf
        heated_MV = logits_MV if self.temperature == 1 else logits_MV / self.temperature
        chosen_M1 = chosen_M[:, None]
        logprob_MV = torch.log_softmax(heated_MV, dim=-1)
        logprob_M = logprob_MV.gather(1, chosen_M1)[:, 0]
        with torch.no_grad():
            plain_M = logprob_M
            if self.temperature != 1:
                plain_M = torch.log_softmax(logits_MV, dim=-1).gather(1, chosen_M1)[:, 0]
            entropy_M = losses.entropy(logprob_MV)
        return logprob_M, plain_M.detach(), entropy_M


def packed_states(model: Any, batch: Sequence[Rollout], device: torch.device) -> Tensor:
    """The hidden states [N, D] that predict each of all replies' N tokens, reply after reply."""
    texts = [rollout.prompt + rollout.completion.token_ids for rollout in batch]
    hidden_1TD = hidden_states(model, flat(texts, device), Documents.of([len(text) for text in texts], device))
    replies_T = torch.cat(
        [
            torch.arange(len(text)).ge(len(rollout.prompt) - 1) & torch.arange(len(text)).lt(len(text) - 1)
            for text, rollout in zip(texts, batch, strict=True)
        ]
    )
    found: Tensor = hidden_1TD[0, replies_T.to(device)]
    return found


def reply_states(
    model: Any, prompts: Sequence[Sequence[int]], ids_BR: Tensor, lengths: Sequence[int], share: int
) -> Tensor:
    """The hidden states [B, R, D] that predict each token of the replies; prompt k is that of `share` replies.

    A prompt's keys and values are computed once and then stand before each of its replies, gradients included. The
    replies are computed in `PARTS` parts by length (their tokens, the forced ones too), so that little is padding.
    """
    language, device = model.model.language_model, ids_BR.device
    width, most = max(map(len, prompts)), ids_BR.shape[1] - 1
    ids_PT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    pad_PT = torch.tensor([[True] * (width - len(p)) + [False] * len(p) for p in prompts], device=device)
    later_TT = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
    hidden_PTT = (later_TT | pad_PT[:, None]) & ~torch.eye(width, dtype=torch.bool, device=device)
    position_PT = ((~pad_PT).cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache()
    prompt_PTD = _states(language, ids_PT, position_PT, hidden_PTT, cache)
    order = torch.tensor(sorted(range(len(lengths)), key=lambda k: lengths[k]), device=device)
    found = []
    for rows_b in order.tensor_split(min(PARTS, share)):
        # one step at least, so that every rank makes as many calls
        prompt_b, steps = rows_b // share, max(1, max(lengths[k] for k in rows_b.tolist()) - 1)
        before = DynamicCache([(_rows(layer.keys, prompt_b), _rows(layer.values, prompt_b)) for layer in cache.layers])
        later_SS = torch.ones(steps, steps, dtype=torch.bool, device=device).triu(1)
        later_bSS = later_SS.expand(len(rows_b), -1, -1)
        hidden_bSW = torch.cat([pad_PT[prompt_b, None].expand(-1, steps, -1), later_bSS], dim=2)
        position_bS = position_PT[prompt_b, -1:] + torch.arange(1, steps + 1, device=device)
        reply_bSD = _states(language, ids_BR[rows_b, :steps], position_bS, hidden_bSW, before)
        states_bTD = torch.cat([_rows(prompt_PTD[:, -1:], prompt_b), reply_bSD], dim=1)
        found.append(F.pad(states_bTD, (0, 0, 0, most - steps)))
    return _rows(torch.cat(found), order.argsort())


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows], whose gradient several threads would sum by atomic adds: in another order in every run."""
    return tensor.index_select(0, rows)


PARTS = 4
"""Forward passes over a batch's replies. The number never depends on their lengths: ranks gather weights in step."""


def _states(language: Any, ids_BT: Tensor, position_BT: Tensor, hidden_BTS: Tensor, cache: DynamicCache) -> Tensor:
    """Hidden states [B, T, D] of tokens after those of the cache, which takes their keys; hidden: what none may see."""
    mask_BTS = torch.zeros(hidden_BTS.shape, dtype=language.dtype, device=ids_BT.device)
    found: Tensor = language(
        input_ids=ids_BT,
        position_ids=position_BT.expand(3, -1, -1),
        attention_mask=mask_BTS.masked_fill_(hidden_BTS, torch.finfo(language.dtype).min)[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return found


def spread(values: Sequence[Sequence[float]], mask_BR: Tensor) -> Tensor:
    """One value for each token of each reply, put where `score` has that token; 0 where the mask is False."""
    found_BR = torch.zeros(mask_BR.shape)
    for k, row in enumerate(values):
        found_BR[k, : len(row)] = torch.tensor(row)
    return found_BR.to(mask_BR.device) * mask_BR


def describe(stage: RLStage, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What one step's rollouts looked like."""
    n = len(rollouts)
    exits = Counter(rollout.completion.exit for rollout in rollouts)
    outcomes = Counter(rollout.verdict.outcome for rollout in rollouts)
    lengths: dict[str, list[int]] = {}
    for rollout in rollouts:
        lengths.setdefault(rollout.completion.exit, []).append(len(rollout.completion.token_ids))
    right_PG = torch.tensor([rollout.verdict.correct for rollout in rollouts]).view(-1, stage.group_size)
    reward_B = torch.tensor([rollout.reward for rollout in rollouts])
    return {
        "reward": reward_B.mean().item(),
        "pass_at_k": right_PG.any(dim=1).float().mean().item(),
        "zero_variance": losses.zero_variance(reward_B, stage.group_size).float().mean().item(),
        "groups": n // stage.group_size,
        "length": sum(map(sum, lengths.values())) / n,
        "length_by_exit": {name: sum(found) / len(found) for name, found in lengths.items()},
        "exits": {name: exits[name] / n for name in get_args(Exit)},
        "outcomes": {name: outcomes[name] / n for name in get_args(Outcome)},
        "grader_timeouts": sum(rollout.verdict.note == TIMED_OUT for rollout in rollouts) / n,
    }
