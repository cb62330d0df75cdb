"""Stage 2: GRPO with verifiable rewards on text, rollouts by the engine in this process.

One step: draw problems, roll out a group for each, judge, turn rewards into advantages, drop the groups that
teach nothing, and take one optimiser step a minibatch. The old log-probabilities are the engine's own: it samples
from the very weights that are trained, and the gap to the trainer's is logged. Engines report them at temperature 1;
rollouts at another temperature have them computed again by the trainer, before the step's first update.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from xreasoner.completion import Completion
from xreasoner.data.packing import chunks, pad
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.grading import judge
from xreasoner.grading.rewards import reward
from xreasoner.models.loading import Loaded, encode
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.recipe import RLStage
from xreasoner.training import losses
from xreasoner.training.common import Journal, Progress, make_optimiser, rate, stop_on_nan, uninterrupted, update
from xreasoner.verdict import Verdict

CHUNK_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled reply with what the loss needs.

    prompt: its token ids. old: the sampling policy's log-probability of each token of the reply.
    """

    prompt: tuple[int, ...]
    completion: Completion
    verdict: Verdict
    reward: float
    old: tuple[float, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion.token_ids)


def train_rl(
    stage: RLStage,
    loaded: Loaded,
    engine: Engine,
    banned: Sequence[int],
    data: Sequence[Problem],
    out: Path,
    seed: int,
    progress: Progress,
) -> None:
    """Train in place. banned: token ids that the engine never samples, and that the trainer's softmax leaves out.

    Ctrl-C and SIGTERM wait for an update's end; the state is then saved, and the same call goes on from there.
    """
    model = loaded.model
    reference = copy.deepcopy(model).requires_grad_(False) if stage.kl > 0 else None
    optimiser = make_optimiser(model, stage.optimiser)
    journal = Journal(out, model, optimiser, stage.checkpoint_seconds)
    journal.resume()
    try:
        while journal.step < stage.steps:
            start, step = time.monotonic(), journal.step
            problems = drawn(data, step, stage.prompts_per_step, seed)
            rollouts = roll_out(stage, loaded, engine, problems, seed, step)
            lr = rate(stage.optimiser, step, stage.steps)
            with uninterrupted():
                rng = Random(f"{seed}/{step}")
                learnt = improve(stage, model, reference, optimiser, rollouts, banned, lr, rng, out)
                metrics = {**describe(stage, rollouts), **learnt, "lr": lr}
                spent = time.monotonic() - start
                tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
                journal.write({**metrics, "tokens_per_s": tokens / spent, "seconds": spent})
            progress(stage.name, journal.step, stage.steps, metrics)
    except KeyboardInterrupt:
        journal.save()
        raise
    model.eval()


def drawn(data: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of a step: the data in an order of its own in every pass."""
    found = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(data))
        found.append(data[_order(len(data), seed, epoch)[index]])
    return found


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def roll_out(
    stage: RLStage, loaded: Loaded, engine: Engine, problems: Sequence[Problem], seed: int, step: int
) -> list[Rollout]:
    """A group of judged replies for each problem, group by group."""
    requests = [
        Request(
            chat_messages(problem, stage.prompt),
            n=stage.group_size,
            sampling=Sampling(
                temperature=stage.temperature,
                thinking_budget=stage.thinking_budget,
                answer_budget=stage.answer_budget,
                exit_text=stage.exit_text,
                seed=(seed * 1_000_003 + step) * 10_007 + k,
                logprobs=True,
            ),
        )
        for k, problem in enumerate(problems)
    ]
    rollouts = []
    for problem, request, group in zip(problems, requests, engine.generate(requests), strict=True):
        prompt = tuple(encode(loaded, request.messages).input_ids.tolist())
        for completion in group:
            verdict = judge(problem, completion.text, completion.exit)
            well_formed = completion.exit == "natural" and bool(completion.thought) and bool(completion.answer)
            worth = reward(verdict) + stage.format_reward * well_formed
            rollouts.append(Rollout(prompt, completion, verdict, worth, completion.logprobs))
    return rollouts


def improve(
    stage: RLStage,
    model: Any,
    reference: Any,
    optimiser: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    banned: Sequence[int],
    lr: float,
    rng: Random,
    out: Path,
) -> dict[str, float]:
    """The optimiser steps on one step's rollouts, a group never parted; returns the loss's metrics."""
    reward_B = torch.tensor([rollout.reward for rollout in rollouts])
    advantage_B = losses.group_advantages(reward_B, stage.group_size, stage.normalise_std)
    idle_P = losses.zero_variance(reward_B, stage.group_size)
    groups = [p for p in range(len(idle_P)) if not (stage.drop_zero_variance and idle_P[p])]
    rng.shuffle(groups)
    if stage.temperature != 1:
        rollouts = reread(stage, model, rollouts, banned)
    size = max(1, -(-len(groups) // stage.minibatches))
    found: list[dict[str, float]] = []
    for begin in range(0, len(groups), size):
        rows = [p * stage.group_size + k for p in groups[begin : begin + size] for k in range(stage.group_size)]
        found.append(_minibatch(stage, model, reference, rollouts, rows, advantage_B, banned, out))
        found[-1]["grad_norm"] = update(optimiser, lr, stage.optimiser.clip, out, [rollouts[i] for i in rows])
    names = ("loss", "entropy", "clip_low", "clip_high", "logprob_gap", "ratio_max", "grad_norm")
    if not found:
        return dict.fromkeys(names, 0.0)
    metrics = {name: sum(part[name] for part in found) / len(found) for name in names}
    # the gap is the first minibatch's: later ones would count the policy's own movement
    gap, largest = found[0]["logprob_gap"], max(part["ratio_max"] for part in found)
    return {**metrics, "logprob_gap": gap, "ratio_max": largest}


@torch.no_grad()
def reread(stage: RLStage, model: Any, rollouts: Sequence[Rollout], banned: Sequence[int]) -> list[Rollout]:
    """The rollouts with the old log-probabilities computed by the trainer, at the temperature of the sampling."""
    found = list(rollouts)
    for part in grouped(range(len(rollouts)), rollouts, stage.group_size):
        logprob_BR = score(model, [rollouts[i] for i in part], banned, stage.temperature, stage.group_size).logprob
        for i, logprob_R in zip(part, logprob_BR.tolist(), strict=True):
            found[i] = replace(found[i], old=tuple(logprob_R[: len(found[i].completion.token_ids)]))
    return found


def grouped(rows: Sequence[int], rollouts: Sequence[Rollout], size: int) -> Iterator[list[int]]:
    """Parts of the rows of at most `CHUNK_TOKENS` padded tokens; whole groups, in order of length."""
    groups = [list(rows[k : k + size]) for k in range(0, len(rows), size)]
    tokens = [
        len(rollouts[group[0]].prompt) + size * max(len(rollouts[i].completion.token_ids) for i in group)
        for group in groups
    ]
    for part in chunks(range(len(groups)), tokens, CHUNK_TOKENS):
        yield [i for k in part for i in groups[k]]


def _minibatch(
    stage: RLStage,
    model: Any,
    reference: Any,
    rollouts: Sequence[Rollout],
    rows: Sequence[int],
    advantage_B: Tensor,
    banned: Sequence[int],
    out: Path,
) -> dict[str, float]:
    """Accumulate one minibatch's gradient; returns its metrics."""
    free = {i: rollouts[i].completion.forced.count(False) for i in rows}
    longest = stage.thinking_budget + stage.answer_budget
    normaliser = {"token": sum(free.values()), "sequence": len(rows), "constant": len(rows) * longest}[
        stage.aggregation
    ]
    total = Counter[str]()
    ratio_max = 0.0
    for part in grouped(rows, rollouts, stage.group_size):
        batch = [rollouts[i] for i in part]
        scored = score(model, batch, banned, stage.temperature, stage.group_size)
        mask_BR = scored.mask
        old_BR = spread([rollout.old for rollout in batch], mask_BR)
        ratio_BR = (scored.logprob - old_BR).exp()
        advantage = advantage_B[part].to(ratio_BR.device)
        loss_BR = losses.clipped_objective(ratio_BR, advantage, stage.epsilon_low, stage.epsilon_high)
        if reference is not None:
            with torch.no_grad():
                reference_BR = score(reference, batch, banned, stage.temperature, stage.group_size).logprob
            loss_BR = loss_BR + stage.kl * losses.kl_k3(scored.logprob, reference_BR)
        loss = losses.aggregate(loss_BR, mask_BR, stage.aggregation, normaliser)
        stop_on_nan(loss.item(), "loss", out, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        count = mask_BR.sum().item()
        low, high = losses.clip_shares(ratio_BR, advantage, mask_BR, stage.epsilon_low, stage.epsilon_high)
        engine_BR = spread([rollout.completion.logprobs for rollout in batch], mask_BR)
        total.update(
            {
                "loss": loss.item(),
                "tokens": count,
                "entropy": scored.entropy.sum().item(),
                "clip_low": low * count,
                "clip_high": high * count,
                "logprob_gap": (scored.plain - engine_BR).abs().sum().item(),
            }
        )
        ratio_max = max(ratio_max, ratio_BR.max().item())
    means = {name: total[name] / total["tokens"] for name in ("entropy", "clip_low", "clip_high", "logprob_gap")}
    return {"loss": total["loss"], **means, "ratio_max": ratio_max}


@dataclass(frozen=True, slots=True)
class Scored:
    """The trainer's view of a batch, each [B, R] over the tokens of the replies, and 0 where the mask is False.

    logprob: of the sampled token at the sampling's temperature. plain: the same at temperature 1, detached.
    entropy: in nats, at the sampling's temperature, detached. mask: True at the reply's tokens that the policy
    chose; forced tokens and padding are out.
    """

    logprob: Tensor
    plain: Tensor
    entropy: Tensor
    mask: Tensor


def score(model: Any, batch: Sequence[Rollout], banned: Sequence[int], temperature: float, share: int = 1) -> Scored:
    """Log-probabilities of the replies' tokens, the banned ones left out of the softmax as the engine does.

    share: so many neighbours in the batch have one prompt, which is computed once for them.
    """
    device = next(model.parameters()).device
    ids_BR = pad([rollout.completion.token_ids for rollout in batch], device)
    mask_BR = torch.zeros_like(ids_BR, dtype=torch.bool)
    for k, rollout in enumerate(batch):
        mask_BR[k, : len(rollout.completion.token_ids)] = ~torch.tensor(rollout.completion.forced, device=device)
    hidden_BRD = reply_states(model, [rollout.prompt for rollout in batch[::share]], ids_BR, share)
    logits_MV = model.lm_head(hidden_BRD[mask_BR]).float()
    logits_MV[:, list(banned)] = -torch.inf
    chosen_M1 = ids_BR[mask_BR][:, None]
    heated_MV = logits_MV if temperature == 1 else logits_MV / temperature

    def placed(values_M: Tensor) -> Tensor:
        return torch.zeros(mask_BR.shape, device=device).masked_scatter(mask_BR, values_M)

    logprob_M = torch.log_softmax(heated_MV, dim=-1).gather(1, chosen_M1)[:, 0]
    with torch.no_grad():
        plain_M = logprob_M if temperature == 1 else torch.log_softmax(logits_MV, dim=-1).gather(1, chosen_M1)[:, 0]
        entropy_M = losses.entropy(heated_MV)
    return Scored(placed(logprob_M), placed(plain_M.detach()), placed(entropy_M), mask_BR)


def reply_states(model: Any, prompts: Sequence[Sequence[int]], ids_BR: Tensor, share: int) -> Tensor:
    """The hidden states [B, R, D] that predict each token of the replies; prompt k is that of `share` replies.

    A prompt's keys and values are computed once and then stand before each of its replies, gradients included.
    """
    language, device = model.model.language_model, ids_BR.device
    width, replies = max(map(len, prompts)), ids_BR.shape[1]
    ids_PT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    pad_PT = torch.tensor([[True] * (width - len(p)) + [False] * len(p) for p in prompts], device=device)
    lowest = torch.finfo(language.dtype).min
    later_TT = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
    hidden_PTT = (later_TT | pad_PT[:, None]) & ~torch.eye(width, dtype=torch.bool, device=device)
    position_PT = ((~pad_PT).cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache()
    prompt_PTD = language(
        input_ids=ids_PT,
        position_ids=position_PT.expand(3, -1, -1),
        attention_mask=torch.zeros(hidden_PTT.shape, dtype=language.dtype, device=device).masked_fill_(
            hidden_PTT, lowest
        )[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    last_B1D: Tensor = prompt_PTD[:, -1:].repeat_interleave(share, dim=0)
    if replies == 1:
        return last_B1D
    cache.batch_repeat_interleave(share)
    later_SS = torch.ones(replies - 1, replies - 1, dtype=torch.bool, device=device).triu(1)
    before_BSW = pad_PT.repeat_interleave(share, dim=0)[:, None].expand(-1, replies - 1, -1)
    hidden_BSW = torch.cat([before_BSW, later_SS.expand(len(ids_BR), -1, -1)], dim=2)
    position_BS = (position_PT[:, -1:] + torch.arange(1, replies, device=device)).repeat_interleave(share, dim=0)
    reply_BSD = language(
        input_ids=ids_BR[:, :-1],
        position_ids=position_BS.expand(3, -1, -1),
        attention_mask=torch.zeros(hidden_BSW.shape, dtype=language.dtype, device=device).masked_fill_(
            hidden_BSW, lowest
        )[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([last_B1D, reply_BSD], dim=1)


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
    lengths: dict[str, list[int]] = {}
    for rollout in rollouts:
        lengths.setdefault(rollout.completion.exit, []).append(len(rollout.completion.token_ids))
    right_PG = torch.tensor([rollout.verdict.correct for rollout in rollouts]).view(-1, stage.group_size)
    reward_B = torch.tensor([rollout.reward for rollout in rollouts])
    return {
        "reward": reward_B.mean().item(),
        "pass_at_k": right_PG.any(dim=1).float().mean().item(),
        "zero_variance": losses.zero_variance(reward_B, stage.group_size).float().mean().item(),
        "length": sum(map(sum, lengths.values())) / n,
        "length_by_exit": {name: sum(found) / len(found) for name, found in lengths.items()},
        "exits": {name: exits[name] / n for name in ("natural", "forced", "truncated")},
        "outcomes": {name: c / n for name, c in Counter(r.verdict.outcome for r in rollouts).items()},
    }
