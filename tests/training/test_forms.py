"""The same learning by other means: accumulated, packed, in chunks, computed twice, by adapters, in a half type."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_stages import coin
from torch import Tensor

from xreasoner.data.packing import Tokens, flat, hidden_states, pad, ready_to_pack
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.attention import Documents
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import Loaded, load
from xreasoner.models.lora import adapt, merged
from xreasoner.recipe import LoRA, RLStage, SFTStage
from xreasoner.training import losses, rl
from xreasoner.training.common import Learner, StepContext, make_optimiser, ready, update
from xreasoner.training.rollouts import Asking
from xreasoner.training.run import rl_data, run_stage
from xreasoner.training.sft import _accumulate, train_sft

CONTEXT = StepContext("stage", 1, Path())
ROWS = [Tokens(tuple(range(30, 30 + length)), length // 3) for length in (9, 40, 21, 33, 12, 27, 60, 15)]


def _stage(folder: Path, **changes: Any) -> SFTStage:
    stage = coin(folder, folder, sft={"checkpoint_seconds": 1000, **changes}).stages[0]
    assert isinstance(stage, SFTStage)
    return stage


def _curve(stage: SFTStage, model: Path, out: Path) -> list[float]:
    loaded = load(str(model))
    freeze(loaded.model)
    found: list[float] = []
    out.mkdir()
    train_sft(stage, ready(stage, loaded), ROWS, out, 0, lambda _, __, ___, metrics: found.append(metrics["loss"]))
    return found


def test_accumulation_and_packing_change_no_curve(random_folder: Path, tmp_path: Path) -> None:
    """Fifty steps in float32: whole batches, parts of each, packed rows whose layers are computed twice."""
    changes: dict[str, dict[str, Any]] = {
        "whole": {},
        "parts": {"chunk_tokens": 80},
        "packed, in parts, computed twice": {
            "batching": "packed",
            "chunk_tokens": 80,
            "activation_checkpointing": True,
        },
    }
    curves = {}
    for name, change in changes.items():
        settings = {"epochs": 50, "batch_examples": 8, "optimiser": {"lr": 1e-4}, **change}
        curves[name] = _curve(_stage(tmp_path, **settings), random_folder, tmp_path / name)
    assert len(curves["whole"]) == 50
    assert curves["whole"][-1] < 0.9 * curves["whole"][0]
    for name, curve in curves.items():
        assert curve == pytest.approx(curves["whole"], rel=1e-5), name


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of logits are made at a time."""
    found: list[int] = []
    linear = F.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append(x.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr(losses.F, "linear", counting)
    return found


@pytest.mark.parametrize("frozen", [False, True])
def test_cross_entropy_in_chunks_is_that_of_the_whole(counted: list[int], frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(37, 8, generator=generator), torch.randn(50, 8, generator=generator)
    target = torch.randint(50, (37,), generator=generator)
    found = []
    for most in (10**6, 7 * 50):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        counted.clear()
        loss = losses.linear_cross_entropy(h, w, target, most)
        (3 * loss).backward()
        assert max(counted) == min(37, most // 50)
        found.append((loss.detach(), h.grad, w.grad))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)


def test_the_cost_of_packed_attention_is_not_quadratic_in_the_row(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_to_pack(loaded.model)
    scores: list[int] = []
    attend = F.scaled_dot_product_attention

    def counting(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        scores.append(q.shape[1] * q.shape[2] * k.shape[2])
        return attend(q, k, v, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)

    def cost(lengths: list[int]) -> int:
        scores.clear()
        hidden_states(
            loaded.model, torch.zeros(1, sum(lengths), dtype=torch.long), Documents.of(lengths, loaded.device)
        )
        return sum(scores)

    assert 0 < cost([64] * 8) == 8 * cost([64])
    assert cost([512]) == 64 * cost([64])


def test_a_packed_row_is_its_documents_alone(loaded: Loaded) -> None:
    ids = [list(range(5, 45)), list(range(7, 20)), list(range(9, 90))]
    ready_to_pack(loaded.model)
    documents = Documents.of([len(row) for row in ids], loaded.device)
    packed = hidden_states(loaded.model, flat(ids, loaded.device), documents)[0].split([len(row) for row in ids])
    for row, found in zip(ids, packed, strict=True):
        torch.testing.assert_close(found, hidden_states(loaded.model, pad([row], loaded.device))[0], atol=1e-4, rtol=0)


def _gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_rl_learns_the_same_from_packed_replies(random_folder: Path, tmp_path: Path) -> None:
    """Also with layers computed twice, and with logits in chunks."""
    stage = coin(tmp_path, tmp_path).stages[1]
    assert isinstance(stage, RLStage)
    loaded = load(str(random_folder))
    freeze(loaded.model)
    engine = TorchEngine(loaded)
    rollouts = Asking(stage, loaded, [], 0).roll_out(engine, rl_data(stage, 0)[0][:3], step=0)
    weight_B1 = torch.linspace(-1, 1, len(rollouts))[:, None]
    found = []
    for changes in (
        {},
        {"batching": "packed"},
        {"batching": "packed", "activation_checkpointing": True},
        {"most": 5000},
    ):
        few = changes.pop("most", None)
        learner = ready(stage.model_copy(update=changes), loaded)
        if few:
            learner = FewLogits(learner.loaded, learner.replica, None, learner.packed, learner.precision)
        loaded.model.train()
        scored = rl.Scorer(learner, engine.banned, 1.0, stage.group_size, stage.chunk_tokens)(rollouts)
        (scored.logprob * weight_B1).sum().backward()
        found.append((scored, _gradients(loaded.model)))
        loaded.model.gradient_checkpointing_disable()
    for scored, gradients in found[1:]:
        torch.testing.assert_close(scored.logprob, found[0][0].logprob, atol=1e-4, rtol=0)
        torch.testing.assert_close(scored.entropy, found[0][0].entropy, atol=1e-4, rtol=0)
        for name, gradient in gradients.items():
            other = found[0][1][name]
            torch.testing.assert_close(gradient, other, atol=5e-5 * float(other.abs().max()) + 1e-6, rtol=0)


def test_a_shared_prompts_gradient_is_summed_in_one_order(loaded: Loaded) -> None:
    """That of `keys[rows]` is summed by atomic adds, so that with two threads no two runs ended alike."""
    ids_BR = torch.arange(24).view(6, 4) + 300
    states = rl.reply_states(loaded.model, [[5, 6, 7], [8, 9]], ids_BR, [4, 2, 3, 4, 1, 2], [0, 0, 0, 1, 1, 1], 3)
    waiting, seen = [states.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "IndexSelectBackward0" in names
    assert "IndexBackward0" not in names


def test_places_of_groups_that_teach_nothing_are_filled_again(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly greedy, all replies of a group are alike: every round is asked for, with problems not yet drawn.

    Nothing is computed of such groups, not even the log-probabilities at this temperature.
    """
    monkeypatch.setattr(rl.Scorer, "__call__", lambda *_: pytest.fail("a pass over groups that are dropped"))
    loaded = load(str(random_folder))
    engine = TorchEngine(loaded)
    for refills, temperature in ((2, 1e-4), (0, 1e-4)):
        changes = {"refills": refills, "temperature": temperature, "prompts_per_step": 3}
        stage = coin(tmp_path, tmp_path, rl=changes).stages[1]
        assert isinstance(stage, RLStage)
        rollouts, drawn = Asking(stage, loaded, rl_data(stage, 0)[0], 0).fill(engine, step=0, drawn=4)
        assert drawn == 4 + 3 * (1 + refills)
        assert len(rollouts) == 3 * (1 + refills) * stage.group_size
        found = rl.describe(stage, rollouts)
        assert (found["zero_variance"], found["groups"]) == (1.0, 3 * (1 + refills))
        learner = ready(stage, loaded)
        optimiser = make_optimiser(learner.model, stage.optimiser)
        assert rl.improve(stage, learner, optimiser, rollouts, engine.banned, 1e-3, Random(0), CONTEXT) == {}


@pytest.mark.parametrize("policy", ["keep", "mask", "penalise"])
def test_overlong_replies_follow_the_policy(random_folder: Path, tmp_path: Path, policy: str) -> None:
    buffer = 8 if policy == "penalise" else 0
    changes = {"overlong": policy, "overlong_buffer": buffer, "thinking_budget": 4, "answer_budget": 4}
    stage = coin(tmp_path, tmp_path, rl=changes).stages[1]
    assert isinstance(stage, RLStage)
    loaded = load(str(random_folder))
    rollouts = Asking(stage, loaded, [], 0).roll_out(TorchEngine(loaded), rl_data(stage, 0)[0][:1], step=3)
    cut = [rollout for rollout in rollouts if rollout.completion.exit == "truncated"]
    assert cut
    for rollout in cut:
        assert any(rollout.free) == (policy != "mask")
        assert rollout.reward == pytest.approx(0.0 if policy != "penalise" else -len(rollout.free) / 8)
        assert rollout.completion.version == 3


class FewLogits(Learner):
    def most_logits(self) -> int:
        return 5000


def test_adapters_alone_move_and_the_export_holds_them_merged(random_folder: Path, tmp_path: Path) -> None:
    recipe = coin(random_folder, tmp_path, sft={"lora": {"rank": 4, "alpha": 16}, "epochs": 8})
    run_stage(recipe, recipe.stages[0], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    base, tuned = (load(str(folder)).model.state_dict() for folder in (random_folder, tmp_path / "sft" / "export"))
    assert base.keys() == tuned.keys()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved
    assert all("language_model.layers" in name and "_proj.weight" in name for name in moved)
    change = (tuned[min(moved)] - base[min(moved)]).double()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 4


def test_merging_changes_no_logit(loaded: Loaded) -> None:
    adapt(loaded.model, LoRA(rank=4))
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    ids = torch.tensor([list(range(20, 60))])
    before = hidden_states(loaded.model, ids)
    plain = merged(loaded.model)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]
    torch.testing.assert_close(hidden_states(plain, ids), before, atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden_states(loaded.model, ids), before, atol=0, rtol=0)


def test_half_precision_keeps_masters_and_moments_whole(random_folder: Path, tmp_path: Path) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        stage = _stage(tmp_path, precision=precision)
        loaded = load(str(random_folder))
        freeze(loaded.model)
        learner = ready(stage, loaded)
        optimiser = make_optimiser(loaded.model, stage.optimiser)
        found.append(_accumulate(stage, learner, ROWS, CONTEXT)["loss"])
        update(loaded.model, optimiser, 1e-4, 1.0, CONTEXT, (), None)
        kinds = {parameter.dtype for parameter in loaded.model.parameters()}
        kinds |= {state["exp_avg"].dtype for state in optimiser.state.values()}
        assert kinds == {torch.float32}
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], rel=2e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
def test_compiled_layers_learn_the_same(random_folder: Path, tmp_path: Path) -> None:
    settings = {"epochs": 5, "batch_examples": 8, "optimiser": {"lr": 1e-4}}
    plain = _curve(_stage(tmp_path, **settings), random_folder, tmp_path / "plain")
    compiled = _curve(_stage(tmp_path, compile=True, **settings), random_folder, tmp_path / "compiled")
    assert compiled == pytest.approx(plain, rel=1e-4)
