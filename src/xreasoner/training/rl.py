"""Stage 2: GRPO with verifiable rewards on text, rollouts by the engine in this process.

One step: draw problems, roll out a group for each, judge, turn rewards into advantages, drop the groups that
teach nothing, and take one optimiser step a minibatch. The old log-probabilities are the engine's own: it samples
from the very weights that are trained, and the gap to the trainer's is logged.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from xreasoner.completion import Completion
from xreasoner.data.packing import chunks, hidden_states, pad
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.grading import judge
from xreasoner.grading.rewards import reward
from xreasoner.models.loading import Loaded, encode
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.recipe import RLStage
from xreasoner.training import losses
from xreasoner.training.common import Journal, Progress, make_optimiser, rate, stop_on_nan, update
from xreasoner.verdict import Verdict

CHUNK_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled reply with what the loss needs. prompt: its token ids."""

    prompt: tuple[int, ...]
    completion: Completion
    verdict: Verdict
    reward: float

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
    """Train in place. banned: token ids that the engine never samples, and that the trainer's softmax leaves out."""
    model = loaded.model
    reference = copy.deepcopy(model).requires_grad_(False) if stage.kl > 0 else None
    optimiser = make_optimiser(model, stage.optimiser)
    journal = Journal(out, model, optimiser, stage.checkpoint_seconds)
    journal.resume()
    while journal.step < stage.steps:
        start, step = time.monotonic(), journal.step
        problems = drawn(data, step, stage.prompts_per_step, seed)
        rollouts = roll_out(stage, loaded, engine, problems, seed, step)
        lr = rate(stage.optimiser, step, stage.steps * 1)
        learnt = improve(stage, model, reference, optimiser, rollouts, banned, lr, Random(f"{seed}/{step}"), out)
        spent = time.monotonic() - start
        tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        metrics = {**describe(stage, rollouts), **learnt, "lr": lr, "tokens_per_s": tokens / spent, "seconds": spent}
        journal.write(metrics)
        progress(stage.name, journal.step, stage.steps, metrics)
    model.eval()


def drawn(data: Sequence[Problem], step: int, count: int, seed: int) -> list[Problem]:
    """The problems of a step: the data in an order of its own in every pass."""
    found = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(data))
        order = list(range(len(data)))
        Random(f"{seed}/{epoch}").shuffle(order)
        found.append(data[order[index]])
    return found


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
            rollouts.append(Rollout(prompt, completion, verdict, reward(verdict) + stage.format_reward * well_formed))
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
    size = max(1, -(-len(groups) // stage.minibatches))
    found: list[dict[str, float]] = []
    for begin in range(0, len(groups), size):
        rows = [p * stage.group_size + k for p in groups[begin : begin + size] for k in range(stage.group_size)]
        found.append(_minibatch(stage, model, reference, rollouts, rows, advantage_B, banned, out))
        found[-1]["grad_norm"] = update(model, optimiser, lr, stage.optimiser.clip)
    names = ("loss", "entropy", "clip_low", "clip_high", "logprob_gap", "ratio_max", "grad_norm")
    if not found:
        return dict.fromkeys(names, 0.0)
    metrics = {name: sum(part[name] for part in found) / len(found) for name in names}
    return {**metrics, "ratio_max": max(part["ratio_max"] for part in found)}


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
    lengths = {i: rollouts[i].length for i in rows}
    free = {i: rollouts[i].completion.forced.count(False) for i in rows}
    longest = stage.thinking_budget + stage.answer_budget
    normaliser = {"token": sum(free.values()), "sequence": len(rows), "constant": len(rows) * longest}[
        stage.aggregation
    ]
    total = Counter[str]()
    ratio_max = 0.0
    for part in chunks(rows, [lengths.get(i, 0) for i in range(len(rollouts))], CHUNK_TOKENS):
        batch = [rollouts[i] for i in part]
        logprob_BT, entropy_BT, old_BT, mask_BT = token_logprobs(model, batch, banned, stage.temperature)
        ratio_BT = torch.where(mask_BT, (logprob_BT - old_BT).exp(), 1.0)
        advantage = advantage_B[part].to(ratio_BT.device)
        loss_BT = losses.clipped_objective(ratio_BT, advantage, stage.epsilon_low, stage.epsilon_high)
        if reference is not None:
            with torch.no_grad():
                reference_BT = token_logprobs(reference, batch, banned, stage.temperature)[0]
            loss_BT = loss_BT + stage.kl * losses.kl_k3(logprob_BT, reference_BT)
        loss = losses.aggregate(loss_BT, mask_BT, stage.aggregation, normaliser)
        stop_on_nan(loss, out, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        count = mask_BT.sum().item()
        low, high = losses.clip_shares(ratio_BT, advantage, mask_BT, stage.epsilon_low, stage.epsilon_high)
        gap = ((logprob_BT - old_BT).abs() * mask_BT).sum().item()
        total.update(
            {
                "loss": loss.item(),
                "tokens": count,
                "entropy": (entropy_BT * mask_BT).sum().item(),
                "clip_low": low * count,
                "clip_high": high * count,
                "logprob_gap": gap,
            }
        )
        ratio_max = max(ratio_max, ratio_BT.max().item())
    means = {name: total[name] / total["tokens"] for name in ("entropy", "clip_low", "clip_high", "logprob_gap")}
    return {"loss": total["loss"], **means, "ratio_max": ratio_max}


def token_logprobs(
    model: Any, batch: Sequence[Rollout], banned: Sequence[int], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The trainer's log-probabilities, entropies, the engine's log-probabilities, and the mask, each [B, T − 1].

    The mask is True at the reply's tokens that the policy chose; forced tokens and padding are out.
    """
    device = next(model.parameters()).device
    ids_BT = pad([rollout.prompt + rollout.completion.token_ids for rollout in batch], device)
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    old_BT = torch.zeros(ids_BT.shape, device=device)
    for k, rollout in enumerate(batch):
        begin, end = len(rollout.prompt), rollout.length
        mask_BT[k, begin:end] = ~torch.tensor(rollout.completion.forced, device=device)
        old_BT[k, begin:end] = torch.tensor(rollout.completion.logprobs, device=device)
    mask_BT, old_BT = mask_BT[:, 1:], old_BT[:, 1:]
    logits_MV = model.lm_head(hidden_states(model, ids_BT)[:, :-1][mask_BT]).float() / temperature
    logits_MV[:, list(banned)] = -torch.inf
    chosen_M = torch.log_softmax(logits_MV, dim=-1).gather(1, ids_BT[:, 1:][mask_BT][:, None])[:, 0]
    logprob_BT = torch.zeros(mask_BT.shape, device=device).masked_scatter(mask_BT, chosen_M)
    with torch.no_grad():
        entropy_BT = torch.zeros(mask_BT.shape, device=device).masked_scatter(mask_BT, losses.entropy(logits_MV))
    return logprob_BT, entropy_BT, old_BT, mask_BT


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
