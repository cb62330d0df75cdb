"""Both stages on a random model: frozen means frozen, nothing leaks, and a stopped run ends as an unbroken one.

The problem is a coin: SFT teaches the random model the form of a reply and that its answer is 1 or 2, one time in
two each; RL is told that 1 is right. So rewards differ inside a group, and RL has something to find.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from xreasoner.data.packing import hidden_states
from xreasoner.demo import claim
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import NonFiniteError, RecipeError, UserError
from xreasoner.evaluating import evaluate_stage
from xreasoner.models.freezing import fingerprint
from xreasoner.models.loading import Loaded, load
from xreasoner.problem import Problem
from xreasoner.reasoner import Reasoner
from xreasoner.reasoner_settings import read_reasoner_settings
from xreasoner.recipe import AdamW, DataEntry, Evaluation, LoRA, Recipe, RLStage, SFTStage, _Part, load_recipe
from xreasoner.showing import shown
from xreasoner.training import checkpoints, rl
from xreasoner.training.common import StepContext, make_optimiser, rate, ready, uninterrupted
from xreasoner.training.rollouts import Asking, Rollout
from xreasoner.training.run import check, known_sources, rl_data, run_recipe, run_stage, sft_examples

PARTS = (Recipe, SFTStage, RLStage, Evaluation, AdamW, LoRA, DataEntry)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def coin(model: Path, folder: Path, *, sft: dict[str, Any] | None = None, rl: dict[str, Any] | None = None) -> Recipe:
    """The recipe of the coin, with changes to its stages; its data lie in the folder."""
    path = folder / "coin.jsonl"
    rows = [(ask, side) for ask in ("it", "so") for side in (1, 2)] * 2
    path.write_text(
        "".join(
            json.dumps(
                {
                    "question": f"Say {ask}.",
                    "gold": "1",
                    "answer_type": "integer",
                    "response": f"<think> {side} </think> <answer>{side}</answer>",
                }
            )
            + "\n"
            for ask, side in rows
        )
    )
    shared: dict[str, Any] = {"prompt": "brief", "data": [{"source": "jsonl", "n": 8, "options": {"path": str(path)}}]}
    first = {"epochs": 12, "batch_examples": 5, "optimiser": {"lr": 1e-3, "schedule": "constant"}}
    second = {
        "steps": 4,
        "prompts_per_step": 4,
        "minibatches": 2,
        "thinking_budget": 12,
        "answer_budget": 16,
        "optimiser": {"lr": 3e-4, "schedule": "constant"},
    }
    evaluation = {"benches": ["tiny-text-general"], "reading": ["tiny-read-text-general"], "n": 1}
    budgets = {"thinking_budget": 8, "answer_budget": 8}
    return Recipe.model_validate(
        {
            "name": "coin",
            "model": str(model),
            "stages": [
                {**shared, "name": "sft", "kind": "sft", "checkpoint_seconds": 1e-6, **first, **(sft or {})},
                {**shared, "name": "rl", "kind": "rl", "checkpoint_seconds": 1e-6, **second, **(rl or {})},
            ],
            "evaluation": {**evaluation, **budgets},
        }
    )


def other(model: Path, folder: Path) -> Recipe:
    """The coin by what the first one leaves off: adapters, packed rows, layers computed twice, corrections."""
    shared = {"lora": {"rank": 4, "alpha": 8}, "batching": "packed", "activation_checkpointing": True}
    sft = {**shared, "epochs": 2, "checkpoints_kept": 1, "chunk_tokens": 256}
    settings = {"correction": "token", "overlong": "penalise", "overlong_buffer": 4, "refills": 1, "kl": 0.01}
    return coin(model, folder, sft=sft, rl={**shared, **settings, "steps": 2, "kl_estimator": "k2", "minibatches": 1})


@contextmanager
def recorded() -> Iterator[set[tuple[type, str]]]:
    """The fields of recipes that code reads inside the block."""
    found: set[tuple[type, str]] = set()

    def get(self: Any, name: str) -> Any:
        found.add((type(self), name))
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Part, "__getattribute__", get)
        yield found


@pytest.fixture(scope="module")
def unbroken(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[tuple[type, str]]]:
    """The folder of a whole run, and the recipe's fields that were read for it."""
    out = tmp_path_factory.mktemp("unbroken")
    recipe = coin(random_folder, out)
    with recorded() as read:
        recipe.model_dump_json()
        # writing a recipe down reads nothing but what tells the stages apart
        assert {name for kind, name in read if name in kind.model_fields} == {"kind"}
        next(shown(recipe))  # its title; what else is shown or planned must be read by training too
        run_recipe(recipe, out)
        with pytest.warns(UserWarning, match=r"step 1: no group has both .* replies are truncated: raise thinking_b"):
            run_recipe(other(random_folder, out), out / "other")
        evaluate_stage(recipe, recipe.stages[-1], out, _show)
    return out, read


def _show(task: str, done: int, total: int, note: str = "") -> None: ...


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(str(folder)).model.state_dict()
    return found


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_field_of_a_recipe_is_read(unbroken: tuple[Path, set[tuple[type, str]]]) -> None:
    unread = [
        f"{part.__name__}.{name}" for part in PARTS for name in part.model_fields if (part, name) not in unbroken[1]
    ]
    assert not unread


def test_both_stages_learn_and_the_tower_stays(unbroken: tuple[Path, Any], random_folder: Path) -> None:
    out = unbroken[0]
    base, sft, rl_ = _weights(random_folder), _weights(out / "sft" / "export"), _weights(out / "rl" / "export")
    for before, after in ((base, sft), (sft, rl_)):
        assert all(torch.equal(before[name], after[name]) for name in base if "visual" in name)
        assert any(not torch.equal(before[name], after[name]) for name in base if "visual" not in name)
    losses = [line["loss"] for line in _metrics(out / "sft")]
    assert losses[-1] < 0.2 * losses[0]
    rewards = [line["reward"] for line in _metrics(out / "rl")]
    assert max(rewards[1:]) > rewards[0] + 0.1
    assert all(line["logprob_gap"] < 1e-4 for line in _metrics(out / "rl"))
    for stage in ("sft", "rl"):
        manifest = json.loads((out / stage / "manifest.json").read_text())
        assert manifest["frozen"]["before"] == manifest["frozen"]["after"]
        assert (manifest["pictures"], manifest["domains"], manifest["done"]) == (0, ["general"], True)
        assert len(manifest["data_sha256"]) == len(manifest["template_sha256"]) == 64
    with pytest.raises(UserError, match="another recipe"):
        run_recipe(coin(random_folder, out, sft={"batch_examples": 2}), out)


def test_every_export_says_how_it_is_asked_and_what_it_comes_from(
    unbroken: tuple[Path, Any], random_folder: Path, tmp_path: Path
) -> None:
    out = unbroken[0]
    sft, rl_ = (read_reasoner_settings(out / stage / "export") for stage in ("sft", "rl"))
    assert sft is not None
    assert rl_ is not None
    for settings, stage in ((sft, "sft"), (rl_, "rl")):
        assert (settings.prompt, settings.thinking_budget, settings.answer_budget) == ("brief", 8, 8)
        weights = fingerprint(sorted(load(str(out / stage / "export")).model.state_dict().items()))
        assert (settings.provenance["stage"], settings.provenance["weights_sha256"]) == (stage, weights)
        assert settings.provenance["recipe"]["name"] == "coin"
        base = fingerprint(sorted(load(str(random_folder)).model.state_dict().items()))
        assert settings.provenance["base"] == {"model": str(random_folder), "revision": None, "weights_sha256": base}
    assert sft.provenance["recipe"] == rl_.provenance["recipe"]
    assert rl_.provenance["parent"] == {"stage": "sft", "weights_sha256": sft.provenance["weights_sha256"]}
    lora = read_reasoner_settings(out / "other" / "sft" / "export")
    assert lora is not None
    assert lora.provenance["recipe"] != sft.provenance["recipe"]
    moved = shutil.copytree(out / "rl" / "export", tmp_path / "elsewhere")
    ours, theirs = Reasoner(str(moved)), Reasoner(str(out / "rl" / "export"))
    assert (ours.prompt, ours.sampling, ours.max_pixels) == (theirs.prompt, theirs.sampling, theirs.max_pixels)


def test_a_base_that_changed_under_a_run_is_not_trained_further(random_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(random_folder, tmp_path / "base"))
    recipe = coin(base, tmp_path, sft={"epochs": 1})
    with after_update(2, _kill), pytest.raises(Killed):
        run_stage(recipe, recipe.stages[0], tmp_path / "run")
    weights = base / "model.safetensors"
    state = load_file(weights)
    name = next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({**state, name: state[name] + 1e-3}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"was begun from other weights than .*base holds now"):
        run_stage(recipe, recipe.stages[0], tmp_path / "run")


@contextmanager
def after_update(at: int, act: Any) -> Iterator[None]:
    """Act in the midst of a step: its weights are new, its line and its checkpoint are not written."""
    count = iter(range(1, 1000))
    handle = register_optimizer_step_post_hook(lambda *_: act() if next(count) == at else None)
    try:
        yield
    finally:
        handle.remove()


def _kill() -> None:
    raise Killed


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_stopped_runs_end_as_unbroken_ones(unbroken: tuple[Path, Any], random_folder: Path, tmp_path: Path) -> None:
    whole, recipe = unbroken[0], coin(random_folder, unbroken[0])
    sft, grpo = recipe.stages
    for stage, at, act, expected in (
        (sft, 5, _kill, Killed),
        (sft, 4, _interrupt, KeyboardInterrupt),
        (sft, 0, None, None),
        (grpo, 3, _kill, Killed),  # between the two minibatches of the second step
        (grpo, 1, _interrupt, KeyboardInterrupt),
    ):
        with after_update(at, act), pytest.raises(expected) if expected else nullcontext():
            run_stage(recipe, stage, tmp_path)
        assert bool(list((tmp_path / stage.name / "checkpoints").glob("step-*"))) == (expected is not None)
    data = whole / "coin.jsonl"
    before = data.read_text()
    data.write_text(before.replace("Say it", "Say if"))
    with pytest.raises(UserError, match="other data"):
        run_recipe(recipe, tmp_path)
    data.write_text(before)
    run_recipe(recipe, tmp_path)
    for stage in ("sft", "rl"):
        ours, theirs = _weights(whole / stage / "export"), _weights(tmp_path / stage / "export")
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage
        clock = ("seconds", "rollout_seconds", "tokens_per_s")
        lines = [
            [{k: v for k, v in line.items() if k not in clock} for line in _metrics(run / stage)]
            for run in (whole, tmp_path)
        ]
        assert lines[0] == lines[1]


def test_a_run_goes_on_with_what_changes_no_result_alone(random_folder: Path, tmp_path: Path) -> None:
    servers = {"urls": ["http://node1:8000/v1"]}
    recipe = coin(random_folder, tmp_path, rl={"rollouts": servers})
    with after_update(1, _kill), pytest.raises(Killed):
        run_stage(recipe, recipe.stages[0], tmp_path)
    moved = {"rollouts": {"urls": ["http://node2:8000/v1"], "load_seconds": 5}}  # the queue gave another node
    how = {"checkpoint_seconds": 9.0, "checkpoints_kept": 3, "chunk_tokens": 512}
    run_stage(changed := coin(random_folder, tmp_path, sft=how, rl=moved), changed.stages[0], tmp_path)
    other = coin(random_folder, tmp_path, rl={"rollouts": servers, "temperature": 0.5})
    differ = r"another recipe \(stages\.1\.temperature: it was 1\.0, now 0\.5\)"
    with pytest.raises(UserError, match=differ):
        run_stage(other, other.stages[0], tmp_path)
    claim(recipe, tmp_path)
    claim(changed, tmp_path)
    with pytest.raises(UserError, match=differ):
        claim(other, tmp_path)


def test_a_later_stages_wrong_row_is_named_before_anything_is_trained(random_folder: Path, tmp_path: Path) -> None:
    recipe = coin(random_folder, tmp_path)
    known_sources(recipe, tmp_path)
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"question": "How many?", "gold": "1"}\n{"question": "Which?", "gold": "apple"}\n')
    for data, message in (("wrong", "wrong.jsonl:2: its gold cannot be judged"), ("empty", "empty.jsonl: is empty")):
        (tmp_path / "empty.jsonl").touch()
        entry = {"source": "rows", "n": 2, "options": {"path": str(tmp_path / f"{data}.jsonl")}}
        with pytest.raises(UserError, match=rf"^stages\.rl\.data\.0: .*{message}"):
            known_sources(coin(random_folder, tmp_path, rl={"data": [entry]}), tmp_path)


def test_what_is_too_long_is_left_out_aloud(random_folder: Path, tmp_path: Path) -> None:
    """One prompt that the model has no room for would stop the run in the step that draws it."""
    recipe = coin(random_folder, tmp_path, sft={"max_length": 110}, rl={"steps": 3, "prompts_per_step": 8})
    with (tmp_path / "coin.jsonl").open("a") as file:
        response = f"<think> {'so ' * 60} </think> <answer>1</answer>"
        row = {"question": "Say it.", "gold": "1", "answer_type": "integer", "response": response}
        file.write("".join(json.dumps(row | change) + "\n" for change in ({}, {"question": "so " * 3000})))
    changes = {"data": [{**recipe.stages[0].data[0].model_dump(), "n": 10}]}
    recipe = recipe.model_copy(
        update={"stages": tuple(type(s).model_validate({**s.model_dump(), **changes}) for s in recipe.stages)}
    )
    with pytest.warns(UserWarning, match="are longer than") as said:
        run_recipe(recipe, tmp_path)
    assert [str(line.message) for line in said] == [
        "stage sft: 2 of 10 examples are longer than max_length 110 and left out",
        "stage rl: 1 of 10 prompts are longer than max_prompt 2,048 or what the model takes and left out",
    ]
    lengths = json.loads((tmp_path / "rl" / "manifest.json").read_text())["lengths"]
    assert (lengths["total"], lengths["dropped"], len(_metrics(tmp_path / "rl"))) == (10, 1, 3)


def test_a_signal_waits_for_the_steps_end() -> None:
    done = []

    def step() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "change",
    [{"minibatches": 2, "kl": 0.1, "optimiser": {"lr": 0.01}}, {"temperature": 0.5, "minibatches": 1, "kl": 0.1}],
)
def test_the_ratio_starts_at_one(unbroken: tuple[Path, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    """Also at another temperature; and the gap to the engine is measured before the policy has moved."""
    stage = coin(tmp_path, tmp_path, rl=change).stages[1]
    assert isinstance(stage, RLStage)
    loaded = load(str(unbroken[0] / "sft" / "export"))
    engine, learner = TorchEngine(loaded), ready(stage, loaded)
    problems, _ = rl_data(stage, 0)
    sampled = Asking(stage, loaded, problems, 0).roll_out(engine, problems[:4], step=0)
    rollouts = [replace(rollout, reward=float(k % 2), accuracy=float(k % 2)) for k, rollout in enumerate(sampled)]
    optimiser = make_optimiser(loaded.model, stage.optimiser)
    found = rl.improve(
        stage, learner, optimiser, rollouts, engine.banned, 0.01, Random(0), StepContext("rl", 1, tmp_path)
    )
    assert found["grad_norm"] > 0
    assert found["logprob_gap"] < 1e-4
    assert (found["kl"] > 0) == (stage.minibatches == 2)  # one minibatch is scored before the policy has moved
    assert (abs(found["ratio_max"] - 1) < 1e-3) == (stage.minibatches == 1)


def _scorer(stage: RLStage, loaded: Loaded, engine: TorchEngine, group_size: int) -> rl.Scorer:
    return rl.Scorer(ready(stage, loaded), engine.banned, 1.0, group_size, stage.chunk_tokens)


def test_forced_tokens_are_out_of_the_loss(unbroken: tuple[Path, Any], tmp_path: Path) -> None:
    stage = coin(tmp_path, tmp_path, rl={"thinking_budget": 3}).stages[1]
    assert isinstance(stage, RLStage)
    loaded = load(str(unbroken[0] / "sft" / "export"))
    engine = TorchEngine(loaded)
    rollouts = Asking(stage, loaded, [], 0).roll_out(engine, rl_data(stage, 0)[0][:1], step=0)
    forced = [rollout for rollout in rollouts if rollout.completion.exit == "forced"]
    assert forced
    scored = _scorer(stage, loaded, engine, 1)(forced)
    for rollout, mask_R, logprob_R in zip(forced, scored.mask, scored.logprob, strict=True):
        length = len(rollout.completion.token_ids)
        assert mask_R[:length].tolist() == [not was for was in rollout.completion.forced]
        assert not mask_R[length:].any()
        expected = torch.tensor(rollout.completion.logprobs)
        torch.testing.assert_close(logprob_R[:length].detach(), expected, atol=1e-4, rtol=0)


def test_a_prompt_computed_once_gives_the_gradient_of_one_computed_for_each_reply(
    unbroken: tuple[Path, Any], tmp_path: Path
) -> None:
    stage = coin(tmp_path, tmp_path).stages[1]
    assert isinstance(stage, RLStage)
    loaded = load(str(unbroken[0] / "sft" / "export"))
    engine = TorchEngine(loaded)
    rollouts = Asking(stage, loaded, [], 0).roll_out(engine, rl_data(stage, 0)[0][:3], step=0)
    assert len({len(rollout.completion.token_ids) for rollout in rollouts}) > 1
    rollouts += [_cut(rollout, 1) for rollout in rollouts[: stage.group_size]]
    names = [name for name, parameter in loaded.model.named_parameters() if "visual" not in name]

    def gradient() -> list[torch.Tensor]:
        found = [parameter.grad.clone() for n, parameter in loaded.model.named_parameters() if n in names]
        loaded.model.zero_grad()
        return found

    weight_B1 = torch.linspace(-1, 1, len(rollouts))[:, None]
    (_scorer(stage, loaded, engine, stage.group_size)(rollouts).logprob * weight_B1).sum().backward()
    shared = gradient()
    for weight, rollout in zip(weight_B1, rollouts, strict=True):
        ids_1T = torch.tensor([rollout.prompt + rollout.completion.token_ids])
        logits_TV = loaded.model.lm_head(hidden_states(loaded.model, ids_1T))[0, len(rollout.prompt) - 1 : -1].clone()
        logits_TV[:, engine.banned] = -torch.inf
        free_T = ~torch.tensor(rollout.completion.forced)
        logprob_T = torch.log_softmax(logits_TV, -1).gather(1, ids_1T[0, len(rollout.prompt) :, None])[:, 0]
        (weight * logprob_T[free_T].sum()).sum().backward()
    for one, other in zip(shared, gradient(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max()) + 1e-7, rtol=0)


def _cut(rollout: Rollout, length: int) -> Rollout:
    """The same with so many tokens of its reply."""
    whole = rollout.completion
    completion = replace(
        whole, token_ids=whole.token_ids[:length], forced=whole.forced[:length], logprobs=whole.logprobs[:length]
    )
    return replace(rollout, completion=completion, old=rollout.old[:length], free=rollout.free[:length])


def test_a_kl_to_the_base_holds_the_model_back(random_folder: Path, tmp_path: Path) -> None:
    moved = []
    for weight in (1e-9, 10.0):
        stage = {"kl_to_base": weight, "epochs": 3, "lower_layers_frozen": 1}
        recipe = coin(random_folder, tmp_path, sft=stage)
        out = tmp_path / str(weight)
        run_stage(recipe, recipe.stages[0], out)
        moved.append(_metrics(out / "sft")[-1]["kl_to_base"])
        base, tuned = _weights(random_folder), _weights(out / "sft" / "export")
        low = [name for name in base if "layers.0." in name]
        assert low
        assert all(torch.equal(base[name], tuned[name]) for name in low)
    assert 0 < moved[1] < 0.5 * moved[0]


def test_a_nan_stops_with_its_batch_saved(loaded: Loaded, random_folder: Path, tmp_path: Path) -> None:
    from xreasoner.training.run import quiet, sft_data
    from xreasoner.training.sft import train_sft

    stage = coin(random_folder, tmp_path).stages[0]
    assert isinstance(stage, SFTStage)
    tokens, _ = sft_data(stage, loaded, 0)
    with torch.no_grad():
        loaded.model.model.language_model.norm.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"stage sft, step 1: non-finite loss .*offending-batch\.pt.*norm"):
        train_sft(stage, ready(stage, loaded), tokens, tmp_path, 0, quiet)
    assert len(torch.load(tmp_path / "offending-batch.pt")) == 4  # 8 examples in two steps of at most 5


def test_no_picture_and_no_foreign_domain_enters(tmp_path: Path) -> None:
    stage = load_recipe("demo").stages[1]
    with pytest.raises(RecipeError, match="clinical"):
        check(stage, [Problem("p", "q?", "1", "integer", domain="clinical")])
    with pytest.raises(RecipeError, match="image"):
        check(stage, [Problem("p", "q?", "1", "integer", images=(Image.new("RGB", (56, 56)),))])
    with pytest.raises(RecipeError, match="image"):
        check(stage, [Problem("p", "q?", "1", "integer", modality="image")])


def test_the_demos_own_data_are_general_text() -> None:
    sources = {"base-direct": 3, "sft": 3, "sft+rl": 2}
    small = [f"stages.{name}.data.{k}.n=60" for name, count in sources.items() for k in range(count)]
    for stage in load_recipe("demo", small).stages:
        found = [e.problem for e in sft_examples(stage, 0)] if isinstance(stage, SFTStage) else rl_data(stage, 0)[0]
        assert len(found) == 60 * sources[stage.name]
        assert {(p.domain, p.modality, p.images) for p in found} == {("general", "text", ())}


def test_the_rate_follows_its_schedule() -> None:
    def rates(schedule: str, warmup: float = 0.0, epochs: float = 1.0) -> list[float]:
        settings = AdamW.model_validate({"lr": 0.5, "schedule": schedule, "warmup": warmup})
        return [round(rate(settings, step, 4, epochs) / 0.5, 6) for step in range(4)]

    assert rates("constant") == [1, 1, 1, 1]
    assert rates("linear") == [1, 0.75, 0.5, 0.25]
    assert rates("cosine") == [1, 0.853553, 0.5, 0.146447]
    assert rates("epoch-decay", epochs=2) == [1, 1, 0.8, 0.8]
    settings = AdamW.model_validate({"lr": 0.5, "schedule": "epoch-decay", "warmup": 0.0})
    assert rate(settings, 1, 49, 49) == 0.5 * 0.8  # 1 / 49 * 49 is less than 1
    assert rates("constant", warmup=0.5) == [0.333333, 0.666667, 1, 1]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"value": torch.full((3,), float(step))}, {"kept": step})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000002", "step-000003"]
    newest = next((tmp_path / "step-000003").glob("*.distcp"))
    newest.write_bytes(newest.read_bytes()[:100])
    found = {"value": torch.zeros(3)}
    with pytest.warns(UserWarning, match="step-000003 is damaged"):
        rest = checkpoints.load(tmp_path, found)
    assert rest is not None
    assert (rest["kept"], rest["step"], found["value"].tolist()) == (2, 2, [2.0] * 3)
    (tmp_path / "step-000003" / "sha256.json").unlink()  # cut short between files: no proof, no checkpoint
    with pytest.warns(UserWarning, match="step-000003 is damaged.*the one before it is used"):
        assert checkpoints.load(tmp_path, found) is not None
    (tmp_path / "step-000002" / "rank-0.pt").unlink()
    with pytest.warns(UserWarning, match="is damaged") as said:
        assert checkpoints.load(tmp_path, found) is None
    assert "step-000002 is damaged" in str(said[-1].message)
    assert "none before it, so the stage begins anew" in str(said[-1].message)
