"""The pure core against numbers computed by hand."""

from __future__ import annotations

import math

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
    assert losses.clip_shares(ratio, torch.tensor([1.0, -1.0]), mask, 0.2, 0.28) == (0.25, 0.25)


def test_aggregations() -> None:
    loss = torch.tensor([[1.0, 3.0, 5.0], [2.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert losses.aggregate(loss, mask, "token", 4).item() == 11 / 4
    assert losses.aggregate(loss, mask, "sequence", 2).item() == (3.0 + 2.0) / 2
    torch.testing.assert_close(losses.aggregate(loss, mask, "constant", 2 * 10), torch.tensor(11 / 20))


def test_kl_is_zero_for_equal_and_positive_otherwise() -> None:
    a, b = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -3.0])
    kl = losses.kl_k3(a, b)
    torch.testing.assert_close(kl, torch.tensor([0.0, math.exp(-1) + 1 - 1]))


def test_full_kl_is_that_of_the_reference() -> None:
    reference, policy = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(losses.kl_full(reference + 3.0, policy), torch.tensor([expected, 0.0]))


def test_entropy_ignores_banned_tokens() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, 0.0]])
    torch.testing.assert_close(losses.entropy(logits), torch.tensor([math.log(3)]))


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logprob = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    old, advantage = logprob.detach() + 0.1 * torch.randn(2, 3, dtype=torch.float64), torch.tensor([1.0, -0.5]).double()
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return losses.aggregate(losses.clipped_objective((x - old).exp(), advantage, 0.2, 0.28), mask, "token", 5)

    assert torch.autograd.gradcheck(loss, (logprob,))
