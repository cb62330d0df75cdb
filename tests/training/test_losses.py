"""The pure core against numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from xreasoner.training import losses


def test_group_advantages() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    plain = losses.group_advantages(reward, 3, normalise_std=False)
    torch.testing.assert_close(plain, torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.0, 0.0]))
    std = math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2)
    scaled = losses.group_advantages(reward, 3)
    torch.testing.assert_close(scaled[0], torch.tensor((2 / 3) / (std + 1e-4)))
    assert scaled[3:].tolist() == [0.0, 0.0, 0.0]
    assert losses.zero_variance(reward, 3).tolist() == [False, True]


def test_clipping_has_two_epsilons() -> None:
    ratio = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    loss = losses.clipped_objective(ratio, torch.tensor([1.0, -1.0]), 0.2, 0.28)
    # A = 1: min(1.5, 1.28) and min(0.5, 0.8); A = −1: min(−1.5, −1.28) and min(−0.5, −0.8)
    torch.testing.assert_close(loss, torch.tensor([[-1.28, -0.5], [1.5, 0.8]]))
    mask = torch.ones(2, 2, dtype=torch.bool)
    objective = losses.Objective(low=0.2, high=0.28, dual_clip=1.4)
    shares = losses.clip_shares(ratio, torch.tensor([1.0, -1.0]), mask, objective)
    assert shares == {"clip_low": 0.25, "clip_high": 0.25, "clip_dual": 0.25}
    shares = losses.clip_shares(ratio, torch.tensor([0.0, -1.0]), mask, objective)
    assert shares == {"clip_low": 0.25, "clip_high": 0.0, "clip_dual": 0.25}


def test_aggregations() -> None:
    loss = torch.tensor([[1.0, 3.0, 5.0], [2.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert losses.aggregate(loss, mask, "token", 4).item() == 11 / 4
    assert losses.aggregate(loss, mask, "sequence", 2).item() == (3.0 + 2.0) / 2
    torch.testing.assert_close(losses.aggregate(loss, mask, "constant", 2 * 10), torch.tensor(11 / 20))


def test_kl_estimators() -> None:
    a, b = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -3.0])
    torch.testing.assert_close(losses.kl(a, b, "k1"), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(losses.kl(a, b, "k2"), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(losses.kl(a, b, "k3"), torch.tensor([0.0, math.exp(-1) + 1 - 1]))
    # a reference that finds a token impossible, or certain, is no NaN at step 0
    far = losses.kl(torch.tensor([-1e4, 0.0]), torch.tensor([0.0, -1e4]), "k3")
    assert far.isfinite().all()


def test_the_estimators_agree_with_the_true_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    # near enough that no token's k3 is above its cap, which would bias it
    policy, reference = (torch.log_softmax(0.7 * torch.randn(5, generator=generator), -1) for _ in range(2))
    assert losses.kl(policy, reference, "k3").max() < losses.KL_CAP
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    true = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close(
            losses.kl(policy[drawn], reference[drawn], estimator).mean(), true, rtol=0.02, atol=0
        )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_terms_gradient_is_that_of_the_true_divergence(estimator: Any) -> None:
    """On the policy's own samples; that of −log π_ref + log π itself would be 0 on average."""
    generator = torch.Generator().manual_seed(0)
    logits = (0.5 * torch.randn(5, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = torch.log_softmax(0.5 * torch.randn(5, generator=generator, dtype=torch.float64), -1)
    logprob = torch.log_softmax(logits, -1)
    # the expectation over samples: each token's term weighed by its probability, which itself has no gradient here
    (logprob.exp().detach() * losses.kl(logprob, reference, estimator)).sum().backward()
    found, logits.grad = logits.grad, None
    (logits.log_softmax(-1).exp() * (logits.log_softmax(-1) - reference)).sum().backward()
    assert found is not None
    assert logits.grad is not None
    assert logits.grad.abs().max() > 0.05
    if estimator == "k3":  # of the KL in the other direction: alike near each other, not equal
        assert torch.cosine_similarity(found, logits.grad, dim=0) > 0.9
    else:
        torch.testing.assert_close(found, logits.grad)


def test_k3_is_at_most_ten_a_token() -> None:
    logprob = torch.tensor([-5.0, -1.0, 0.0], requires_grad=True)
    found = losses.kl(logprob, torch.tensor([0.0, 0.0, -40.0]), "k3")
    torch.testing.assert_close(found.detach(), torch.tensor([10.0, math.e - 2, 10.0]))
    found.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.isfinite().all()


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    ratio = torch.tensor([[math.exp(5), 2.0, 0.1], [math.exp(5), 2.0, 0.1]])
    advantage = torch.tensor([-1.0, 1.0])
    unbounded = losses.clipped_objective(ratio, advantage, 0.2, 0.28)
    assert unbounded[0, 0].item() == pytest.approx(148.4, abs=0.1)
    bounded = losses.clipped_objective(ratio, advantage, 0.2, 0.28, dual_clip=3.0)
    torch.testing.assert_close(bounded, torch.tensor([[3.0, 2.0, 0.8], [-1.28, -1.28, -0.1]]))
    assert losses.Objective().dual_clip == 3.0  # on by default


def test_ratios_by_token_and_by_their_geometric_mean() -> None:
    new, old = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False]])
    assert losses.log_ratio(new, old, mask, "token").tolist() == [[1.0, 2.0, 0.0]]
    assert losses.log_ratio(new, old, mask, "sequence").tolist() == [[1.5, 1.5, 0.0]]
    # a product over a long chain explodes, the mean does not
    drift, long = torch.full((1, 16_000), 0.001), torch.ones(1, 16_000, dtype=torch.bool)
    weight = losses.correction(drift, torch.zeros_like(drift), long, "sequence", cap=2.0)
    torch.testing.assert_close(weight, torch.full_like(drift, math.exp(0.001)))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    new = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True]])
    weight = losses.correction(new, torch.zeros(1, 3), mask, "token", cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([[1.0, 2.0, math.exp(-1)]]))
    assert not weight.requires_grad


def test_overlong_penalty() -> None:
    length = torch.tensor([70.0, 80.0, 90.0, 100.0, 120.0])
    torch.testing.assert_close(losses.overlong_penalty(length, 100, 20), torch.tensor([0.0, 0.0, -0.5, -1.0, -1.0]))
    assert losses.overlong_penalty(length, 100, 0).tolist() == [0.0, 0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_parts_of_a_batch_add_up_to_the_whole(aggregation: losses.Aggregation) -> None:
    """Gradient accumulation, and ranks, change nothing: the divisor counts the whole step."""
    generator = torch.Generator().manual_seed(0)
    logprob, old = -torch.rand(6, 5, generator=generator).double(), -torch.rand(6, 5, generator=generator).double()
    advantage = torch.randn(6, generator=generator).double()
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None]
    divisor = losses.normaliser(mask, aggregation, 8)
    objective = losses.Objective(aggregation=aggregation)
    whole = losses.policy_loss(objective, logprob, old, advantage, mask, divisor)
    parts = [
        losses.policy_loss(objective, logprob[rows], old[rows], advantage[rows], mask[rows], divisor)
        for rows in ([0], [1, 2], [3, 4, 5])
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_forced_tokens_have_no_gradient() -> None:
    logprob = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    losses.policy_loss(
        losses.Objective(), logprob, torch.full((2, 3), -1.0), torch.tensor([1.0, -1.0]), mask, 4
    ).backward()
    assert logprob.grad is not None
    assert ((logprob.grad != 0) == mask).all()


def test_full_kl_is_that_of_the_reference() -> None:
    reference, policy = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(losses.kl_full(reference + 3.0, policy), torch.tensor([expected, 0.0]))


def test_entropy_ignores_banned_tokens() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, 0.0]])
    torch.testing.assert_close(losses.entropy(logits.log_softmax(-1)), torch.tensor([math.log(3)]))


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logprob = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    old, advantage = logprob.detach() + 0.1 * torch.randn(2, 3, dtype=torch.float64), torch.tensor([1.0, -0.5]).double()
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return losses.aggregate(losses.clipped_objective((x - old).exp(), advantage, 0.2, 0.28), mask, "token", 5)

    assert torch.autograd.gradcheck(loss, (logprob,))
