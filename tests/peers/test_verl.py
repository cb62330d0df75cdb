"""Our losses beside verl's own functions, on the same tensors: loss and gradient.

verl lives in TRL's environment (`make test-trl`), without the packages that its trainers need; elsewhere these tests
are not collected. Ratios of sequences have no dual clip in verl.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from objective_cases import GROUP, LONGEST, POLICIES, B, Policy, tensors
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from xreasoner.training import losses

MODES = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
KL_KINDS = {"k1": "k1+", "k2": "k2", "k3": "low_var_kl"}


def _config(mode: str) -> Any:
    return ActorConfig(
        strategy="fsdp",
        rollout_n=GROUP,
        use_dynamic_bsz=True,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=3.0,
        loss_agg_mode=mode,
        global_batch_info={"loss_scale_factor": LONGEST},
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("aggregation", "ratio", "weighted"),
    [
        *itertools.product(("token", "sequence", "constant"), ("token",), (False, True)),
        ("sequence", "sequence", False),
        ("sequence", "sequence", True),
    ],
)
def test_loss_and_gradient_are_verls(policy: Policy, aggregation: Any, ratio: Any, weighted: bool) -> None:
    """With the defaults that both have: a dual clip at 3, and groups that teach nothing in the denominator.

    Weights are of the ratio's level: a reply's one ratio has another gradient in verl (each token's own, times its
    weight) than in TRL and here (the mean's) where weights differ within the reply.
    """
    inputs = tensors(policy)
    advantage = losses.group_advantages(inputs["reward"], GROUP)
    weight = losses.correction(inputs["old"], inputs["rollout"], inputs["mask"], ratio, cap=2.0)
    objective = losses.Objective(0.2, 0.28, ratio, aggregation, dual_clip=3.0 if ratio == "token" else None)
    ours, theirs = (inputs["logprob"].clone().requires_grad_() for _ in range(2))
    loss = losses.policy_loss(
        objective,
        ours,
        inputs["old"],
        advantage,
        inputs["mask"],
        losses.normaliser(inputs["mask"], aggregation, LONGEST),
        weight_BT=weight if weighted else None,
    )
    mode = MODES[aggregation]
    expected, _ = core_algos.get_policy_loss_fn("vanilla" if ratio == "token" else "gspo")(
        inputs["old"],
        theirs,
        advantage[:, None].expand_as(theirs),
        inputs["mask"],
        mode,
        _config(mode),
        weight if weighted else None,
    )
    loss.backward()
    expected.backward()
    assert ours.grad is not None
    assert ours.grad.abs().sum() > 0
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("estimator", KL_KINDS)
def test_kl_terms_and_their_gradients_are_verls(policy: Policy, estimator: Any) -> None:
    """k1 is verl's `k1+`, whose gradient is k2's; k3 has verl's cap of 10, which the far reference reaches."""
    inputs = tensors(policy)
    ours, theirs = (inputs["logprob"].clone().requires_grad_() for _ in range(2))
    found = losses.kl(ours, inputs["reference"], estimator)
    expected = core_algos.kl_penalty(theirs, inputs["reference"], KL_KINDS[estimator])
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ((found == losses.KL_CAP).any()) == (estimator == "k3" and policy == "far off-policy")


@pytest.mark.parametrize("std", [True, False])
def test_advantages_are_verls(std: bool) -> None:
    """But for the ε beside the deviation, which is TRL's 1e-4 here and 1e-6 there."""
    inputs = tensors("off-policy")
    reward_BT = torch.zeros_like(inputs["logprob"])
    reward_BT[:, 0] = inputs["reward"]
    index = np.arange(B) // GROUP
    expected, _ = core_algos.compute_grpo_outcome_advantage(
        reward_BT, inputs["mask"], index, epsilon=1e-4, norm_adv_by_std_in_grpo=std
    )
    found = losses.group_advantages(inputs["reward"], GROUP, std)[:, None] * inputs["mask"]
    torch.testing.assert_close(found, expected)
