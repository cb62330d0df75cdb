"""Stage 2: GRPO with verifiable rewards on text.

One step: draw problems, roll out a group for each, judge, turn rewards into advantages, skip the passes over groups
that teach nothing, and take one optimizer step a minibatch. The old log-probabilities are the engine's where it
computes as the trainer does (`RLStage.recomputes_old_logprobs`); else the trainer computes them before the step's first
update. The gap between engine and trainer is logged either way.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
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
from xreasoner.errors import TrainingError
from xreasoner.grading.grader import TIMED_OUT
from xreasoner.models.attention import Documents
from xreasoner.recipe import RLStage
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
from xreasoner.training.rollouts import Rollout, Sampler
from xreasoner.training.sft import passes
from xreasoner.verdict import Outcome


def train_rl(stage: RLStage, learner: Learner, source: Sampler, out: Path, seed: int, progress: Progress) -> Journal:
    """Train in place.

    Ctrl-C and SIGTERM wait for an update's end; the state is then saved, and the same call resumes from there. Returns
    the state, which can still be saved where the export fails.

    Raises:
        TrainingError: no group had both right and wrong replies for `max_idle_steps` steps; the state is saved.
    """
    optimiser = make_optimiser(learner.model, stage.optimiser)
    journal = Journal(out, learner.model, optimiser, stage)
    journal.kept = {"drawn": 0, "begun": None, "idle": 0}
    journal.resume()
    journal.settle = lambda: journal.kept.update(begun=source.begun())
    source.updated(journal.step)
    try:
        while journal.step < stage.steps:
            # several ranks stop together, after a step; one stops at once where it rolls out
            with uninterrupted() if parallel.size() > 1 else nullcontext():
                metrics = _step(stage, learner, optimiser, journal, source, seed)
            progress(stage.name, journal.step, stage.steps, metrics)
            report_idle_step(stage, journal, metrics)
    except KeyboardInterrupt:
        journal.settle = lambda: journal.kept.update(begun=None)
        journal.save()
        raise
    finally:
        source.close()
    journal.settle = lambda: None
    return journal


def report_idle_step(stage: RLStage, journal: Journal, metrics: Mapping[str, Any]) -> None:
    """Warn at the first of several steps in a row that could not learn, and stop at the last one allowed.

    Raises:
        TrainingError: `max_idle_steps` in a row; the state is saved first, so that a resume may allow more.
    """
    idle = journal.kept["idle"]
    if idle == 0:
        return
    cause = idle_cause(stage, metrics)
    if idle >= stage.max_idle_steps:
        journal.save()
        raise TrainingError(
            f"stage {stage.name}: no group had both right and wrong replies in the last {idle} steps, so RL cannot "
            f"learn; {cause}. Step {journal.step} is saved; to continue anyway, resume with --set "
            f"stages.{stage.name}.max_idle_steps={stage.steps}"
        )
    if idle == 1 and parallel.rank() == 0:
        warnings.warn(
            f"stage {stage.name}, step {journal.step}: no group has both right and wrong replies, so this step teaches "
            f"nothing; {cause}. The run stops after {stage.max_idle_steps} such steps in a row (max_idle_steps)",
            stacklevel=2,
        )


def idle_cause(stage: RLStage, metrics: Mapping[str, Any]) -> str:
    """What the replies of a step that taught nothing have in common, and what to change."""
    outcomes, exits = metrics["outcomes"], metrics["exits"]
    if outcomes["correct"] == 1:
        if stage.forced == "zero" and exits["forced"] > 0:
            return "replies are right after a forced exit alone: raise thinking_budget, or set forced: keep"
        return "every reply is right: the problems are too easy, or the stage has converged"
    if exits["truncated"] > 0.5:
        return f"{exits['truncated']:.0%} of the replies are truncated: raise thinking_budget and answer_budget"
    if outcomes["unparsed"] > 0.5:
        return f"{outcomes['unparsed']:.0%} of the replies hold no answer: run an SFT stage first, or check the prompt"
    if outcomes["error"] > 0.5:
        return f"{outcomes['error']:.0%} of the replies cannot be graded: check the gold answers and answer_type"
    if outcomes["correct"] == 0:
        return "every reply is wrong: check the gold answers, take easier problems, or raise group_size"
    return "each group is all right or all wrong: raise temperature or group_size"


def _step(
    stage: RLStage,
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    journal: Journal,
    source: Sampler,
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
        rng, context = Random(f"{seed}/{step}"), journal.context()
        learnt = improve(stage, learner, optimiser, rollouts, source.banned, lr, rng, context)
        learner.model.eval()
        metrics = {**describe(stage, rollouts), **learnt, "lr": lr, "rollout_seconds": rolled}
        metrics["staleness"] = step - min(rollout.completion.version for rollout in rollouts)
        spent = time.monotonic() - start
        tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        idle = bool(idle_groups(stage, rollouts).all())
        journal.kept.update(drawn=drawn, begun=None, idle=journal.kept["idle"] + 1 if idle else 0)
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
    context: StepContext,
) -> dict[str, float]:
    """The optimizer steps on one step's rollouts, a group never split; returns the loss's metrics.

    No metric where no group taught anything: a 0 would read as an entropy that collapsed.
    """
    reward_B = torch.tensor([rollout.reward for rollout in rollouts])
    advantage_B = losses.group_advantages(reward_B, stage.group_size, stage.normalise_std)
    idle_P = idle_groups(stage, rollouts)
    advantage_B[idle_P.repeat_interleave(stage.group_size)] = 0.0
    groups = step_groups(stage, idle_P)
    rng.shuffle(groups)
    size = -(-len(groups) // stage.minibatches)
    minibatches = [groups[begin : begin + size] for begin in range(0, len(groups), size)]
    # without an advantage only a KL has a gradient; a skipped pass changes nothing but time
    needed = torch.ones_like(idle_P) if learner.reference is not None else ~idle_P
    scorer = Scorer(learner, banned, stage.temperature, stage.group_size, stage.chunk_tokens)
    if stage.recomputes_old_logprobs:
        rollouts = reread(scorer, rollouts, rows_of([p for p in groups if needed[p]], stage.group_size))
    found: list[dict[str, float]] = []
    for minibatch in minibatches:
        rows = rows_of([p for p in minibatch if needed[p]], stage.group_size)
        parts = split_rows(rows, rollouts, scorer)
        if not parts:
            continue  # AdamW moves weights by its moments even where there is nothing to learn
        free = [rollouts[i].free for i in rows_of(minibatch, stage.group_size)]
        found.append(_minibatch(stage, scorer, rollouts, parts, advantage_B, divisor_of(stage, free), context))
        batch = [rollouts[i] for i in rows]
        found[-1]["grad_norm"] = update(learner.model, optimiser, lr, stage.optimiser.clip, context, rows, batch)
    if not found:
        return {}
    metrics = {name: sum(part[name] for part in found) / len(found) for name in LEARNT}
    # the gap is the first minibatch's: later ones would count the policy's own movement
    gap, largest = found[0]["logprob_gap"], max(part["ratio_max"] for part in found)
    return {**metrics, "logprob_gap": gap, "ratio_max": largest}


SUMMED = ("entropy", "kl", "clip_low", "clip_high", "clip_dual", "logprob_gap", "ratio")
"""Metrics that are means over tokens."""
LEARNT = ("loss", *SUMMED, "ratio_max", "grad_norm")
"""What `improve` measures. ratio and ratio_max: the mean and the largest of the ratio, before clipping."""


def idle_groups(stage: RLStage, rollouts: Sequence[Rollout]) -> Tensor:
    """Which groups [P] have no advantage: all right or all wrong, or, where these are not dropped, of equal rewards."""
    compared = [rollout.accuracy if stage.drop_zero_variance else rollout.reward for rollout in rollouts]
    return losses.zero_variance(torch.tensor(compared), stage.group_size)


def step_groups(stage: RLStage, idle_P: Tensor) -> list[int]:
    """The groups that the loss divides by, which are `prompts_per_step` ones: those that teach, then the others.

    As in TRL and verl, a group that teaches nothing keeps its place: else one mixed group of 128 would take a step of
    full size. Refills give its place to another group; what they could not fill stays idle.
    """
    places = max(stage.prompts_per_step, int((~idle_P).sum()))
    return sorted(sorted(range(len(idle_P)), key=lambda p: bool(idle_P[p]))[:places])


def rows_of(groups: Sequence[int], group_size: int) -> list[int]:
    """The rollouts of these groups, as positions among all."""
    return [p * group_size + k for p in groups for k in range(group_size)]


def divisor_of(stage: RLStage, free: Sequence[Sequence[bool]]) -> float:
    """`losses.normaliser` of one minibatch; free: which tokens of each of its replies are trained on."""
    mask_BR = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in free], batch_first=True)
    return losses.normaliser(mask_BR, stage.aggregation, stage.thinking_budget + stage.answer_budget)


def objective_of(stage: RLStage) -> losses.Objective:
    """The recipe's loss."""
    return losses.Objective(
        low=stage.epsilon_low,
        high=stage.epsilon_high,
        ratio=stage.ratio,
        aggregation=stage.aggregation,
        kl=stage.kl,
        estimator=stage.kl_estimator,
        dual_clip=stage.dual_clip,
    )


@torch.no_grad()
def reread(scorer: Scorer, rollouts: Sequence[Rollout], rows: Sequence[int]) -> list[Rollout]:
    """The rollouts, those of the rows (of whole groups) with the old log-probabilities computed by the trainer, at the
    temperature of the sampling. Groups that need no pass are left as they are.
    """
    found: dict[int, Rollout] = {}
    for part, weight in split_rows(rows, rollouts, scorer):
        logprob_BR = scorer([rollouts[i] for i in part]).logprob
        for i, logprob_R in zip(part, logprob_BR.tolist(), strict=True):
            if weight:
                found[i] = replace(rollouts[i], old=tuple(logprob_R[: len(rollouts[i].completion.token_ids)]))
    for other in parallel.gathered([found]):
        found |= other
    return [found.get(i, rollout) for i, rollout in enumerate(rollouts)]


def split_rows(rows: Sequence[int], rollouts: Sequence[Rollout], scorer: Scorer) -> list[tuple[list[int], float]]:
    """This rank's forward passes over a minibatch.

    A pass holds at most `chunk_tokens` tokens and at least one reply with its prompt: how a minibatch is split changes
    neither loss nor gradient. Packed replies are split one by one, each with a prompt of its own. Padded ones stay
    beside the replies of the same prompt, which is computed once for them, and a group is split where it is too long.

    Args:
        rows: the minibatch's replies, of whole groups, as positions in `rollouts`.
        rollouts: all of the step.
        scorer: whose batches these are.

    Returns:
        The positions of each pass's replies, and its weight (`sft.passes`).
    """
    # replies with nothing to train on have no part in the loss
    size, trained = scorer.group_size, {i for i in rows if any(rollouts[i].free)}
    units = [[i] for i in rows if i in trained]
    if not scorer.learner.packed:
        groups = ([i for i in rows[k : k + size] if i in trained] for k in range(0, len(rows), size))
        units = [unit for group in groups for unit in _units(group, rollouts, scorer)]
    tokens = [scorer.tokens([rollouts[i] for i in unit]) for unit in units]
    return [
        ([i for k in part for i in units[k]], weight)
        for part, weight in passes(tokens, scorer.chunk_tokens, scorer.learner.packed)
    ]


def _units(group: Sequence[int], rollouts: Sequence[Rollout], scorer: Scorer) -> list[list[int]]:
    """A padded group whole where it fits a pass, else replies of like length that do, one at least."""
    if not group or scorer.tokens([rollouts[i] for i in group]) <= scorer.chunk_tokens:
        return [list(group)] if group else []
    units: list[list[int]] = []
    for i in sorted(group, key=lambda i: len(rollouts[i].completion.token_ids)):
        joined = [*units[-1], i] if units else [i]
        if units and scorer.tokens([rollouts[k] for k in joined]) <= scorer.chunk_tokens:
            units[-1] = joined
        else:
            units.append([i])
    return units


def _minibatch(
    stage: RLStage,
    scorer: Scorer,
    rollouts: Sequence[Rollout],
    parts: Sequence[tuple[list[int], float]],
    advantage_B: Tensor,
    divisor: float,
    context: StepContext,
) -> dict[str, float]:
    """Accumulate one minibatch's gradient over its passes (`split_rows`); returns its metrics."""
    objective, reference = objective_of(stage), scorer.learner.reference
    total = Counter[str]()
    ratio_max = 0.0
    for part, weight in parts:
        batch = [rollouts[i] for i in part]
        advantage = advantage_B[part].to(scorer.device)
        # first, while nothing is kept for the backward pass
        reference_BR = None if reference is None else scorer.of(reference, batch)
        scored = scorer(batch)
        loss, found = _part(stage, objective, batch, scored, advantage, divisor, reference_BR)
        loss = loss * weight
        checked = {"reference log-probabilities": reference_BR, "loss": loss}
        context.check_finite(scorer.learner.model, {**scored.checked(batch), **checked}, part, batch)
        accumulate(loss)
        ratio_max = max(ratio_max, weight * found.pop("ratio_max"))
        total.update({name: weight * value for name, value in {"loss": loss.item(), **found}.items()})
    total = Counter(dict(zip(total, parallel.totals(list(total.values())), strict=True)))
    count = max(1.0, total["tokens"])
    means = {name: total[name] / count for name in SUMMED}
    return {"loss": total["loss"], **means, "ratio_max": max(parallel.gathered([ratio_max]))}


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
        clipped = losses.clip_shares(ratio_BR, advantage_B, mask_BR, objective)
        count = mask_BR.sum().item()
        kl = 0.0
        if reference_BR is not None:
            kl = (losses.kl(scored.logprob, reference_BR, stage.kl_estimator) * mask_BR).sum().item()
    return loss, {
        "tokens": count,
        "entropy": scored.entropy.sum().item(),
        "kl": kl,
        **{name: share * count for name, share in clipped.items()},
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

    def checked(self, batch: Sequence[Rollout]) -> dict[str, Tensor | None]:
        """What must be finite before a loss is made of it, by the names that an error gives it."""
        return {
            "log-probabilities from the engine": spread([r.completion.logprobs for r in batch], self.mask),
            "old log-probabilities": spread([rollout.old for rollout in batch], self.mask),
            "log-probabilities": self.logprob,
        }


@dataclass(frozen=True, slots=True)
class Scorer:
    """Log-probabilities of the replies' tokens, the banned ones left out of the softmax as the engine does.

    group_size: the replies of a whole group. chunk_tokens: of one forward pass at most, unless one reply is longer.
    Neighbors in a batch that have the same prompt share one computation of it where batches are padded.
    """

    learner: Learner
    banned: Sequence[int]
    temperature: float
    group_size: int
    chunk_tokens: int

    @property
    def device(self) -> torch.device:
        return self.learner.loaded.device

    def tokens(self, unit: Sequence[Rollout]) -> int:
        """What replies to one prompt cost in tokens, padding included."""
        replies = [len(rollout.completion.token_ids) for rollout in unit]
        if self.learner.packed:
            return sum(replies) + len(unit) * len(unit[0].prompt)
        return len(unit[0].prompt) + len(unit) * max(replies)

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
            shared = [(prompt, len(list(same))) for prompt, same in groupby(batch, key=lambda rollout: rollout.prompt)]
            owners = [k for k, (_, count) in enumerate(shared) for _ in range(count)]
            lengths = [len(rollout.completion.token_ids) for rollout in batch]
            parts = min(PARTS, self.group_size, max(parallel.gathered([len(batch)])))
            hidden_MD = reply_states(model, [prompt for prompt, _ in shared], ids_BR, lengths, owners, parts)[mask_BR]
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
    model: Any,
    prompts: Sequence[Sequence[int]],
    ids_BR: Tensor,
    lengths: Sequence[int],
    owners: Sequence[int],
    parts: int,
) -> Tensor:
    """The hidden states that predict each token of padded replies.

    A prompt's keys and values are computed once and then stand before each of its replies, gradients included. The
    replies are computed in parts by length (their tokens, the forced ones too), so that little is padding.

    Args:
        model: the model.
        prompts: token ids.
        ids_BR: the replies' token ids, padded on the right.
        lengths: the number of tokens of each reply.
        owners: the prompt of each reply, as a position in `prompts`.
        parts: forward passes over the replies; of several ranks all must give the same number.

    Returns:
        The states [B, R, D].
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
    owner_B = torch.tensor(owners, device=device)
    order = torch.tensor(sorted(range(len(lengths)), key=lambda k: lengths[k]), device=device)
    # a rank with fewer replies than parts repeats its last one, so that every rank makes as many calls; no gradient
    # comes from the repeated ones, for the selection below leaves them out
    filled = torch.cat([order, order[-1:].expand(max(0, parts - len(order)))])
    found = []
    for rows_b in filled.tensor_split(parts):
        # one step at least, for the same reason
        prompt_b, steps = owner_B[rows_b], max(1, max(lengths[k] for k in rows_b.tolist()) - 1)
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
"""Forward passes over a padded batch's replies, at most."""


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
        "zero_variance": idle_groups(stage, rollouts).float().mean().item(),
        "groups": n // stage.group_size,
        "length": sum(map(sum, lengths.values())) / n,
        "length_by_exit": {name: sum(found) / len(found) for name, found in lengths.items()},
        "exits": {name: exits[name] / n for name in get_args(Exit)},
        "outcomes": {name: outcomes[name] / n for name in get_args(Outcome)},
        "grader_timeouts": sum(rollout.verdict.note == TIMED_OUT for rollout in rollouts) / n,
    }
