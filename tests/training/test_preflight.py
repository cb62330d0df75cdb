"""What the end of a run needs is tried before step 1; an export that fails all the same loses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_stages import coin
from torch.optim.optimizer import register_optimizer_step_post_hook

from xreasoner.demo import run_demo
from xreasoner.errors import CheckpointError, NonFiniteError, TrainingError, UserError
from xreasoner.models.loading import load
from xreasoner.recipe import Evaluation, Recipe
from xreasoner.training import preflight, run
from xreasoner.training.run import run_recipe, run_stage


def _variant(model: Path, out: Path, name: str, **changes: Any) -> Path:
    """A copy of the model's folder in which one JSON file has other values; None removes a key."""
    folder = out / "variant"
    shutil.copytree(model, folder)
    path = folder / name
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def _short(model: Path, folder: Path, **changes: Any) -> Recipe:
    settings = {"epochs": 2, "checkpoint_seconds": 1000, **changes}
    return coin(model, folder, sft=settings, rl={"checkpoint_seconds": 1000})


@pytest.mark.parametrize(
    "generation",
    [
        {"do_sample": False, "temperature": 1e-6},
        {"do_sample": False, "top_p": 0.5},
        {"do_sample": False, "top_k": 7, "temperature": 0.2},
    ],
)
def test_a_generation_config_that_cannot_be_saved_is_refused_before_step_1(
    random_folder: Path, tmp_path: Path, generation: dict[str, Any]
) -> None:
    """Or it is exported: never trained and then lost."""
    recipe = _short(_variant(random_folder, tmp_path, "generation_config.json", **generation), tmp_path)
    exported, refused = None, ""
    try:
        exported = run_stage(recipe, recipe.stages[0], tmp_path / "run")
    except UserError as error:
        refused = str(error)
    if exported is not None:
        assert load(str(exported))
        return
    assert "generation" in refused.lower()
    assert not (tmp_path / "run" / "sft" / "metrics.jsonl").exists()


def test_a_tokenizer_without_an_end_of_turn_is_refused_before_step_1(random_folder: Path, tmp_path: Path) -> None:
    model = _variant(random_folder, tmp_path, "tokenizer_config.json", eos_token=None)
    recipe = _short(model, tmp_path)
    with pytest.raises((CheckpointError, UserError), match=r"has no eos_token.*tokenizer_config\.json"):
        run_stage(recipe, recipe.stages[0], tmp_path / "run")
    assert not (tmp_path / "run" / "sft" / "metrics.jsonl").exists()


def test_a_disk_that_is_too_small_is_named_with_its_parts(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(str(random_folder))
    recipe = _short(random_folder, tmp_path)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=10**6))
    with pytest.raises(UserError, match=r"GB are needed \(2 exports of .*, checkpoints of .*\) and 0\.0 GB are free"):
        preflight.check_disk(recipe, recipe.stages[0], loaded, tmp_path)
    # adapters are small: the second stage alone needs one export, and the vision tower's file
    adapters = coin(random_folder, tmp_path, rl={"lora": {"rank": 4}})
    size = 4 * sum(p.numel() for p in loaded.model.parameters())
    size += 4 * sum(p.numel() for p in loaded.model.model.visual.parameters())
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=size + 1))
    preflight.check_disk(adapters, adapters.stages[1], loaded, tmp_path)
    with pytest.raises(UserError, match="lower checkpoints_kept"):
        preflight.check_disk(adapters, adapters.stages[0], loaded, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match=r"cannot write .*(choose another --out|permissions)"):
            preflight.check_run_files(out)
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"report\.html is a folder"):
        preflight.check_run_files(tmp_path / "run")


def test_all_of_a_stages_problems_are_reported_at_once(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _short(random_folder, tmp_path)
    (tmp_path / "run" / "summary.json").mkdir(parents=True)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, free=10**6))
    with pytest.raises(UserError, match=r"(?s)stage sft: .*summary\.json is a folder.*GB are needed"):
        run_stage(recipe, recipe.stages[0], tmp_path / "run")


def test_benchmarks_are_opened_and_all_problems_named(tmp_path: Path) -> None:
    settings = Evaluation.model_validate(
        {"benches": ["tiny-text-general", "no-such"], "others": ["gym:nothing"], "n": 1}
    )
    with pytest.raises(UserError, match=r"(?s)no-such.*gym:nothing"):
        preflight.check_benchmarks(settings)
    preflight.check_benchmarks(settings.model_copy(update={"benches": ("tiny-text-general",), "others": ()}))


def test_the_report_is_tried_before_anything_is_trained(random_folder: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if task.startswith("train"):
            raise StoppedError

    with pytest.raises(StoppedError):
        run_demo(_short(random_folder, tmp_path), tmp_path / "run", stop)
    assert "base" in (tmp_path / "run" / "report.html").read_text()


def test_an_export_that_fails_keeps_what_was_trained_and_prints_the_command(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _short(random_folder, tmp_path)
    whole = run_stage(recipe, recipe.stages[0], tmp_path / "whole")
    export = run.export

    def refuse(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "export", refuse)
    monkeypatch.setattr(
        run.sys, "argv", ["xreasoner", "train", "mine.yaml", "--out", str(tmp_path / "run"), "--set", "seed=0"]
    )
    command = r"xreasoner train mine\.yaml --out .*/run --set seed=0$"
    with pytest.raises(TrainingError, match=rf"export failed: .*No space left.*all 4 steps are saved.*{command}"):
        run_stage(recipe, recipe.stages[0], tmp_path / "run")
    monkeypatch.setattr(run, "export", export)
    resumed = run_stage(recipe, recipe.stages[0], tmp_path / "run")
    ours, theirs = (load(str(folder)).model.state_dict() for folder in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = (tmp_path / "run" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]  # nothing was trained again


def test_a_disk_that_refuses_the_checkpoint_too_keeps_the_one_before(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _short(random_folder, tmp_path, checkpoint_seconds=1e-6)
    save, saved = run.checkpoints.save, []

    def full(folder: Path, step: int, *rest: Any) -> Path:
        if step > 2:
            raise OSError(28, "No space left on device")
        saved.append(step)
        return save(folder, step, *rest)

    monkeypatch.setattr(run.checkpoints, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run_recipe(recipe, tmp_path / "run")
    assert saved == [1, 2]
    assert (tmp_path / "run" / "sft" / "checkpoints" / "step-000002").exists()


def test_weights_that_an_update_made_infinite_are_not_saved(
    random_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last good checkpoint stays, and so does what a resume starts from."""
    steps = iter(range(1, 100))

    def overflow(optimizer: Any, *_: Any) -> None:
        if next(steps) == 3:
            optimizer.param_groups[0]["params"][0].data[0] = torch.inf

    recipe = _short(random_folder, tmp_path, checkpoint_seconds=1e-6)
    handle = register_optimizer_step_post_hook(overflow)
    try:
        with pytest.raises(
            NonFiniteError, match=r"step 3: parameters/.* is not finite after the update.*of step 2 is kept"
        ):
            run_stage(recipe, recipe.stages[0], tmp_path / "run")
    finally:
        handle.remove()
    saved = sorted(path.name for path in (tmp_path / "run" / "sft" / "checkpoints").glob("step-*"))
    assert saved == ["step-000001", "step-000002"]
    assert run_stage(recipe, recipe.stages[0], tmp_path / "run").exists()
