"""The pure core of reinforcement learning: functions over tensors, with no model in sight.

B is the number of rollouts, G the group size, T the tokens of a response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FAR = 20.0
"""Largest log-ratio: e^20 is still a number in every type that is trained in."""
KL_CAP = 10.0
"""Largest KL estimate of one token by k3, as in verl; a token that the reference all but excludes would give 4.9e8."""


def group_advantages(reward_B: Tensor, group_size: int, normalise_std: bool = True) -> Tensor:
    """Advantages [B] of rollouts that stand group by group: r − mean, over std when asked (GRPO, eq. 3).

    A group whose rewards are all alike gets 0. The standard deviation is the sample's (n − 1), as TRL's.
    """
    reward_PG = reward_B.view(-1, group_size)
    advantage_PG = reward_PG - reward_PG.mean(dim=1, keepdim=True)
    if normalise_std:
        advantage_PG = advantage_PG / (reward_PG.std(dim=1, keepdim=True) + 1e-4)
    return advantage_PG.flatten()


def zero_variance(value_B: Tensor, group_size: int) -> Tensor:
    """Which groups teach nothing because their rollouts are all right or all wrong.

    Args:
        value_B: what is compared within a group. RL gives the accuracy alone (DAPO, section 3.2): a penalty for length
            makes the rewards of eight wrong replies differ, and dividing by their tiny deviation would make it large.
        group_size: rollouts of one prompt, which are neighbors.

    Returns:
        True for each group [B / G] whose values are equal.
    """
    value_PG = value_B.view(-1, group_size)
    return (value_PG == value_PG[:, :1]).all(dim=1)


def clipped_objective(
    ratio_BT: Tensor, advantage_B: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """The clipped surrogate, as a loss per token.

    −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A) (PPO, arXiv 1707.06347, eq. 7; DAPO's two epsilons, arXiv 2503.14476,
    eq. 10). At A < 0 it grows with ρ without bound; the dual clip stops it at −c·A (arXiv 1912.09729, eq. 5), in the
    form of verl's `compute_policy_loss_vanilla`.

    Args:
        ratio_BT: ρ, the policy over the old policy.
        advantage_B: A, of each reply.
        low: ε_low.
        high: ε_high.
        dual_clip: c, above 1; None for no dual clip.

    Returns:
        The loss [B, T].
    """
    advantage_B1 = advantage_B[:, None]
    clipped_BT = ratio_BT.clamp(1 - low, 1 + high)
    loss_BT = torch.maximum(-ratio_BT * advantage_B1, -clipped_BT * advantage_B1)
    if dual_clip is None:
        return loss_BT
    return torch.where(advantage_B1 < 0, torch.minimum(loss_BT, -dual_clip * advantage_B1), loss_BT)


Aggregation = Literal["token", "sequence", "constant"]


def normaliser(mask_BT: Tensor, how: Aggregation, longest: int) -> float:
    """What `aggregate` divides by when these B sequences are all that one optimiser step learns from."""
    if how == "token":
        return max(1, int(mask_BT.sum()))
    return mask_BT.shape[0] * (longest if how == "constant" else 1)


def aggregate(loss_BT: Tensor, mask_BT: Tensor, how: Aggregation, normaliser: float) -> Tensor:
    """One number from per-token losses.

    token: sum over the normaliser, the number of tokens (DAPO). sequence: each sequence's mean,
    summed over the normaliser, the number of sequences (GRPO). constant: sum over the normaliser, sequences times
    the longest response (Dr.GRPO). The normaliser counts all that one optimiser step learns from, so that the parts
    in which its gradient is accumulated change nothing.
    """
    masked_BT = loss_BT * mask_BT
    if how == "sequence":
        return (masked_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp_min(1)).sum() / normaliser
    return masked_BT.sum() / normaliser


def log_ratio(logprob_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, level: Literal["token", "sequence"]) -> Tensor:
    """log π/π_old [B, T], 0 where the mask is False, held within ±20 so that its exponent stays finite.

    token: each token's own (PPO). sequence: each sequence's mean over its tokens, the logarithm of the ratios'
    geometric mean, with the gradient of that mean (GSPO, eq. 7).
    """
    difference_BT = (logprob_BT - old_BT) * mask_BT
    if level == "sequence":
        mean_B1 = difference_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True).clamp_min(1)
        difference_BT = mean_B1 * mask_BT
    return difference_BT.clamp(-FAR, FAR)


def correction(
    trainer_BT: Tensor, rollout_BT: Tensor, mask_BT: Tensor, level: Literal["token", "sequence"], cap: float
) -> Tensor:
    """Truncated importance weights [B, T] of the policy before the update against the one that sampled.

    min(π_trainer/π_rollout, cap), per token or by the geometric mean over a reply: a product over a long chain
    explodes. 1 where the mask is False; no gradient.
    """
    with torch.no_grad():
        return log_ratio(trainer_BT, rollout_BT, mask_BT, level).exp().clamp_max(cap)


def kl(logprob_BT: Tensor, reference_BT: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Schulman's estimates of KL(policy ‖ reference) for sampled tokens.

    With d = log π_ref − log π held within ±20: k1 is −d, k2 is d²/2, k3 is exp(d) − d − 1, held below `KL_CAP`. As a
    loss k1 would regularize nothing, for the expectation of its gradient is 0. Its value therefore carries k2's
    gradient, which is that of the KL on the policy's own samples (verl's `k1+`).

    Args:
        logprob_BT: log π of the sampled tokens.
        reference_BT: log π_ref of the same.
        estimator: which.

    Returns:
        The estimates [B, T] in nats.
    """
    difference_BT = (reference_BT - logprob_BT).clamp(-FAR, FAR)
    if estimator == "k3":
        return (difference_BT.exp() - difference_BT - 1).clamp(-KL_CAP, KL_CAP)
    half_square_BT = difference_BT**2 / 2
    if estimator == "k2":
        return half_square_BT
    return half_square_BT - half_square_BT.detach() - difference_BT.detach()


def overlong_penalty(length_B: Tensor, limit: int, buffer: int) -> Tensor:
    """Added to the rewards [B] of long replies: 0 up to limit − buffer tokens, then down to −1 (DAPO, eq. 13).

    length: all tokens of a reply. A reply whose thought had to be closed counts as one of `limit` tokens.
    """
    if buffer == 0:
        return -(length_B > limit).float()
    return -((length_B - (limit - buffer)) / buffer).clamp(0, 1)


def kl_full(reference_MV: Tensor, logits_MV: Tensor) -> Tensor:
    """KL(reference ‖ policy) [M] over the whole vocabulary, in nats, from both sides' logits."""
    policy_MV, reference_MV = torch.log_softmax(logits_MV, dim=-1), torch.log_softmax(reference_MV, dim=-1)
    return (reference_MV.exp() * (reference_MV - policy_MV)).sum(-1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of hidden·weightᵀ, `rows` of M at a time; the gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, rows: int) -> Tensor:
        total = hidden_MD.new_zeros((), dtype=torch.float32)
        slope_MD = torch.empty_like(hidden_MD)
        slope_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(hidden_MD), rows):
            part = slice(begin, begin + rows)
            logits_RV = F.linear(hidden_MD[part], weight_VD).float()
            logprob_RV = logits_RV.log_softmax(dim=-1)
            total += F.nll_loss(logprob_RV, target_M[part], reduction="sum")
            error_RV = logprob_RV.exp_()
            error_RV.scatter_add_(1, target_M[part, None], error_RV.new_full((len(error_RV), 1), -1.0))
            error_RV = error_RV.to(hidden_MD.dtype)
            slope_MD[part] = torch.mm(error_RV, weight_VD.to(error_RV.dtype))
            if slope_VD is not None:
                slope_VD += torch.mm(error_RV.T, hidden_MD[part])
        ctx.save_for_backward(slope_MD, slope_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        slope_MD, slope_VD = ctx.saved_tensors
        return slope_MD * slopes[0], None if slope_VD is None else slope_VD * slopes[0], None, None


def linear_cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, most: int) -> Tensor:
    """Sum over M tokens of −log softmax(hidden·weightᵀ)[target]; no more than `most` logits exist at a time."""
    rows = max(1, most // len(weight_VD))
    if len(hidden_MD) <= rows:
        return F.cross_entropy(F.linear(hidden_MD, weight_VD).float(), target_M, reduction="sum")
    found: Tensor = _LinearCrossEntropy.apply(hidden_MD, weight_VD, target_M, rows)  # type: ignore[no-untyped-call]
    return found


def in_parts(function: Callable[..., tuple[Tensor, Tensor]], rows: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of a function's two results over `rows` of the tensors at a time, each part computed again backward."""
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
    found = [checkpoint(function, *part, use_reentrant=False) for part in parts]
    return torch.stack([one for one, _ in found]).sum(), torch.stack([other for _, other in found]).sum()


def entropy(logprob_MV: Tensor) -> Tensor:
    """Entropy [M] in nats of log-probabilities; those of banned tokens are −∞."""
    return -logprob_MV.clamp_min(-1e30).mul_(logprob_MV.exp()).sum(-1)


@dataclass(frozen=True, slots=True)
class Objective:
    """Which loss: GRPO, DAPO, Dr.GRPO, GSPO and their mixtures are settings of these.

    low, high: how far the ratio may fall below and rise above 1. ratio: per token (PPO) or per sequence (GSPO).
    kl: weight of the KL term, estimated by `estimator`. dual_clip: see `clipped_objective`.
    """

    low: float = 0.2
    high: float = 0.28
    ratio: Literal["token", "sequence"] = "token"
    aggregation: Aggregation = "token"
    kl: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    dual_clip: float | None = 3.0


def policy_loss(
    objective: Objective,
    logprob_BT: Tensor,
    old_BT: Tensor,
    advantage_B: Tensor,
    mask_BT: Tensor,
    divisor: float,
    reference_BT: Tensor | None = None,
    weight_BT: Tensor | None = None,
) -> Tensor:
    """One number to minimise; its gradient reaches `logprob_BT` alone.

    old: the policy before the step's first update. mask: tokens that the policy chose. weight: `correction`'s.
    divisor: `normaliser` of all that the optimiser step learns from.
    """
    ratio_BT = log_ratio(logprob_BT, old_BT, mask_BT, objective.ratio).exp()
    loss_BT = clipped_objective(ratio_BT, advantage_B, objective.low, objective.high, objective.dual_clip)
    if weight_BT is not None:
        loss_BT = loss_BT * weight_BT
    if reference_BT is not None:
        loss_BT = loss_BT + objective.kl * kl(logprob_BT, reference_BT, objective.estimator)
    return aggregate(loss_BT, mask_BT, objective.aggregation, divisor)


def clip_shares(ratio_BT: Tensor, advantage_B: Tensor, mask_BT: Tensor, objective: Objective) -> dict[str, float]:
    """Shares of the mask's tokens whose gradient a bound removes; at an advantage of 0 none does.

    Returns:
        clip_low: the lower bound, at A < 0; clip_high: the upper one, at A > 0; clip_dual: the dual clip, at A < 0.
    """
    advantage_B1, total = advantage_B[:, None], mask_BT.sum().clamp_min(1)
    held = {
        "clip_low": (ratio_BT < 1 - objective.low) & (advantage_B1 < 0),
        "clip_high": (ratio_BT > 1 + objective.high) & (advantage_B1 > 0),
        "clip_dual": (ratio_BT > (objective.dual_clip or torch.inf)) & (advantage_B1 < 0),
    }
    return {name: ((held_BT & mask_BT).sum() / total).item() for name, held_BT in held.items()}
