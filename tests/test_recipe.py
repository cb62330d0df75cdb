"""Every shipped recipe loads; mistakes are named with the nearest field (that every field is read: test_stages)."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreasoner.benchmarks.opening import check_name
from xreasoner.checks import check_model
from xreasoner.demo import known_benches
from xreasoner.errors import RecipeError, UserError
from xreasoner.recipe import difference, load_recipe, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    known_benches(recipe.evaluation)


def test_an_unknown_benchmark_is_named_before_anything_is_trained() -> None:
    for kind in ("benches", "reading", "others"):
        recipe = load_recipe("demo", [f"evaluation.{kind}=[tiny-text-generall]"])
        with pytest.raises(UserError, match="did you mean 'tiny-text-general'"):
            known_benches(recipe.evaluation)


def test_there_are_recipes() -> None:
    assert {"demo", "x-reasoner-7b", "x-reasoner-7b-appendix-b", "x-reasoner-med-7b"} <= set(shipped())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sft.optimiser.lr=-0.1", "optimizer.lr: found -0.1, expected greater than 0"),
        ("stages.sft.batch_exampels=3", "batch_exampels.*did you mean 'batch_examples'"),
        ("stages.sft.prompt=breif", "did you mean 'brief'"),
        ("stages.sft.data.0.prompt=breif", "did you mean 'brief'"),
        ("stages.sft+rl.data.0.prompt=brief", "an RL stage asks with one prompt"),
        ("stages.sft+rl.from=sftt", "unknown stage 'sftt'"),
        ("stages.nothing.lr=3", "no item 'nothing'"),
        ("stages.sft.lr=1e-3", r"unknown field; it belongs under optimizer: optimizer\.lr"),
        ("stages.sft.epochs=.inf", "epochs: found inf, expected a finite number"),
        ("stages.sft.optimiser.betas=[0.9, 1.5]", r"betas\.1: found 1.5, expected less than 1"),
        ("stages.sft.lora.targets=[]", "lora.targets: found a list of 0, expected at least 1 item"),
        ("stages.sft.exit_text=Enough.", "exit_text: found 'Enough.', expected a text with </think>"),
        ("stages.sft+rl.exit_text=Enough.", "exit_text: found 'Enough.', expected a text with </think>"),
        ("stages.sft+rl.overlong=penalise", "overlong_buffer: found 0, expected 1 to 184"),
        ("stages.sft+rl.overlong_buffer=9", "overlong_buffer: found 9, expected 0 to 0 with overlong: keep"),
        ("stages.sft+rl.rollouts.urls=[node1:8000]", r"urls\.0: found 'node1:8000', expected .*http"),
        ("stages.sft+rl.optimiser.schedule=epoch-decay", "optimizer.schedule: an RL stage has steps and no epochs"),
        ("evaluation.base_prompt=breif", "did you mean 'brief'"),
        ("evaluation.seed=-1", "evaluation.seed: found -1, expected greater than or equal to 0"),
        ("seed=-1", "seed: found -1, expected greater than or equal to 0"),
        ("seed=99999999999999999999", "seed: found 9+, expected less than 536870912"),
        ("name=[", "expected a YAML value"),
        ("seed", "expected key=value"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [override])


def test_a_correction_needs_the_temperature_of_the_engines_log_probabilities() -> None:
    with pytest.raises(RecipeError, match=r"correction: .*sampled at 0\.6; set temperature: 1"):
        load_recipe("demo", ["stages.sft+rl.correction=token", "stages.sft+rl.temperature=0.6"])


def test_what_is_no_yaml_is_one_line_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstages: [a\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: line 3: not YAML") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_key_twice_and_an_endless_alias_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, message in (
        ("name: a\nmodel: b\nname: c\n", "line 3: 'name' is already set on line 1; keep one of the two"),
        ("a: &a [*a]\n", "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(str(path))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        load_recipe("demoo")


def test_an_override_changes_one_stage_alone() -> None:
    before, after = load_recipe("demo"), load_recipe("demo", ["stages.sft.data.0.n=77"])
    assert after.stages[1].data[0].n == 77
    assert after.stages[0] == before.stages[0]  # they share a YAML anchor in the file


def test_two_stages_of_one_name_and_taken_names_are_refused() -> None:
    for name, message in (("sft", "two stages are named"), ("eval", "taken by a folder")):
        with pytest.raises(RecipeError, match=message):
            load_recipe("demo", [f"stages.0.name={name}"])


WRONG = """\
nam: mine
model: tiny-base
seed: many
stages:
  - name: one
    kind: sft
    prompt: breif
    data: [{source: tiny, n: -3}]
    optimiser: {lrr: 1e-5}
    style: chian
  - name: two
    kind: rl
    prompt: brief
    data: [{source: tiny, n: 3, prompt: brief}]
    optimizer: {lr: 1e-5, schedule: epoch-decay}
    overlong_buffer: 7
    thinking_budget: "lots"
  - name: two
    kind: stf
evaluation: {n: 3.5, benches: tiny}
"""


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WRONG)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["stages.one.epoch=2", "stages.three.x=1", "seed", "stages.two.lr=1e-3"])
    first, *lines = str(caught.value).splitlines()
    assert first == f"recipe {path}: {len(lines)} problems"
    assert {line.strip() for line in lines} == {
        "--set stages.one.epoch: unknown field; did you mean 'epochs'? docs/recipe.md lists the fields",
        "--set stages.two.lr: unknown field; it belongs under optimizer: optimizer.lr",
        "line 1: nam: unknown field; did you mean 'name'?",
        "line 9: stages.one.optimizer.lrr: unknown field; did you mean 'lr'?",
        "name: is missing",
        "line 9: stages.one.optimizer.lr: is missing",
        "line 11: stages.two.steps: is missing",
        "line 3: seed: found 'many', expected a whole number",
        "line 17: stages.two.thinking_budget: found 'lots', expected a whole number",
        "line 20: evaluation.benches: found 'tiny', expected a list",
        "--set stages.three.x: no item 'three'; expected one, two or two",
        "--set 'seed': expected key=value, such as seed=1 or stages.sft.epochs=2",
        "line 7: stages.one.prompt: unknown prompt 'breif'; did you mean 'brief'?",
        "line 8: stages.one.data.0.n: found -3, expected greater than 0",
        "line 10: stages.one.style: found 'chian'; did you mean 'chain'?",
        "line 14: stages.two.data.0.prompt: an RL stage asks with one prompt; remove it, and set the stage's prompt",
        "line 15: stages.two.optimizer.schedule: an RL stage has steps and no epochs; set constant, linear or cosine",
        "line 16: stages.two.overlong_buffer: found 7, expected 0 to 0 with overlong: keep",
        "line 19: stages.two.kind: found 'stf'; did you mean 'sft'?",
        "line 18: stages.two.prompt: is missing",
        "line 18: stages.two.data: is missing",
        "line 18: stages.two.optimizer: is missing",
        "line 4: stages: two stages are named 'two'",
        "line 20: evaluation.n: found 3.5, expected a whole number",
    }
    ranks = ["unknown field" in line for line in lines]
    assert ranks == sorted(ranks, reverse=True)


def test_a_wrong_stage_names_its_field_and_not_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: a\nmodel: tiny\nstages:\n"
        "  - {name: one, prompt: brief, optimizer: {lr: 0.1}, data: [{source: tiny, n: 1}]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert str(caught.value) == f"recipe {path}: line 4: stages.one.kind: is missing; expected sft or rl"


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("stages.sft.optimiser.lr=0.5", "stages.sft.optimizer.lr=0.5"),
        ("stages.sft+rl.normalise_std=false", "stages.sft+rl.normalize_std=false"),
    ],
)
def test_both_spellings_are_one_field(british: str, american: str) -> None:
    assert load_recipe("demo", [british]) == load_recipe("demo", [american]) != load_recipe("demo")


def test_both_spellings_of_a_field_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    data = "data: [{source: tiny, n: 1}]"
    both = "optimizer: {lr: 1e-5}\n    optimiser: {lr: 1e-4}"
    path.write_text(
        f"name: a\nmodel: tiny\nstages:\n  - name: one\n    kind: sft\n    prompt: brief\n    {data}\n    {both}\n"
    )
    with pytest.raises(RecipeError, match=r"line 9: stages\.one\.optimiser: is set as 'optimizer' too; keep one"):
        load_recipe(str(path))


def test_a_manifest_in_the_former_spelling_is_the_same_recipe() -> None:
    new = load_recipe("demo").model_dump(mode="json", by_alias=True)
    text = json.dumps(new).replace("optimizer", "optimiser").replace("normalize_std", "normalise_std")
    assert difference(json.loads(text), new) == ""
    changed = json.loads(text.replace("0.0012", "0.0013"))
    assert "optimizer.lr" in difference(changed, new)


@given(st.sampled_from(sorted(shipped())), st.data())
@settings(max_examples=40, deadline=None)
def test_a_misspelt_field_anywhere_is_named_with_its_line(name: str, data: st.DataObject) -> None:
    text = shipped()[name].read_text()
    lines = text.splitlines()
    keys = [(k, m) for k, line in enumerate(lines) if (m := re.match(r"^( *(?:- )?)([a-z_]{4,}): ", line))]
    k, match = data.draw(st.sampled_from(keys))
    lines[k] = lines[k].replace(f"{match[2]}: ", f"{match[2]}x: ", 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yaml"
        path.write_text("\n".join(lines))
        with pytest.raises(RecipeError) as caught:
            load_recipe(str(path))
    assert f"line {k + 1}: " in str(caught.value)
    assert f"{match[2]}x: unknown field; did you mean {match[2]!r}" in str(caught.value)


def test_names_that_lead_nowhere_are_reported_with_the_fields(tmp_path: Path) -> None:
    text = (
        "name: x\nmodel: tinny\nevaluation:\n  benches: [easy-vqa, esy-vqa]\n  reading: [gym:nope]\nstages:\n"
        "- {kind: sft, name: sft, optimizer: {lrr: 1e-5}, prompt: breif, data: [{source: tiny/sum, n: 10}]}\n"
    )
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe .*: 6 problems") as caught:
        load_recipe(str(tmp_path / "x.yaml"), [], check_model, check_name)
    for line in (
        "line 7: stages.sft.optimizer.lrr: unknown field; did you mean 'lr'?",
        "line 7: stages.sft.optimizer.lr: is missing",
        "line 2: model: model 'tinny': no such folder; did you mean 'tiny'?",
        "line 4: evaluation.benches.1: unknown benchmark 'esy-vqa'; did you mean 'easy-vqa'?",
        "line 5: evaluation.reading.0: unknown benchmark 'gym:nope'",
        "line 7: stages.sft.prompt: unknown prompt 'breif'",
    ):
        assert f"\n  {line}" in str(caught.value)
    with pytest.raises(RecipeError, match=r"--set evaluation.benches: evaluation.benches.0: unknown benchmark 'a'"):
        load_recipe("demo", ["evaluation.benches=[a]"], check_benchmark=check_name)
