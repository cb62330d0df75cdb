"""What a step of RL learns from: the groups that count, forced and long replies, old log-probabilities, idle steps."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from test_stages import coin

from xreasoner.completion import Completion
from xreasoner.engines.base import Request
from xreasoner.errors import NonFiniteError, RecipeError, TrainingError
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import Loaded, load
from xreasoner.problem import Problem
from xreasoner.recipe import RLStage, load_recipe
from xreasoner.training import rl
from xreasoner.training.common import Learner, StepContext, make_optimiser, ready
from xreasoner.training.rollouts import Rollout, judged
from xreasoner.training.run import run_recipe, run_stage
from xreasoner.verdict import Verdict

GROUP = 4
MIXED, WRONG, RIGHT = (1, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1)
PROBLEM = Problem("p", "What is 1 + 1?", "2", "integer")
BUDGETS = {"thinking_budget": 8, "answer_budget": 8}


def _stage(folder: Path, **changes: Any) -> RLStage:
    settings = {"group_size": GROUP, "minibatches": 1, "prompts_per_step": 4, "checkpoint_seconds": 1000, **changes}
    stage = coin(folder, folder, rl=settings).stages[1]
    assert isinstance(stage, RLStage)
    return stage


def _rollouts(scorer: rl.Scorer, groups: list[tuple[int, ...]], shaped: float = 0.0) -> list[Rollout]:
    """Replies of four tokens; shaped: what each further reply of a group loses in reward."""
    found = []
    for accuracies in groups:
        for k, accuracy in enumerate(accuracies):
            ids = tuple(300 + (3 * k + j) % 50 for j in range(4))
            reply = _completion("", ids, (False,) * 4)
            verdict = Verdict("correct" if accuracy else "wrong")
            reward = accuracy - shaped * k
            found.append(Rollout((5, 6, 7), reply, verdict, reward, (0.0,) * 4, (True,) * 4, float(accuracy)))
    with torch.no_grad():
        logprob_BR = scorer(found).plain
    return [
        replace(one, old=tuple(row), completion=replace(one.completion, logprobs=tuple(row)))
        for one, row in zip(found, logprob_BR.tolist(), strict=True)
    ]


def _completion(text: str, ids: tuple[int, ...], forced: tuple[bool, ...]) -> Completion:
    return Completion(
        text=text,
        token_ids=ids,
        logprobs=(0.0,) * len(ids),
        forced=forced,
        thought="",
        answer="",
        exit="forced" if any(forced) else "natural",
        prompt_tokens=3,
        thought_tokens=0,
        answer_tokens=0,
    )


def _update(
    model: Path, stage: RLStage, groups: list[tuple[int, ...]], out: Path, shaped: float = 0.0, learner: Any = None
) -> dict[str, float]:
    """The metrics of one update on a fresh model; the gradient's norm is that before clipping."""
    learner = learner or _learner(model, stage)
    rollouts = _rollouts(rl.Scorer(learner, (), 1.0, GROUP, 8192), groups, shaped)
    optimiser = make_optimiser(learner.model, stage.optimiser)
    return rl.improve(stage, learner, optimiser, rollouts, (), 1e-4, Random(0), StepContext("rl", 1, out))


def _learner(model: Path, stage: RLStage) -> Learner:
    loaded = load(str(model))
    freeze(loaded.model)
    return ready(stage, loaded)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_group_that_teaches_nothing_keeps_its_place_in_the_denominator(
    random_folder: Path, tmp_path: Path, aggregation: str
) -> None:
    """One mixed group of four takes a quarter of a step, as in TRL and verl, whether the others are computed or not."""

    def norm(groups: list[tuple[int, ...]], **changes: Any) -> float:
        return _update(random_folder, _stage(tmp_path, aggregation=aggregation, **changes), groups, tmp_path)[
            "grad_norm"
        ]

    alone = norm([MIXED], prompts_per_step=1)
    among = norm([WRONG, MIXED, RIGHT, WRONG])
    assert among == pytest.approx(alone / 4, rel=1e-4)
    assert norm([WRONG, MIXED, RIGHT, WRONG], drop_zero_variance=False) == pytest.approx(among, rel=1e-4)
    # refilled places are taken by groups that teach: of six that were drawn for two places, two count
    refilled = [WRONG, MIXED, RIGHT, MIXED, WRONG, WRONG]
    both = norm([MIXED, MIXED], prompts_per_step=2)
    assert both > 1.5 * among
    stage = _stage(tmp_path, prompts_per_step=2, refills=2)
    idle = torch.tensor([group != MIXED for group in refilled])
    assert rl.step_groups(stage, idle) == [1, 3]
    assert rl.step_groups(_stage(tmp_path, prompts_per_step=3, refills=1), idle) == [0, 1, 3]  # one place stayed idle


def test_penalties_among_wrong_replies_teach_nothing(random_folder: Path, tmp_path: Path) -> None:
    """Divided by their tiny deviation, penalties of a thousandth used to be advantages of almost 2."""
    for stage, learns in ((_stage(tmp_path), False), (_stage(tmp_path, drop_zero_variance=False), True)):
        found = _update(random_folder, stage, [WRONG, WRONG, RIGHT, WRONG], tmp_path, shaped=0.001)
        assert bool(found) == learns


def test_groups_without_an_advantage_stay_in_the_kl_term(random_folder: Path, tmp_path: Path) -> None:
    """Their tokens pull towards the reference like all others."""
    stage = _stage(tmp_path, kl=1.0, kl_estimator="k2")
    learner = _learner(random_folder, stage)
    with torch.no_grad():
        learner.model.model.language_model.norm.weight *= 1.1
    found = _update(random_folder, stage, [WRONG, RIGHT, WRONG, WRONG], tmp_path, learner=learner)
    assert found["kl"] > 0
    assert found["grad_norm"] > 0
    assert found["loss"] == pytest.approx(found["kl"], rel=1e-4)


def test_half_precision_starts_at_a_ratio_of_one(random_folder: Path, tmp_path: Path) -> None:
    """The engine samples in float32: its log-probabilities are not the bfloat16 trainer's old ones."""
    settings = {"precision": "bfloat16", "ratio": "sequence", "aggregation": "sequence", "epsilon_low": 3e-4}
    stage = _stage(tmp_path, epsilon_high=4e-4, **settings)
    learner = _learner(random_folder, stage)
    exact = Learner(learner.loaded, learner.replica, None, learner.packed, "float32")
    rollouts = _rollouts(rl.Scorer(exact, (), 1.0, GROUP, 8192), [MIXED] * 4)
    optimiser = make_optimiser(learner.model, stage.optimiser)
    found = rl.improve(stage, learner, optimiser, rollouts, (), 1e-4, Random(0), StepContext("rl", 1, tmp_path))
    assert found["logprob_gap"] > 1e-4
    assert found["ratio_max"] == 1.0
    assert found["clip_low"] == found["clip_high"] == 0.0


@pytest.mark.parametrize(
    ("changes", "recomputed"),
    [
        ({}, False),
        ({"precision": "bfloat16"}, True),
        ({"rollouts": {"urls": ["http://node1:8000/v1"]}}, True),
        ({"temperature": 0.5}, True),
        ({"correction": "token"}, True),
    ],
)
def test_old_logprobs_are_recomputed_where_the_engine_computes_otherwise(
    tmp_path: Path, changes: dict[str, Any], recomputed: bool
) -> None:
    assert _stage(tmp_path, **changes).recomputes_old_logprobs == recomputed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ratio=sequence", "ratio: sequence .* set aggregation: sequence"),
        ("dual_clip=1.1", r"dual_clip: found 1\.1, expected more than 1 \+ epsilon_high.* set dual_clip: 3\.0"),
        ("refills=1 drop_zero_variance=false", "refills: 1 .* set drop_zero_variance: true"),
        ("minibatches=33", "minibatches: found 33, expected at most prompts_per_step, 32"),
        ("forced=drop", "forced"),
        ("max_idle_steps=0", "max_idle_steps"),
    ],
)
def test_objectives_that_contradict_each_other_are_refused_with_the_fix(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [f"stages.sft+rl.{part}" for part in change.split()])


RIGHT_AFTER_EXIT = "<think> so so so </think> <answer>2</answer>"


@pytest.mark.parametrize(
    ("forced", "reward", "trained"),
    [
        ("keep", 1.0, [True, True, True, False, False, True, True]),
        ("zero", 0.0, [True, True, True, False, False, True, True]),
        ("mask", 1.0, [False, False, False, False, False, True, True]),
    ],
)
def test_a_right_answer_after_a_forced_exit(
    loaded: Loaded, tmp_path: Path, forced: str, reward: float, trained: list[bool]
) -> None:
    """Kept as it is, it reinforces a thought that never ends."""
    completion = _completion(RIGHT_AFTER_EXIT, tuple(range(7)), (False,) * 3 + (True,) * 2 + (False,) * 2)
    request = Request([{"role": "user", "content": "1 + 1"}])
    found = judged(_stage(tmp_path, forced=forced), loaded, PROBLEM, request, completion)
    assert (found.reward, found.accuracy, list(found.free)) == (reward, reward, trained)
    natural = _completion(RIGHT_AFTER_EXIT, tuple(range(7)), (False,) * 7)
    found = judged(_stage(tmp_path, forced=forced), loaded, PROBLEM, request, natural)
    assert (found.reward, all(found.free)) == (1.0, True)


@pytest.mark.parametrize("buffer", [2, 12])
def test_forced_replies_pay_for_their_length(loaded: Loaded, tmp_path: Path, buffer: int) -> None:
    """A short forced answer does not make a thought short that had to be closed, however small the buffer is."""
    stage = _stage(tmp_path, overlong="penalise", overlong_buffer=buffer, forced="keep", **BUDGETS)
    request = Request([{"role": "user", "content": "1 + 1"}])
    forced = _completion(RIGHT_AFTER_EXIT, tuple(range(10)), (False,) * 8 + (True,) + (False,))
    assert judged(stage, loaded, PROBLEM, request, forced).reward == 0.0
    short = _completion(RIGHT_AFTER_EXIT, tuple(range(4)), (False,) * 4)
    assert judged(stage, loaded, PROBLEM, request, short).reward == 1.0


def _hopeless(model: Path, folder: Path, **changes: Any) -> Any:
    """The coin's RL stage on a random model, which never answers within its budgets."""
    settings = {"from": "base", "steps": 6, "prompts_per_step": 2, "group_size": 2, "minibatches": 1, **BUDGETS}
    whole = coin(model, folder, rl={**settings, "checkpoint_seconds": 1000, **changes})
    return whole.model_copy(update={"stages": whole.stages[1:]})


def test_a_run_in_which_no_group_varies_warns_at_once_and_stops(random_folder: Path, tmp_path: Path) -> None:
    recipe = _hopeless(random_folder, tmp_path, max_idle_steps=2)
    warned = r"stage rl, step 1: no group has both right and wrong replies.* stops after 2 such steps"
    stopped = r"last 2 steps, so RL cannot learn; .*\. Step 2 is saved.* --set stages\.rl\.max_idle_steps=6"
    with pytest.warns(UserWarning, match=warned), pytest.raises(TrainingError, match=stopped):
        run_stage(recipe, recipe.stages[0], tmp_path)
    # a longer patience is no other recipe: the same run resumes where it stopped
    longer = _hopeless(random_folder, tmp_path, max_idle_steps=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was warned of already
        run_recipe(longer, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "grad_norm" not in lines[0]


@pytest.mark.parametrize(
    ("outcome", "exit", "expected"),
    [
        ("correct", "natural", "every reply is right"),
        ("correct", "forced", "right after a forced exit alone"),
        ("wrong", "natural", "every reply is wrong"),
        ("unparsed", "natural", "100% of the replies hold no answer"),
        ("error", "natural", "100% of the replies cannot be graded"),
    ],
)
def test_an_idle_step_says_what_its_replies_have_in_common(
    tmp_path: Path, outcome: Any, exit: Any, expected: str
) -> None:
    stage = _stage(tmp_path)
    completion = replace(_completion("", (1,), (exit == "forced",)), exit=exit)
    rollouts = [Rollout((1,), completion, Verdict(outcome), 0.0, (0.0,), (True,), 0.0)] * GROUP
    assert expected in rl.idle_cause(stage, rl.describe(stage, rollouts))


def test_numbers_that_are_not_finite_stop_the_step_and_are_named(random_folder: Path, tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    learner = _learner(random_folder, stage)
    rollouts = _rollouts(rl.Scorer(learner, (), 1.0, GROUP, 8192), [MIXED] * 4)
    optimiser = make_optimiser(learner.model, stage.optimiser)

    def stopped(rollouts: list[Rollout]) -> str:
        before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
        context = StepContext("rl", 7, tmp_path, saved=5)
        with pytest.raises(NonFiniteError) as error:
            rl.improve(stage, learner, optimiser, rollouts, (), 1e-4, Random(0), context)
        moved = [n for n, p in learner.model.named_parameters() if not torch.equal(before[n], p) and p.isfinite().all()]
        assert not moved
        return str(error.value)

    reply = replace(rollouts[5].completion, logprobs=(0.0, math.nan, 0.0, 0.0))
    message = stopped([*rollouts[:5], replace(rollouts[5], completion=reply), *rollouts[6:]])
    assert "stage rl, step 7: non-finite log-probabilities from the engine (micro-batch rows 5; saved" in message
    assert "the weights are finite" in message
    assert "the checkpoint of step 5 is kept" in message
    assert (tmp_path / "offending-batch.pt").exists()
    message = stopped([replace(rollout, old=(math.inf,) * 4) for rollout in rollouts])
    assert "non-finite old log-probabilities" in message
    with torch.no_grad():
        learner.model.model.language_model.layers[1].mlp.gate_proj.weight[0, 0] = torch.nan
    message = stopped(rollouts)
    assert "non-finite log-probabilities (" in message
    assert "layers.1.mlp.gate_proj.weight is not finite" in message
