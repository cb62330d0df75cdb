"""The plan's counts are the true models', its memory is what a step takes, and its advice makes things run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.errors import RecipeError, UserError
from xreasoner.models.freezing import freeze
from xreasoner.models.loading import load
from xreasoner.models.lora import adapt
from xreasoner.planning import Machine, advice, check_recipe, memory, plan, plan_stage, published, shape, told, work
from xreasoner.planning.lengths import SPREAD, Lengths
from xreasoner.recipe import LoRA, Recipe, RLStage, SFTStage, load_recipe

ROOT = Path(__file__).parents[1]
RECIPE = {"name": "r", "model": "tiny-base", "stages": []}
SFT = {"name": "sft", "kind": "sft", "data": [{"source": "rows", "n": 1000}], "prompt": "brief"}
RL = {**SFT, "name": "rl", "kind": "rl", "steps": 10}
ADAM = {"optimizer": {"lr": 1e-5}}
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def stage(**change: Any) -> SFTStage:
    found = Recipe.model_validate({**RECIPE, "stages": [{**SFT, **ADAM, **change}]}).stages[0]
    assert isinstance(found, SFTStage)
    return found


def rl(**change: Any) -> RLStage:
    found = Recipe.model_validate({**RECIPE, "stages": [{**RL, **ADAM, **change}]}).stages[0]
    assert isinstance(found, RLStage)
    return found


@pytest.mark.parametrize(
    ("name", "total"),  # what the published checkpoints hold
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        (SEVEN, 8_292_166_656),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
    ],
)
def test_parameters_are_the_published_models(name: str, total: int) -> None:
    found = shape(name)
    assert found.text + found.vision == total
    # by hand: Qwen's grouped attention (biases in 2.5, norms of queries and keys in 3) and gated feed-forward
    d, i, q, k = found.hidden, found.intermediate, found.query, found.key
    extra = q + 2 * k if "2.5" in name else 2 * 128
    assert found.layer == 2 * d * q + 2 * d * k + 3 * d * i + 2 * d + extra
    assert found.embeddings == found.vocab * d
    assert found.head == (found.embeddings if name.endswith("7B-Instruct") else 0)
    assert found.computed == found.layers * (2 * d * q + 2 * d * k + 3 * d * i) + found.vocab * d


def test_the_embedded_models_are_counted_too(random_folder: Path) -> None:
    for name in ("tiny", str(random_folder)):
        found = shape(name)
        assert found.text + found.vision == sum(p.numel() for p in load(name).model.parameters())


# ---- memory beside measured memory


def measure(*names: str) -> dict[str, dict[str, float]]:
    """{form: planned and measured bytes} of the forms whose names hold one of these (benchmarks/planning.py)."""
    command = [sys.executable, "benchmarks/planning.py", "--json", *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment, cwd=ROOT)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_measured(rows: dict[str, dict[str, float]], count: int) -> None:
    assert len(rows) == count
    errors = {name: row["planned"] / row["measured"] - 1 for name, row in rows.items()}
    assert all(abs(error) < 0.1 for error in errors.values()), errors


linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


@linux
@pytest.mark.timeout(600)
def test_memory_is_what_a_step_takes() -> None:
    """The resident peak of real steps beside the plan's, within 10 %: one of each property."""
    names = (
        "sft full padded float32",
        "sft full packed checkpointed bfloat16",
        "sft lora padded bfloat16",
        "rl lora packed float32",
    )
    check_measured(measure(*names), len(names))


@linux
@pytest.mark.slow
def test_memory_is_what_a_step_takes_in_every_form() -> None:
    """16 forms of SFT and 12 of RL, and those of LoRA beside a bfloat16 base."""
    rows = measure()
    rows.pop("rl lora-bf16 padded bfloat16")  # 15 % more than planned: docs/scale.md
    check_measured(rows, 34)


def _kept(model: Any, tokens: int, half: bool) -> int:
    """Bytes that autograd keeps of a forward pass, weights excluded."""
    held: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        result = model.model.language_model(input_ids=torch.arange(tokens)[None] % 300 + 20, use_cache=False)
    del result
    return sum(held.values())


@pytest.mark.parametrize("weights", ["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_what_autograd_keeps_is_counted(random_folder: Path, precision: str, weights: str) -> None:
    """Between four layers and two, of 256 tokens and 128: bytes of one token in one layer, to the byte."""
    kept: dict[tuple[int, int], int] = {}
    for layers in (4, 2):
        model = load(str(random_folder)).model
        if weights == "lora":
            adapt(model, LoRA.model_validate({"rank": 8}))
        freeze(model, lora=weights == "lora")
        if precision == "bfloat16":
            model.to(torch.bfloat16)
        language = model.model.language_model
        language.layers = language.layers[:layers]
        for tokens in (256, 128):
            kept[layers, tokens] = _kept(model, tokens, precision == "autocast")
    counted = (kept[4, 256] - kept[2, 256] - kept[4, 128] + kept[2, 128]) / 2 / 128
    change: dict[str, Any] = {"precision": "float32" if precision == "float32" else "bfloat16", "batching": "padded"}
    if weights == "lora":
        change["lora"] = {"rank": 8}
    machine = Machine(2 if precision == "bfloat16" else 1, 1e12, "cpu", 1e11, 1e10, cpu=True)
    assert counted == memory.kept_of_layer(shape(str(random_folder)), stage(**change), machine)


# ---- what does not run, and what makes it run


def test_a_7b_does_not_fit_and_the_advice_makes_it_fit() -> None:
    found, machine = shape(SEVEN), Machine.of(8, "40GB", price=2.0)
    recipe = load_recipe("x-reasoner-7b")
    heavy = stage(max_length=4096, chunk_tokens=32768)
    each = plan_stage(recipe, heavy, machine)
    assert each.reasons
    assert each.fixes
    assert each.peak > machine.memory
    assert each.hours is None
    assert each.cost is None
    changes = [part.split(".")[-1].split("=") for part in each.fixes if part.startswith("--set")]
    cards = [int(part.split()[1]) for part in each.fixes if part.startswith("--gpus")]
    changed = stage(max_length=4096, **{"chunk_tokens": 32768, **dict(changes)})
    again = plan_stage(recipe, changed, replace(machine, gpus=cards[0] if cards else 8))
    assert again.fixes == ()
    assert again.hours
    assert again.peak < 0.92 * machine.memory
    assert memory.trainable(found, stage(lora={"rank": 16})) == 40_370_176
    assert memory.trainable(found, heavy) == found.text


def test_the_smallest_change_is_the_only_one() -> None:
    """No fewer changes would do, and none comes with it that is not needed."""
    found, machine = shape("Qwen/Qwen2.5-VL-3B-Instruct"), Machine.of(8, "40GB")
    heavy = stage(max_length=8192, chunk_tokens=65536, batching="packed", precision="bfloat16")
    fixes = advice.smallest_change(found, heavy, machine)
    assert fixes is not None
    assert len(fixes) == 1


@settings(max_examples=60, deadline=None)
@given(
    gpus=st.sampled_from([1, 2, 4, 8, 32]),
    size=st.sampled_from([8, 16, 24, 40, 80]),
    precision=st.sampled_from(["float32", "bfloat16"]),
    batching=st.sampled_from(["padded", "packed"]),
    lora=st.sampled_from([None, {"rank": 16}]),
    kind=st.sampled_from(["sft", "rl"]),
    chunk=st.sampled_from([1024, 8192, 65536]),
)
def test_what_cannot_run_has_a_reason_and_no_hours(
    gpus: int, size: int, precision: str, batching: str, lora: Any, kind: str, chunk: int
) -> None:
    """Hours are there exactly where nothing prevents the stage; a fix, where one is given, is one."""
    change = {"precision": precision, "batching": batching, "lora": lora, "chunk_tokens": chunk}
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(gpus, f"{size}GB", price=1.0)
    each = plan_stage(recipe, stage(**change) if kind == "sft" else rl(**change), machine)
    assert (each.hours is None) == bool(each.reasons)
    assert (each.cost is None) == bool(each.reasons)
    assert (each.fixes == ()) == (not each.reasons)
    assert each.reasons or each.peak <= machine.usable
    if each.hours is not None:
        assert all(np.isfinite(value) and value >= 0 for value in each.hours.values())


def test_a_cache_without_room_is_a_reason_and_not_eight_rows() -> None:
    """The copy to sample from and the shards leave nothing on 24 GB."""
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(8, "24GB")
    each = plan(recipe, machine)[1]
    assert each.hours is None
    assert any("rollouts: a group of 8 replies" in reason for reason in each.reasons)
    assert any("nothing is left for it" in reason for reason in each.reasons)
    assert each.memory["rollouts"]["KV cache"] == 0
    text = told(plan(recipe, machine), recipe, machine, None)
    assert "cannot run: " in text
    assert "No total" in text


def test_a_server_too_small_for_the_weights_is_a_reason() -> None:
    served = rl(rollouts={"urls": ["http://a/v1"]}, precision="bfloat16", activation_checkpointing=True)
    reasons = advice.reasons(shape(SEVEN), served, Machine.of(64, "16GB"))
    assert any(reason.startswith("rollouts: on a server's GPU of 16.0 GB nothing is left") for reason in reasons)


def test_a_stage_that_nothing_fixes_says_what_is_too_large() -> None:
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(1, "2GB")
    text = told(plan(recipe, machine), recipe, machine, None)
    assert "does NOT fit in 2 GB" in text
    assert "no known change makes it run" in text
    assert "hours" not in text


def test_a_default_max_length_fits_every_model() -> None:
    """Only a set length is refused; training keeps to the model's own where the default is longer."""
    made = {"name": "r", "model": "tiny-base", "stages": [{**SFT, **ADAM}]}
    check_recipe(Recipe.model_validate(made))
    made["stages"] = [{**SFT, **ADAM, "max_length": 4097}]
    with pytest.raises(RecipeError, match="max_length: found 4097, expected at most the 2048 tokens"):
        check_recipe(Recipe.model_validate(made))


def test_main_memory_is_checked_where_it_is_known() -> None:
    recipe = load_recipe("x-reasoner-7b")
    each = plan(recipe, Machine.of(8, "80GB", host="16GB"))[0]
    assert any("--host-memory has 16.0 GB" in reason for reason in each.reasons)
    assert not any("main memory" in reason for reason in plan(recipe, Machine.of(8, "80GB", host="2000GB"))[0].reasons)


def test_budgets_that_contradict_the_model_are_named_together() -> None:
    fields = [
        {**SFT, **ADAM, "max_length": 500_000, "lora": {"targets": ["q_prj"]}},
        {**RL, **ADAM, "thinking_budget": 128_000, "answer_budget": 64, "lower_layers_frozen": 99},
    ]
    evaluation = {"benches": ["gsm8k"], "thinking_budget": 200_000}
    recipe = Recipe.model_validate({"name": "r", "model": SEVEN, "stages": fields, "evaluation": evaluation})
    with pytest.raises(RecipeError) as failed:
        check_recipe(recipe)
    text = str(failed.value)
    assert "stages.sft.max_length: found 500000, expected at most the 128000 tokens" in text
    assert "stages.sft.lora.targets: no linear layer is named 'q_prj'; did you mean 'q_proj'" in text
    assert "set stages.rl.thinking_budget=127636" in text
    assert "stages.rl.lower_layers_frozen: found 99" in text
    assert "evaluation.thinking_budget: found 200000" in text


def test_a_length_beyond_every_limit_is_refused() -> None:
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(8, "80GB")
    with pytest.raises(UserError, match=r"--length 9000: expected at most 4096.*stages\.sft .*max_length"):
        plan(recipe, machine, length=9000)


def test_gpus_without_work_are_noted() -> None:
    recipe = load_recipe("x-reasoner-7b")
    each = plan_stage(recipe, stage(batch_examples=4, precision="bfloat16"), Machine.of(32, "80GB"))
    assert each.notes == (
        "batch_examples 4 on 32 GPUs leaves 28 without work; set --set stages.sft.batch_examples=32, or --gpus 4",
    )


# ---- tokens, FLOPs, hours


def test_tokens_flops_hours_and_cost() -> None:
    recipe = Recipe.model_validate({**RECIPE, "model": SEVEN, "stages": [{**SFT, **ADAM, "precision": "bfloat16"}]})
    machine = Machine.of(8, "140GB", price=3.0, gpu="A100 80GB")
    (full,) = plan(recipe, machine)
    assert full.tokens == {"trained": 1000 * 4096}
    assert full.flops == pytest.approx(6 * full.tokens["trained"] * shape(recipe.model).computed, rel=0.15)
    (half,) = plan(recipe, machine, length=2048)
    assert half.tokens == {"trained": 1000 * 2048}
    assert full.hours is not None
    assert set(full.hours) == {"training", "communication"}
    assert full.cost == pytest.approx(sum(full.hours.values()) * 24)
    assert full.hours["training"] == pytest.approx(full.flops / (8 * 312e12 * 0.4) / 3600, rel=0.05)
    again = plan_stage(recipe, stage(activation_checkpointing=True), machine)
    assert again.flops == pytest.approx(full.flops * 4 / 3)


def test_a_reference_and_old_log_probs_cost_a_forward_pass_each() -> None:
    """Of 3 with a backward pass, and of 4 where layers are computed twice."""
    plain = rl(batching="packed")
    assert sum(work.passes_of_token(plain).values()) == 3
    both = rl(kl=0.01, precision="bfloat16", batching="packed")
    assert sum(work.passes_of_token(both).values()) == 5
    again = rl(kl=0.01, activation_checkpointing=True, batching="packed")
    assert work.passes_of_token(again) == {"training": 4, "reference": 1}
    assert sum(work.passes_of_token(stage(lora={"rank": 4})).values()) == 2


def test_packed_replies_have_a_prompt_each_and_padded_ones_share_it() -> None:
    sampled = {"prompts_per_step": 4, "group_size": 2, "thinking_budget": 100, "answer_budget": 20, "max_prompt": 50}
    packed, padded = (rl(**sampled, batching=batching) for batching in ("packed", "padded"))
    lengths = work.lengths_of(packed)
    assert work.count_tokens(packed, lengths) == {"sampled": 10 * 8 * 120, "trained": 10 * 8 * 170}
    assert work.count_tokens(padded, lengths) == {"sampled": 10 * 8 * 120, "trained": 10 * 8 * 145}


def test_the_longest_of_a_batch_ends_it() -> None:
    """At a mean of 979 tokens the longest of 128 has 4,280; sampling agrees."""
    lengths = Lengths(979, SPREAD, 100_000)
    assert lengths.expected_longest(128) == pytest.approx(4242, rel=0.03)
    s = np.sqrt(np.log(1 + SPREAD**2))
    drawn = np.random.default_rng(0).lognormal(np.log(979) - s * s / 2, s, (4000, 128))
    assert lengths.expected_longest(128) == pytest.approx(drawn.max(axis=1).mean(), rel=0.02)
    assert lengths.square_over_mean == pytest.approx((drawn**2).mean() / drawn.mean(), rel=0.03)


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0.01, 1.0), spread=st.floats(0.0, 3.0), limit=st.integers(8, 32_768), count=st.integers(1, 4096))
def test_lengths_keep_their_mean_and_their_limit(share: float, spread: float, limit: int, count: int) -> None:
    mean = max(1.0, share * limit)
    lengths = Lengths(mean, spread, limit)
    grid = np.linspace(0, limit, 4000)
    assert np.trapezoid(lengths.longer_than(grid), grid) == pytest.approx(mean, rel=0.02, abs=limit / 1000)
    longest = lengths.expected_longest(count)
    assert mean * 0.97 - limit / 200 <= longest <= limit
    assert longest <= lengths.expected_longest(count + 1) + 1e-6


def test_rollouts_take_as_long_as_the_longest_reply() -> None:
    """More replies at the same mean take longer though their number hardly costs; a mean-length estimate is far off."""
    found, machine = shape(SEVEN), Machine.of(8, gpu="H100 80GB")
    served = rl(rollouts={"urls": [f"http://{k}/v1" for k in range(8)]}, prompts_per_step=16, group_size=8)
    spread = work.rollout_seconds(found, served, machine, Lengths(979, SPREAD, 4160))
    equal = work.rollout_seconds(found, served, machine, Lengths(979, 0.001, 4160))
    assert 2.5 < spread / equal < 4.5


def test_servers_are_given_the_weights_and_staleness_hides_the_rollouts() -> None:
    found, machine = shape(SEVEN), Machine.of(16, "80GB")
    urls = {"urls": [f"http://{k}/v1" for k in range(8)]}
    fields = {"precision": "bfloat16", "activation_checkpointing": True, "prompts_per_step": 64}
    lengths = Lengths(1000, SPREAD, 4160)
    now = work.stage_seconds(found, rl(**fields, rollouts=urls), machine, lengths)
    late = {**fields, "rollouts": {**urls, "max_staleness": 1}, "correction": "token"}
    later = work.stage_seconds(found, rl(**late), machine, lengths)
    assert set(now) == {"training", "communication", "rollouts", "weight sync"}
    assert later["rollouts"] < now["rollouts"]


def test_communication_grows_with_slower_links_between_machines() -> None:
    found, lengths = shape(SEVEN), Lengths(4096, SPREAD, 4096)
    each = stage(precision="bfloat16", batching="packed", chunk_tokens=4096)
    fast, slow = (Machine.of(32, "40GB", network=network) for network in (200, 10))
    one = Machine.of(1, "40GB")
    assert "communication" not in work.stage_seconds(found, each, one, lengths)
    hidden = work.stage_seconds(found, each, fast, lengths)
    exposed = work.stage_seconds(found, each, slow, lengths)
    assert 0 < hidden["communication"] < 0.2 * hidden["training"]
    assert exposed["communication"] > hidden["training"]


def test_evaluation_is_counted() -> None:
    recipe = load_recipe("x-reasoner-7b")
    machine = Machine.of(32, "80GB", price=1.0)
    replies, _ = work.evaluation_work(recipe)
    assert replies > 3 * 20_000  # of the base and two stages
    text = told(plan(recipe, machine, 1000), recipe, machine, 1000)
    assert "evaluation of the base and 2 stages" in text
    assert "in all: " in text


def test_gpus_are_known_by_name_and_by_memory() -> None:
    assert Machine.of(2, "40GB").name == "A100 40GB"
    assert Machine.of(2, "80GiB").name == "H100 80GB"
    assert Machine.of(2, "22").memory == 22e9
    assert Machine.of(2, gpu="A100 80GB").memory == 80e9
    assert Machine.of(2, "60GB", gpu="A100 80GB").memory == 60e9
    for size in ("plenty", "-5GB", "0", "nan", "inf"):
        with pytest.raises(UserError, match="such as 40GB"):
            Machine.of(2, size)
    with pytest.raises(UserError, match="did you mean 'A100 80GB'"):
        Machine.of(2, gpu="A100 80G")
    with pytest.raises(UserError, match="--memory is missing"):
        Machine.of(2)
    with pytest.raises(UserError, match="--network"):
        Machine.of(2, "40GB", network=0)


def test_rollouts_from_servers_leave_the_gpus_to_training() -> None:
    recipe, machine = load_recipe("x-reasoner-7b"), Machine.of(32, "80GB")
    own = memory.phases(shape(SEVEN), recipe.stages[1], machine)
    served = load_recipe("x-reasoner-7b", ["stages.sft+rl.rollouts={urls: [http://a/v1, http://b/v1]}"]).stages[1]
    each = memory.phases(shape(SEVEN), served, machine)
    assert "KV cache" in own["rollouts"]
    assert "rollouts" not in each
    assert memory.peak(each) <= memory.peak(own) < machine.memory


def test_a_7b_is_trained_on_40_gb_beside_rollout_servers() -> None:
    """SFT and GRPO, full parameters, on 8 GPUs."""
    recipe = load_recipe("x-reasoner-7b", ["stages.sft+rl.rollouts={urls: [http://a/v1]}"])
    sft, trained = plan(recipe, Machine.of(8, "40GB"))
    assert sft.fixes == ()
    assert trained.fixes == ()


def test_a_7b_is_trained_on_32_gpus_of_40_gb_with_rollouts_in_process() -> None:
    assert all(each.fixes == () for each in plan(load_recipe("x-reasoner-7b"), Machine.of(32, "40GB")))


def test_a_rollout_copy_and_its_cache_are_there_in_the_rollouts_alone() -> None:
    recipe = load_recipe("x-reasoner-7b")
    phases = memory.phases(shape(SEVEN), recipe.stages[1], Machine.of(32, "40GB"))
    assert phases["rollouts"]["rollout copy"] == 2 * shape(SEVEN).text
    assert all("rollout copy" not in phases[phase] for phase in ("forward and backward", "optimizer step"))
    assert "gradients" not in phases["rollouts"]
    float32 = recipe.stages[1].model_copy(update={"rollout_dtype": "float32"})
    assert memory.phases(shape(SEVEN), float32, Machine.of(32, "40GB"))["rollouts"]["rollout copy"] == (
        4 * shape(SEVEN).text
    )


def test_rank_0_alone_holds_the_weights_in_main_memory() -> None:
    """Eight ranks took eight float32 copies: 265 GB."""
    recipe = load_recipe("x-reasoner-7b")
    needed = [
        sum(memory.host_memory(shape(SEVEN), recipe.stages[0], Machine.of(gpus, "80GB")).values())
        for gpus in (2, 8, 32)
    ]
    assert needed[1] - needed[0] == 6 * memory.PROCESS
    assert needed[2] == needed[1] < 50e9


def test_a_3b_with_adapters_is_trained_on_24_gb() -> None:
    assert all(each.fixes == () for each in plan(load_recipe("x-reasoner-3b-lora-24gb"), Machine.of(1, "24GB")))


def test_published_runs_are_met_where_their_work_is_known() -> None:
    """SFT on the appendix's 32 GPUs, and EasyR1 where computing and not a fixed cost fills the step."""
    errors = {run.name: run.error for run in published.RUNS}
    assert abs(errors["X-Reasoner-7B SFT, 32 × A100 40GB (appendix)"]) < 0.1
    assert abs(errors["EasyR1 7B GRPO, 8 × L20 48GB"]) < 0.15
    assert published.told().count("\n") == len(published.RUNS) + 1
