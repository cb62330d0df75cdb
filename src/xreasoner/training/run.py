"""Running a recipe: its stages in order, each in a folder of its own, resumable."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from xreasoner.data import packing
from xreasoner.data.sources import Example, Rows, Source
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.errors import CheckpointError, RecipeError, TrainingError, UserError
from xreasoner.models.export import export
from xreasoner.models.freezing import fingerprint, freeze
from xreasoner.models.loading import Loaded, encode, load
from xreasoner.models.lora import adapt, merged
from xreasoner.models.offloading import offload_vision
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.reasoner_settings import ReasonerSettings
from xreasoner.recipe import DataEntry, Recipe, RLStage, SFTStage, difference
from xreasoner.registry import SOURCES, resolve
from xreasoner.training import checkpoints, leak_check, parallel
from xreasoner.training.common import Journal, Learner, Progress, ready
from xreasoner.training.preflight import check_stage
from xreasoner.training.provenance import export_settings
from xreasoner.training.rl import train_rl
from xreasoner.training.rollouts import Asking, InProcess, Remote, Sampler
from xreasoner.training.sft import train_sft


def quiet(stage: str, step: int, total: int, metrics: dict[str, Any]) -> None:
    """A `Progress` that shows nothing."""


def run_recipe(recipe: Recipe, out: Path, progress: Progress = quiet) -> None:
    """Run every stage that is not done yet."""
    for stage in recipe.stages:
        run_stage(recipe, stage, out, progress)


def run_stage(recipe: Recipe, stage: SFTStage | RLStage, out: Path, progress: Progress = quiet) -> Path:
    """Run one stage, or resume it, and export its model; returns the exported folder.

    Under `torchrun` every rank calls; rank 0 writes. The manifest holds the hashes of every frozen tensor before and
    after, and of the data.

    Raises:
        TrainingError: a frozen tensor moved, or the export failed; what was trained is saved then.
        UserError: the folder belongs to another recipe or other data, or something is missing that the end needs.
    """
    folder = out / stage.name
    wanted = {"recipe": json.loads(recipe.model_dump_json(by_alias=True, exclude={"evaluation"})), "stage": stage.name}
    old = read_json(folder / "manifest.json")
    parallel.barrier()  # nobody writes before everybody has read
    differs = old and difference(old.get("recipe"), wanted["recipe"])
    if differs:
        raise UserError(f"{folder} was begun by another recipe ({differs}); set it back, or choose another --out")
    if old.get("done"):
        return folder / "export"
    parent = recipe.parent(stage)
    where = recipe.model if parent == "base" else str(out / parent / "export")
    loaded = _load(stage, where)
    check_stage(recipe, stage, loaded, out)
    started = parallel.told(fingerprint(sorted(loaded.model.state_dict().items())) if parallel.rank() == 0 else None)
    if old.get("started_from", started) != started:
        raise UserError(
            f"{folder} was begun from other weights than {where} holds now ({old['started_from'][:12]}, found "
            f"{started[:12]}); put them back, choose another --out, or remove the folder"
        )
    torch.manual_seed(recipe.seed)
    if stage.lora is not None:
        adapt(loaded.model, stage.lora)
    freeze(loaded.model, stage.lower_layers_frozen, stage.embeddings_frozen, lora=stage.lora is not None)
    before = still(loaded.model)
    offload_vision(loaded.model, folder)
    tokens, problems, facts = _data(stage, loaded, recipe.seed)
    if old.get("data_sha256", facts["data_sha256"]) != facts["data_sha256"]:
        raise UserError(f"{folder} was begun on other data; put them back, choose another --out, or remove it")
    manifest = {**wanted, **facts, "versions": versions(), "ranks": parallel.size(), "started_from": started}
    manifest["frozen"] = {"tensors": before[0], "before": before[1]}
    manifest["template_sha256"] = _sha256(str(loaded.tokenizer.chat_template))
    learner = ready(stage, loaded)
    manifest["alone_gap"] = _check_leaks(stage, learner, tokens, problems)
    _record(folder, manifest)
    shown = progress if parallel.rank() == 0 else quiet
    if isinstance(stage, SFTStage):
        journal = train_sft(stage, learner, tokens, folder, recipe.seed, shown)
    else:
        rollouts = _source(stage, learner, problems, folder, recipe.seed)
        journal = train_rl(stage, learner, rollouts, folder, recipe.seed, shown)
    journal.check_weights()
    after = still(learner.model)
    manifest["frozen"]["after"] = after[1]
    _record(folder, manifest)
    if after != before:
        raise TrainingError(f"stage {stage.name}: a frozen tensor moved ({before[1][:12]} → {after[1][:12]})")
    parallel.copy_weights(learner.model, learner.replica.model)
    _export(recipe, stage, learner, journal, out, export_settings(recipe, stage, loaded, started))
    if parallel.rank() == 0:
        _record(folder, {**manifest, "done": True})
        checkpoints.clear(folder / "checkpoints")
    parallel.barrier()
    return folder / "export"


def _export(
    recipe: Recipe,
    stage: SFTStage | RLStage,
    learner: Learner,
    journal: Journal,
    out: Path,
    settings: ReasonerSettings,
) -> None:
    """Write the trained model; where that fails, save what was trained.

    Raises:
        TrainingError: the export failed; the message has the command that continues.
    """
    failure: Exception | None = None
    if parallel.rank() == 0:
        replica = learner.replica
        try:
            folder = out / stage.name / "export"
            halved = stage.lora is not None and stage.lora.base_dtype == "bfloat16"
            model = merged(replica.model, folder.parent if halved else None)
            dtype = torch.float32 if halved else None
            export(model, replica.tokenizer, replica.image_processor, folder, dtype, settings)
        except Exception as error:  # whatever it was, hours of training come first
            failure = error
    if not parallel.agreed(failure is not None):
        return
    kept = f"all {journal.step} steps are saved"
    try:
        journal.save()
    except Exception as error:  # a full disk refuses both
        kept = f"the checkpoint of step {journal.saved_step} is kept (saving failed too: {error})"
    reason = "another rank could not write" if failure is None else " ".join(str(failure).split())[:300]
    raise TrainingError(
        f"stage {stage.name} is trained, and its export failed: {reason}; {kept}. Fix the cause, then continue with: "
        f"{resume_command(recipe, out)}"
    ) from failure


def resume_command(recipe: Recipe, out: Path) -> str:
    """The command that resumes a run: the present one, or one that trains this recipe here."""
    given = sys.argv[1:]
    if given[:1] not in (["demo"], ["train"]):
        given = ["train", recipe.name, "--out", str(out)]
    return shlex.join(["xreasoner", *given])


def _source(stage: RLStage, learner: Learner, problems: Sequence[Problem], folder: Path, seed: int) -> Sampler:
    loaded = learner.replica if learner.sampler is None else learner.sampler.loaded
    asking = Asking(stage, loaded, problems, seed, alone=stage.rollouts is not None)
    if stage.rollouts is not None:
        return Remote(asking, learner, stage.rollouts, folder)
    if learner.sampler is None:
        return InProcess(asking, learner, TorchEngine(asking.loaded))
    learner.sampler.allocate()  # the engine's cache takes a share of what memory is left beside it
    engine = TorchEngine(asking.loaded)
    learner.sampler.release()
    return InProcess(asking, learner, engine)


def _load(stage: SFTStage | RLStage, where: str) -> Loaded:
    """The model that a stage starts from. Of several ranks, rank 0 alone reads the weights, on its CPU."""
    halved = stage.lora is not None and stage.lora.base_dtype == "bfloat16"
    device = None if parallel.size() == 1 else "cpu" if parallel.rank() == 0 else "meta"
    return load(where, device, torch.bfloat16 if halved else torch.float32)


def still(model: Any) -> tuple[int, str]:
    """How many parameters are frozen, and rank 0's fingerprint of them; every rank must ask: some may be sharded."""
    frozen = sorted((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)
    tensors = ((name, parallel.whole(parameter)) for name, parameter in frozen)
    if parallel.rank() == 0:
        return parallel.told((len(frozen), fingerprint(tensors)))  # type: ignore[no-any-return]
    for _ in tensors:
        pass
    return parallel.told(None)  # type: ignore[no-any-return]


def _record(folder: Path, manifest: dict[str, Any]) -> None:
    if parallel.rank() == 0:
        write_json(folder / "manifest.json", manifest)


def _data(
    stage: SFTStage | RLStage, loaded: Loaded, seed: int
) -> tuple[list[packing.Tokens], list[Problem], dict[str, Any]]:
    """What the stage learns from (tokens for SFT, problems for RL), and the manifest's facts of it."""
    if isinstance(stage, SFTStage):
        tokens, facts = sft_data(stage, loaded, seed)
        _tell_dropped(stage, facts, "examples", f"max_length {min(stage.max_length, loaded.positions):,}")
        return tokens, [], facts
    problems, facts = rl_data(stage, seed)
    problems, counts = packing.askable(loaded, problems, stage.prompt, stage.max_prompt, stage.exit_text)
    if not problems:
        raise RecipeError(f"stage {stage.name}: no prompt is left under max_prompt {stage.max_prompt}")
    lengths = packing.Lengths(total=len(counts), dropped=len(counts) - len(problems), longest=max(counts))
    facts |= {"lengths": asdict(lengths)}
    _tell_dropped(stage, facts, "prompts", f"max_prompt {stage.max_prompt:,} or what the model takes")
    return [], problems, facts


def _tell_dropped(stage: SFTStage | RLStage, facts: dict[str, Any], what: str, limit: str) -> None:
    """Nothing is left out silently."""
    lengths = facts["lengths"]
    if lengths["dropped"] and parallel.rank() == 0:
        shares = f"{lengths['dropped']:,} of {lengths['total']:,} {what}"
        warnings.warn(f"stage {stage.name}: {shares} are longer than {limit} and left out", stacklevel=2)


def source(entry: DataEntry) -> Source:
    found: Source = resolve(SOURCES, "data source", entry.source)(entry.options)
    return found


def known_sources(recipe: Recipe, out: Path) -> None:
    """Raise `UserError` for data of a later stage that nobody could read, before the first one is trained.

    Files are read to their end; what is made by rule has no wrong row.
    """
    waiting = [stage for stage in recipe.stages if not read_json(out / stage.name / "manifest.json").get("done")]
    for stage in waiting:
        for k, entry in enumerate(stage.data):
            part = stage.model_copy(update={"data": (entry,)})
            try:
                if isinstance(source(entry), Rows) and stage is not waiting[0]:  # which reads its own at once
                    sft_examples(part, recipe.seed) if isinstance(part, SFTStage) else rl_data(part, recipe.seed)
            except UserError as error:
                raise UserError(f"stages.{stage.name}.data.{k}: {error}") from None


def check(stage: SFTStage | RLStage, problems: Sequence[Problem]) -> None:
    """No picture and no foreign domain enters post-training. Raises `RecipeError` that names the problem."""
    for problem in problems:
        if problem.images or problem.modality != "text":
            raise RecipeError(f"stage {stage.name}: problem {problem.id!r} has an image; post-training is text only")
        if problem.domain not in stage.allowed_domains:
            allowed = ", ".join(stage.allowed_domains)
            raise RecipeError(f"stage {stage.name}: problem {problem.id!r} is {problem.domain}; allowed: {allowed}")


def sft_examples(stage: SFTStage, seed: int) -> list[Example]:
    examples = [
        replace(example, prompt=entry.prompt or "")
        for entry in stage.data
        for example in source(entry).examples(entry.n, seed, stage.style)
    ]
    check(stage, [example.problem for example in examples])
    return examples


def sft_data(stage: SFTStage, loaded: Loaded, seed: int) -> tuple[list[packing.Tokens], dict[str, Any]]:
    """Tokenised examples, and the manifest's facts of them."""
    examples = sft_examples(stage, seed)
    limit = min(stage.max_length, loaded.positions)
    tokens, lengths = packing.tokenise(loaded, examples, stage.prompt, limit, stage.longer, stage.exit_text)
    if not tokens:
        raise RecipeError(f"stage {stage.name}: no example is left under max_length {limit}")
    facts = _facts(stage, [example.problem for example in examples])
    return tokens, {**facts, "data_sha256": packing.digest(tokens), "lengths": asdict(lengths)}


def _check_leaks(
    stage: SFTStage | RLStage, learner: Learner, tokens: Sequence[packing.Tokens], problems: Sequence[Problem]
) -> float:
    """See `leak_check`; every rank must ask, for a sharded model's weights are gathered."""
    rows: list[tuple[int, ...]] = [item.ids for item in tokens[:64]]
    if isinstance(stage, RLStage):
        messages = [chat_messages(problem, stage.prompt) for problem in problems[:64]]
        rows = [tuple(encode(learner.loaded, each).input_ids.tolist()) for each in messages]
    shared = isinstance(stage, RLStage) and not learner.packed

    def gap(model: Any) -> float:
        if shared:
            return leak_check.check_shared_prompts(model, rows, learner.precision)
        return leak_check.check_documents(model, rows, learner.packed, learner.precision)

    with torch.no_grad(), learner.computing():
        return float(parallel.forward(learner.model, gap))


def rl_data(stage: RLStage, seed: int) -> tuple[list[Problem], dict[str, Any]]:
    """Problems, and the manifest's facts of them. Their seed differs from SFT's: RL sees fresh ones."""
    problems = [p for entry in stage.data for p in source(entry).problems(entry.n, seed + 500_009)]
    check(stage, problems)
    if not problems:
        raise RecipeError(f"stage {stage.name}: its data hold no problem")
    facts = _facts(stage, problems)
    return problems, {**facts, "data_sha256": _sha256(repr([(p.id, p.question, p.options, p.gold) for p in problems]))}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _facts(stage: SFTStage | RLStage, problems: Sequence[Problem]) -> dict[str, Any]:
    counts = Counter(f"{problem.source}/{problem.family}" for problem in problems)
    pictures = sum(len(problem.images) for problem in problems)
    domains = sorted({problem.domain for problem in problems})
    return {"problems": dict(sorted(counts.items())), "pictures": pictures, "domains": domains, "prompt": stage.prompt}


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    names = ("xreasoner", "torch", "transformers", "tokenizers", "reasoning-gym", "easy-vqa", "pillow", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping, or {} when there is none. Raises `CheckpointError` for one that is damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected an object")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or choose another --out") from None
    return found


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(aside, path)
