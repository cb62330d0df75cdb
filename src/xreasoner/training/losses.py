"""The pure core of reinforcement learning: functions over tensors, with no model in sight.

B is the number of rollouts, G the group size, T the tokens of a response.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantages(reward_B: Tensor, group_size: int, normalise_std: bool = True) -> Tensor:
    """Advantages [B] of rollouts that stand group by group: r − mean, over std when asked (GRPO, eq. 3).

    A group whose rewards are all alike gets 0. The standard deviation is the sample's (n − 1), as TRL's.
    """
    reward_PG = reward_B.view(-1, group_size)
    advantage_PG = reward_PG - reward_PG.mean(dim=1, keepdim=True)
    if normalise_std:
        advantage_PG = advantage_PG / (reward_PG.std(dim=1, keepdim=True) + 1e-4)
    return advantage_PG.flatten()


def zero_variance(reward_B: Tensor, group_size: int) -> Tensor:
    """Which groups [B / G] have rewards that are all alike, so that they teach nothing."""
    reward_PG = reward_B.view(-1, group_size)
    return (reward_PG == reward_PG[:, :1]).all(dim=1)


def clipped_objective(ratio_BT: Tensor, advantage_B: Tensor, low: float, high: float) -> Tensor:
    """Per-token loss [B, T]: −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A) (PPO, eq. 7; DAPO's two epsilons, eq. 10)."""
    advantage_B1 = advantage_B[:, None]
    clipped_BT = ratio_BT.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)


def aggregate(
    loss_BT: Tensor, mask_BT: Tensor, how: Literal["token", "sequence", "constant"], normaliser: float
) -> Tensor:
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


def kl_k3(logprob_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Schulman's k3 estimate [B, T] of KL(policy ‖ reference): exp(d) − d − 1 with d = log π_ref − log π."""
    difference = reference_BT - logprob_BT
    return difference.exp() - difference - 1


def kl_full(reference_MV: Tensor, logits_MV: Tensor) -> Tensor:
    """KL(reference ‖ policy) [M] over the whole vocabulary, in nats, from both sides' logits."""
    policy_MV, reference_MV = torch.log_softmax(logits_MV, dim=-1), torch.log_softmax(reference_MV, dim=-1)
    return (reference_MV.exp() * (reference_MV - policy_MV)).sum(-1)


def entropy(logits_MV: Tensor) -> Tensor:
    """Entropy [M] in nats; banned tokens have logit −∞."""
    logprob_MV = torch.log_softmax(logits_MV, dim=-1)
    return -(logprob_MV.exp() * logprob_MV.clamp_min(-1e30)).sum(-1)


def clip_shares(ratio_BT: Tensor, advantage_B: Tensor, mask_BT: Tensor, low: float, high: float) -> tuple[float, float]:
    """Shares of tokens whose ratio the lower and the upper bound hold back."""
    positive = advantage_B[:, None] > 0
    total = mask_BT.sum().clamp_min(1)
    below = ((ratio_BT < 1 - low) & ~positive & mask_BT).sum() / total
    above = ((ratio_BT > 1 + high) & positive & mask_BT).sum() / total
    return below.item(), above.item()
