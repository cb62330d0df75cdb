"""The tensors on which our losses are compared with other projects' own code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

B, T, GROUP, LONGEST = 12, 11, 4, 16
Policy = Literal["step 0", "off-policy", "far off-policy"]
POLICIES: tuple[Policy, ...] = ("step 0", "off-policy", "far off-policy")


def tensors(policy: Policy, seed: int = 1) -> dict[str, Tensor]:
    """Replies of different lengths with forced tokens inside; the last group teaches nothing.

    Args:
        policy: step 0: old log-probabilities are the policy's. off-policy: ratios on both sides of both bounds. far
            off-policy: ratios up to e^6, which the dual clip is for, and a reference that all but excludes tokens.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = lambda scale: scale * torch.randn(B, T, generator=generator, dtype=torch.float64)  # noqa: E731
    logprob = -noise(1.0).abs()
    lengths = torch.tensor([11, 4, 7, 1, 9, 11, 2, 6, 5, 3, 8, 10])
    mask = torch.arange(T) < lengths[:, None]
    mask[0, 5:7] = False
    reward = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=torch.float64)
    moved = {"step 0": 0.0, "off-policy": 0.3, "far off-policy": 2.0}[policy]
    return {
        "logprob": logprob,
        "old": logprob + noise(moved),
        "reference": logprob + noise(2.0 if policy == "far off-policy" else 0.2),
        "rollout": logprob + noise(0.5),
        "mask": mask,
        "reward": reward,
    }
