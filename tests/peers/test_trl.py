"""Our losses beside TRL's own code, on the same tensors: loss and gradient.

TRL lives in an environment of its own (`make test-trl`); elsewhere these tests are not collected. TRL's `_compute_loss`
runs as it is; only the model's log-probabilities are given to it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objective_cases import GROUP, LONGEST, POLICIES, B, Policy, T, tensors
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from xreasoner.training import losses

LOSS_TYPES = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}


def _trls(inputs: dict[str, Tensor], logprob: Tensor, objective: losses.Objective, weighted: bool) -> Tensor:
    trainer: Any = GRPOTrainer.__new__(GRPOTrainer)
    trainer.__dict__.update(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(delta=objective.dual_clip, use_bias_correction_kl=False, steps_per_generation=1),
        current_gradient_accumulation_steps=1,
        loss_type=LOSS_TYPES[objective.aggregation],
        importance_sampling_level=objective.ratio,
        epsilon_low=objective.low,
        epsilon_high=objective.high,
        beta=objective.kl,
        max_completion_length=LONGEST,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=weighted,
        vllm_importance_sampling_correction=weighted,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, torch.zeros_like(logprob), None),
    )
    ids = torch.zeros(B, T, dtype=torch.long)
    found: Tensor = trainer._compute_loss(
        None,
        {
            "prompt_ids": ids[:, :2],
            "prompt_mask": ids[:, :2] + 1,
            "completion_ids": ids,
            "completion_mask": inputs["mask"].long(),
            "advantages": inputs["advantage"],
            "old_per_token_logps": inputs["old"],
            "ref_per_token_logps": inputs["reference"],
            "importance_sampling_ratio": inputs["weight"],
            "num_items_in_batch": inputs["mask"].sum(),
        },
    )
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("aggregation", "ratio", "kl", "weighted", "dual_clip"),
    list(
        itertools.product(
            ("token", "sequence", "constant"), ("token", "sequence"), (0.0, 0.04), (False, True), (3.0, None)
        )
    ),
)
def test_loss_and_gradient_are_trls(
    policy: Policy, aggregation: Any, ratio: Any, kl: float, weighted: bool, dual_clip: float | None
) -> None:
    """A group that teaches nothing is among them: both divide by it too. The dual clip is TRL's `delta`."""
    objective = losses.Objective(0.2, 0.28, ratio, aggregation, kl, dual_clip=dual_clip)
    inputs = tensors(policy)
    if policy == "far off-policy":  # TRL's k3 has no cap
        inputs["reference"] = inputs["logprob"] + (inputs["reference"] - inputs["logprob"]).clamp(-2, 2)
    inputs["advantage"] = losses.group_advantages(inputs["reward"], GROUP)
    inputs["weight"] = losses.correction(inputs["old"], inputs["rollout"], inputs["mask"], "token", cap=2.0)
    ours, theirs = (inputs["logprob"].clone().requires_grad_() for _ in range(2))
    loss = losses.policy_loss(
        objective,
        ours,
        inputs["old"],
        inputs["advantage"],
        inputs["mask"],
        losses.normaliser(inputs["mask"], aggregation, LONGEST),
        inputs["reference"] if kl else None,
        inputs["weight"] if weighted else None,
    )
    expected = _trls(inputs, theirs, objective, weighted)
    loss.backward()
    expected.backward()
    assert ours.grad is not None
    assert ours.grad.abs().sum() > 0
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("std", [True, False])
def test_advantages_are_trls(std: bool) -> None:
    reward = tensors("off-policy", seed=2)["reward"]
    grouped = reward.view(-1, GROUP)
    expected = grouped - grouped.mean(dim=1, keepdim=True)
    if std:  # the two lines of TRL's _generate_and_score_completions, with TRL's own deviation
        expected = expected / (nanstd(grouped, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(losses.group_advantages(reward, GROUP, std), expected.flatten())


def test_truncated_weights_are_trls() -> None:
    inputs = tensors("off-policy", seed=3)
    difference = (inputs["old"] - inputs["rollout"]) * inputs["mask"]
    expected = torch.clamp(torch.exp(difference), min=None, max=2.0)  # TRL: token_truncate
    ours = losses.correction(inputs["old"], inputs["rollout"], inputs["mask"], "token", cap=2.0)
    torch.testing.assert_close(ours, expected)
    assert (ours == 2.0).any()
