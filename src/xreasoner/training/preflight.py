"""What the end of a run needs, tried before its first step: writing, disk space, the export, benchmarks.

A stage trains for hours; whatever would stop it or its export then is found in seconds here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from xreasoner.benchmarks.opening import open_benchmark
from xreasoner.checks import check_output
from xreasoner.errors import UserError
from xreasoner.models.export import check_exportable
from xreasoner.models.freezing import VISION
from xreasoner.models.loading import Loaded
from xreasoner.recipe import Evaluation, Recipe, RLStage, SFTStage

RUN_FILES = ("manifest.json", "summary.json", "timings.json", "report.html", "report.md", "report.csv")
"""What a run writes beside its stages."""
GB = 1e9
STATES = 3
"""Tensors that a checkpoint holds for each trained weight: itself and AdamW's two moments."""


def check_run_files(out: Path) -> None:
    """Check that a run can write its files.

    Args:
        out: the run's folder; it is made where it is missing.

    Raises:
        UserError: the folder cannot be made or written in, or a folder has the name of one of the run's files.
    """
    check_output(out, folder=True)
    taken = [name for name in RUN_FILES if (out / name).is_dir()]
    if taken:
        raise UserError(f"--out {out}: {', '.join(taken)} is a folder, expected a file; choose another --out")
    out.mkdir(parents=True, exist_ok=True)


def check_benchmarks(settings: Evaluation) -> None:
    """Open every benchmark that the recipe measures.

    Raises:
        UserError: one is unknown, or its data cannot be read; all of them are named.
    """
    problems = []
    for name in dict.fromkeys((*settings.benches, *settings.reading, *settings.others)):
        try:
            open_benchmark(name, settings.n, settings.seed)[0]
        except UserError as error:
            problems.append(f"evaluation: {error}")
    if problems:
        raise UserError("; ".join(problems))


def check_stage(recipe: Recipe, stage: SFTStage | RLStage, loaded: Loaded, out: Path) -> None:
    """Check what this stage, and those after it, need from the model and the disk.

    Args:
        recipe: the run's.
        stage: the next one.
        loaded: the model that it starts from.
        out: the run's folder.

    Raises:
        UserError: all problems at once.
    """
    checks: list[Callable[[], None]] = [
        lambda: _check_end_of_turn(loaded),
        lambda: check_run_files(out),
        lambda: check_disk(recipe, stage, loaded, out),
        lambda: _check_export(loaded, out / stage.name),
    ]
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"stage {stage.name}: " + "; ".join(problems))


def _check_end_of_turn(loaded: Loaded) -> None:
    if loaded.tokenizer.eos_token_id is None:
        raise UserError(
            f"model {loaded.name!r}: its tokenizer has no eos_token, which ends every reply that is trained on; set "
            f"eos_token in {loaded.folder}/tokenizer_config.json"
        )


def _check_export(loaded: Loaded, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    check_exportable(loaded.model, loaded.tokenizer, loaded.image_processor, folder / "export")


def check_disk(recipe: Recipe, stage: SFTStage | RLStage, loaded: Loaded, out: Path) -> None:
    """Compare the free space with what the stages from this one on write.

    Raises:
        UserError: there is less; the message has the sum by parts.
    """
    sizes = {name: parameter.numel() for name, parameter in loaded.model.named_parameters()}
    whole = 4 * sum(sizes.values())
    trained = STATES * 4 * sum(size for name, size in sizes.items() if VISION not in name)
    names = [each.name for each in recipe.stages]
    left = recipe.stages[names.index(stage.name) :]
    checkpoints = max(_checkpoint_bytes(each, trained) for each in left)
    servers = max(_server_bytes(each, whole) for each in left)
    offloaded = max(_offloaded_bytes(each, sizes) for each in left)
    written = sum(file.stat().st_size for each in left for file in (out / each.name).rglob("*") if file.is_file())
    needed = len(left) * whole + checkpoints + servers + offloaded - written
    usage = shutil.disk_usage(out)
    if usage.total and needed > usage.free:
        parts = f"{len(left)} exports of {whole / GB:.1f} GB, checkpoints of {checkpoints / GB:.1f} GB"
        parts += f", weights for the servers of {servers / GB:.1f} GB" if servers else ""
        parts += f", weights that are kept out of memory of {offloaded / GB:.1f} GB"
        raise UserError(
            f"--out {out}: {needed / GB:.1f} GB are needed ({parts}) and {usage.free / GB:.1f} GB are free; free some, "
            "lower checkpoints_kept, or choose another --out"
        )


def _checkpoint_bytes(stage: SFTStage | RLStage, trained: int) -> int:
    """The checkpoints that are kept and the one that is being written; adapters are small beside all else."""
    return 0 if stage.lora is not None else (stage.checkpoints_kept + 1) * trained


def _server_bytes(stage: SFTStage | RLStage, whole: int) -> int:
    """The weights that servers are given, and the next ones while they are written."""
    if not isinstance(stage, RLStage) or stage.rollouts is None:
        return 0
    return whole if stage.rollouts_in_bfloat16 else 2 * whole


def _offloaded_bytes(stage: SFTStage | RLStage, sizes: Mapping[str, int]) -> int:
    """The vision tower, and under LoRA on a bfloat16 base the merged weights on their way to the export."""
    vision = sum(size for name, size in sizes.items() if VISION in name)
    if stage.lora is None or stage.lora.base_dtype == "float32":
        return 4 * vision
    return 2 * vision + 4 * (sum(sizes.values()) - vision)
