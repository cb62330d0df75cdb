"""Gradients of one RL minibatch in several splits, saved by rank 0: run by itself or under `torchrun`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xreasoner.completion import Completion
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import load
from xreasoner.recipe import RLStage
from xreasoner.training import parallel, rl
from xreasoner.training.common import Learner, StepContext, ready
from xreasoner.training.rollouts import Rollout
from xreasoner.verdict import Verdict

GROUP = 4
LENGTHS = ((3, 9, 5, 2), (7, 1, 4, 6))
"""Tokens of each reply, by group."""
PROMPTS = (tuple(range(300, 311)), tuple(range(320, 325)))
WHOLE, SINGLE = 100_000, 1
"""Tokens of a pass in which everything fits, and of one for each reply."""


def make_stage(**changes: Any) -> RLStage:
    """A KL term, a dual clip that binds, and old log-probabilities that differ from the policy's."""
    settings = {
        "kl": 0.3,
        "kl_estimator": "k3",
        "dual_clip": 1.5,
        "group_size": GROUP,
        "prompts_per_step": 2,
        **changes,
    }
    return RLStage.model_validate(
        {"kind": "rl", "name": "rl", "prompt": "brief", "steps": 1, "optimizer": {"lr": 1e-4}}
        | {"data": [{"source": "rows", "n": 1}]}
        | settings
    )


def make_learner(folder: str, stage: RLStage) -> Learner:
    """In float64 in one process, so that a difference is the algorithm's; the reference is another model."""
    loaded = load(folder)
    freeze(loaded.model)
    if parallel.size() == 1:
        loaded.model.double()
    learner = ready(stage, loaded)
    with torch.no_grad():
        for parameter in learner.reference.parameters():
            parameter.mul_(1.02)
    return learner


def make_rollouts(scorer: rl.Scorer) -> list[Rollout]:
    """Two groups of replies of different lengths; some of their tokens were forced, and one reply is masked whole."""
    found = []
    for prompt, lengths in zip(PROMPTS, LENGTHS, strict=True):
        for k, length in enumerate(lengths):
            ids = tuple(330 + (7 * k + 3 * j) % 60 for j in range(length))
            free = tuple(j % 4 != 2 and length != 6 for j in range(length))
            reply = Completion("", ids, (0.0,) * length, (False,) * length, "", "", "natural", len(prompt), 0, length)
            found.append(Rollout(prompt, reply, Verdict("wrong"), float(k % 2), (0.0,) * length, free, float(k % 2)))
    with torch.no_grad():
        logprob_BR = scorer(found).logprob.double()
    shift = [[0.6 * ((5 * k + 3 * j) % 7 - 3) / 3 for j in range(len(one.old))] for k, one in enumerate(found)]
    return [
        replace(one, old=tuple(x + y for x, y in zip(row, moved, strict=False)))
        for one, row, moved in zip(found, logprob_BR.tolist(), shift, strict=True)
    ]


def gradients(
    stage: RLStage,
    scorer: rl.Scorer,
    rollouts: Sequence[Rollout],
    parts: Sequence[tuple[list[int], float]],
    out: Path,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics and the gradients of one minibatch in these passes."""
    advantage_B = torch.tensor([1.0, -0.5, 0.7, -1.2, -0.8, 0.4, 1.1, -0.7])
    divisor = rl.divisor_of(stage, [rollout.free for rollout in rollouts])
    model = scorer.learner.model
    model.zero_grad(set_to_none=True)
    metrics = rl._minibatch(stage, scorer, rollouts, parts, advantage_B, divisor, StepContext("rl", 1, out))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return metrics, {name: parallel.whole(p.grad).clone() for name, p in named if p.grad is not None}


def main(folder: str, out: str) -> None:
    found = {}
    with parallel.world():
        for batching in ("packed", "padded"):
            stage = make_stage(batching=batching)
            learner = make_learner(folder, stage)
            rollouts = make_rollouts(rl.Scorer(learner, (), 1.0, GROUP, WHOLE))
            for tokens in (WHOLE, 24, SINGLE):
                scorer = rl.Scorer(learner, (), 1.0, GROUP, tokens)
                parts = rl.split_rows(range(2 * GROUP), rollouts, scorer)
                found[batching, tokens] = gradients(stage, scorer, rollouts, parts, Path(out))
        if parallel.rank() == 0:
            torch.save(found, Path(out) / f"ranks-{parallel.size()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
