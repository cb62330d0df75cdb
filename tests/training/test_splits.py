"""However an RL minibatch is split into forward passes, its loss and gradient stay the same."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import split_gradients as split
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parallel import environment

from xreasoner.training import rl
from xreasoner.training.rollouts import Rollout

ROWS = 2 * split.GROUP
OBJECTIVES: tuple[dict[str, Any], ...] = (
    {},
    {"ratio": "sequence", "aggregation": "sequence"},
    {"aggregation": "constant", "kl_estimator": "k2", "correction": "token"},
)


def _assert_equal(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    (metrics, gradient), (whole_metrics, whole_gradient) = found, expected
    assert metrics == pytest.approx(whole_metrics, rel=tolerance, abs=tolerance)
    assert gradient.keys() == whole_gradient.keys()
    norm = float(torch.stack([g.norm() for g in whole_gradient.values()]).norm())
    assert norm > 1e-5
    apart = float(torch.stack([(gradient[name] - g).norm() for name, g in whole_gradient.items()]).norm())
    assert apart <= tolerance * norm


@pytest.fixture(scope="module", params=["packed", "padded"])
def scorer(request: pytest.FixtureRequest, random_folder: Path) -> rl.Scorer:
    learner = split.make_learner(str(random_folder), split.make_stage(batching=request.param))
    return rl.Scorer(learner, (), 1.0, split.GROUP, split.WHOLE)


@pytest.fixture(scope="module")
def rollouts(scorer: rl.Scorer) -> list[Rollout]:
    return split.make_rollouts(scorer)


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1)), objective=st.sampled_from(OBJECTIVES)
)
def test_any_partition_has_the_loss_and_gradient_of_the_whole(
    scorer: rl.Scorer,
    rollouts: list[Rollout],
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    cuts: set[int],
    objective: dict[str, Any],
) -> None:
    stage, out = split.make_stage(**objective), tmp_path_factory.getbasetemp()
    ends = [0, *sorted(cuts), ROWS]
    parts = [(list(order[a:b]), 1.0) for a, b in pairwise(ends)]
    found = split.gradients(stage, scorer, rollouts, parts, out)
    _assert_equal(found, split.gradients(stage, scorer, rollouts, [(list(range(ROWS)), 1.0)], out))


@pytest.mark.parametrize("tokens", [1, 15, 24, 60, 200])
def test_a_pass_holds_what_fits_and_at_least_one_reply(
    scorer: rl.Scorer, rollouts: list[Rollout], tokens: int, tmp_path: Path
) -> None:
    packed = scorer.learner.packed
    small = rl.Scorer(scorer.learner, (), 1.0, split.GROUP, tokens)
    parts = rl.split_rows(range(ROWS), rollouts, small)
    trained = [i for i in range(ROWS) if any(rollouts[i].free)]
    assert sorted(i for part, _ in parts for i in part) == trained
    assert len(trained) == ROWS - 1
    for part, weight in parts:
        sizes = [len(rollouts[i].completion.token_ids) for i in part]
        prompts = (
            [len(rollouts[i].prompt) for i in part] if packed else [len(p) for p in {rollouts[i].prompt for i in part}]
        )
        held = sum(prompts) + (sum(sizes) if packed else 0)
        assert weight == 1.0
        assert len(part) == 1 or held <= tokens
    stage = split.make_stage()
    found = split.gradients(stage, small, rollouts, parts, tmp_path)
    _assert_equal(found, split.gradients(stage, scorer, rollouts, [(list(range(ROWS)), 1.0)], tmp_path))


def test_old_logprobs_are_the_same_in_every_split(scorer: rl.Scorer, rollouts: list[Rollout]) -> None:
    whole = rl.reread(scorer, rollouts, range(ROWS))
    single = rl.reread(rl.Scorer(scorer.learner, (), 1.0, split.GROUP, split.SINGLE), rollouts, range(ROWS))
    for a, b in zip(whole, single, strict=True):
        assert a.old == pytest.approx(b.old, rel=1e-6, abs=1e-6)


def test_two_ranks_have_the_gradient_of_one_in_every_split(random_folder: Path, tmp_path: Path) -> None:
    """The ranks have different numbers of replies in a pass, and of passes."""
    script = str(Path(split.__file__))
    for ranks in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks > 1 else []
        command = [sys.executable, *torchrun, script, str(random_folder), str(tmp_path)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / f"ranks-{ranks}.pt", weights_only=False) for ranks in (1, 2))
    for key, expected in one.items():
        _assert_equal(two[key], expected, 2e-5)  # two ranks compute in float32
        _assert_equal(two[key], two[key[0], split.WHOLE], 2e-6)
