"""Every shipped recipe loads; mistakes are named with the nearest field (that every field is read: test_stages)."""

from __future__ import annotations

from pathlib import Path

import pytest

from xreasoner.demo import known_benches
from xreasoner.errors import RecipeError, UserError
from xreasoner.recipe import load_recipe, shipped


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
        ("stages.sft.optimiser.lr=-0.1", "lr.*greater than 0.*-0.1"),
        ("stages.sft.batch_exampels=3", "batch_exampels.*did you mean 'batch_examples'"),
        ("stages.sft.prompt=breif", "did you mean 'brief'"),
        ("stages.sft.data.0.prompt=breif", "did you mean 'brief'"),
        ("stages.sft+rl.data.0.prompt=brief", "an RL stage asks with one prompt"),
        ("stages.sft+rl.from=sftt", "unknown stage 'sftt'"),
        ("stages.nothing.lr=3", "no item 'nothing'"),
        ("stages.sft.lr=1e-3", r"unknown field; it belongs under optimiser: optimiser\.lr"),
        ("stages.sft.epochs=.inf", "epochs: Input should be a finite number"),
        ("stages.sft.optimiser.betas=[0.9, 1.5]", r"betas\.1: Input should be less than 1; found 1.5"),
        ("stages.sft.lora.targets=[]", "lora.targets: .*at least 1 item"),
        ("stages.sft.exit_text=Enough.", "exit_text: found 'Enough.', expected a text with </think>"),
        ("stages.sft+rl.exit_text=Enough.", "exit_text: found 'Enough.', expected a text with </think>"),
        ("stages.sft+rl.overlong=penalise", "overlong_buffer: found 0, expected 1 to 184"),
        ("stages.sft+rl.overlong_buffer=9", "overlong_buffer: found 9, expected 0 to 0 with overlong: keep"),
        ("stages.sft+rl.rollouts.urls=[node1:8000]", r"urls\.0: .*http.*found 'node1:8000'"),
        ("stages.sft+rl.optimiser.schedule=epoch-decay", "optimiser.schedule: an RL stage has steps and no epochs"),
        ("evaluation.base_prompt=breif", "did you mean 'brief'"),
        ("evaluation.seed=-1", "evaluation.seed: .*greater than or equal to 0"),
        ("seed=-1", "seed: .*greater than or equal to 0; found -1"),
        ("seed=99999999999999999999", "seed: Input should be less than 536870912"),
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
        ("name: a\nmodel: b\nname: c\n", "line 3: not YAML: 'name' stands twice"),
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
