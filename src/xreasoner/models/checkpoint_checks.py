"""Checks that a checkpoint is whole and belongs together, before anything is measured with it or trained from it.

transformers fills tensors that a checkpoint lacks with random numbers, ignores tensors that it does not know, and
applies an adapter that lies beside the weights. Each of these is a problem here. `report` puts all problems of one
checkpoint into one message.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from xreasoner.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
CONFIG_FILES = (
    "added_tokens.json",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""JSON files that loading reads, where they exist. Any other file in the folder is nobody's business."""
NAMES_SHOWN = 3
"""Tensor names listed for each problem."""


class Problem(NamedTuple):
    """What was found, and how to fix it; None: only a sound copy of the checkpoint helps; "": another problem says."""

    found: str
    fix: str | None = None


def report(
    name: str, problems: Sequence[Problem], restore: str, kind: type[CheckpointError] = CheckpointError
) -> CheckpointError:
    """One error, on one line, for everything that is wrong with the checkpoint `name`.

    Args:
        name: The model as the user named it.
        problems: At least one.
        restore: How to get a sound copy; added once if any problem needs it.
        kind: The error's class.
    """
    parts = [f"{problem.found} ({problem.fix})" if problem.fix else problem.found for problem in problems]
    if any(problem.fix is None for problem in problems):
        parts.append(restore)
    return kind(f"model {name!r} cannot be read: " + "; ".join(part.replace("\n", " ") for part in parts))


def list_some(names: Iterable[str], shown: int = NAMES_SHOWN) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    rest = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


# ---------------------------------------------------------------------------------------------------------------
# Files


def folder_problems(folder: Path, need_weights: bool = True) -> list[Problem]:
    """Everything that is wrong with a checkpoint's files, from their names, headers and JSON alone.

    Args:
        folder: The checkpoint.
        need_weights: Whether a folder without any weights is a problem; a plan or a dry run needs none.
    """
    adapters = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if adapters and not (folder / "config.json").is_file():
        return [adapter_alone(adapter_base(folder))]
    problems = [
        Problem(f"{folder / name} is missing; expected a Hugging Face folder")
        for name in ("config.json", "tokenizer.json")
        if not (folder / name).is_file()
    ]
    problems += _json_problems(folder / name for name in CONFIG_FILES)
    problems += _weight_problems(folder, adapters, need_weights)
    if adapters and _weight_files(folder):
        problems.append(adapter_beside(adapters, adapter_base(folder)))
    return problems


def adapter_base(folder: Path) -> str | None:
    """The base that a folder's adapter names, if it names one."""
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(found["base_model_name_or_path"] or "") or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def adapter_alone(base: str | None) -> Problem:
    """An adapter in place of a model."""
    named = f"its base is {base}" if base else "it does not say which model is its base"
    return Problem(
        f"this is an adapter and no model: {named}",
        "merge it into its base with peft (PeftModel.from_pretrained(base, folder).merge_and_unload()), save the "
        "result with save_pretrained, and name that folder",
    )


def adapter_beside(names: Sequence[str], base: str | None) -> Problem:
    """Files of an adapter in a model's folder, which transformers would apply without a word."""
    of = f" for {base}" if base else ""
    return Problem(
        f"an adapter{of} lies beside the model's weights ({', '.join(names)})",
        "to use the model without it, move these files out of the folder; to use it, merge it with peft's "
        "merge_and_unload() and save the result",
    )


def _json_problems(paths: Iterable[Path]) -> list[Problem]:
    problems = []
    for path in paths:
        try:
            if path.is_file() and not isinstance(json.loads(path.read_bytes()), dict):
                problems.append(Problem(f"{path} holds no JSON object"))
        except (ValueError, RecursionError) as error:
            problems.append(Problem(f"{path} is damaged or cut short ({first_line(error)})"))
    return problems


def first_line(error: BaseException) -> str:
    """An error's first line, or its type where it has no text."""
    return str(error).splitlines()[0] if str(error).strip() else type(error).__name__


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers takes weights from: one file before shards, safetensors before torch's own format."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            named = sorted(set(_weight_map(index).values()))
            return [folder / name for name in named if (folder / name).is_file()]
    return []


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: file} of a shard index; {} where it is damaged, which `_index_problems` says."""
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _weight_problems(folder: Path, adapters: Sequence[str], needed: bool) -> list[Problem]:
    problems = []
    indices = sorted(path for path in folder.glob("*.index.json") if not path.name.startswith("."))
    for index in indices:
        problems += _index_problems(index)
    files = _weight_files(folder)
    problems += _unlisted_shards(folder, files, indices)
    problems += _two_sets(files, indices)
    if needed and not files and not problems:
        beside = f", only {', '.join(adapters)}" if adapters else ""
        problems.append(
            Problem(f"{folder} holds no weights{beside}; expected model.safetensors, or shards and an index")
        )
    return problems + _damaged_weights([path for path in files if path.suffix == ".safetensors"])


def _index_problems(index: Path) -> list[Problem]:
    if not _weight_map(index):
        return [Problem(f"{index} is damaged or lists no tensor; expected an object with weight_map")]
    lost: dict[str, list[str]] = defaultdict(list)
    for tensor, file in _weight_map(index).items():
        if not (index.parent / file).is_file():
            lost[file].append(tensor)
    if not lost:
        return []
    tensors = [tensor for names in lost.values() for tensor in names]
    return [
        Problem(
            f"{_count(len(lost), 'file')} of {index.name} missing: {list_some(lost)}, with "
            f"{_count(len(tensors), 'tensor')} ({list_some(tensors)})"
        )
    ]


def _unlisted_shards(folder: Path, files: Sequence[Path], indices: Sequence[Path]) -> list[Problem]:
    """Shards that no index lists: their tensors would be left out."""
    listed = {path.name for path in files} | {name for index in indices for name in _weight_map(index).values()}
    shards = [
        path.name
        for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
        for path in folder.glob(pattern)
    ]
    lost = [name for name in shards if name not in listed]
    if not lost:
        return []
    return [Problem(f"{_count(len(lost), 'shard')} without an entry in an index: {list_some(lost)}")]


def _two_sets(files: Sequence[Path], indices: Sequence[Path]) -> list[Problem]:
    """One whole file beside shards of the same format: transformers reads the file and ignores the shards."""
    if len(files) != 1:
        return []
    (whole,) = files
    shards = {
        name
        for index in indices
        if index.name.startswith(whole.name)
        for name in _weight_map(index).values()
        if name != whole.name and (index.parent / name).is_file()
    }
    if not shards:
        return []
    return [Problem(f"{whole.name} beside shards ({list_some(shards)}), of which one set is ignored", "remove one set")]


def _damaged_weights(files: Sequence[Path]) -> list[Problem]:
    """Files that are cut short, and tensors that stand in two of them."""
    problems: list[Problem] = []
    place: dict[str, str] = {}
    twice: dict[str, tuple[str, str]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as opened:
                names = list(opened.keys())
        except (OSError, SafetensorError) as error:
            problems.append(Problem(f"{path} is damaged or cut short ({first_line(error)})"))
            continue
        for name in names:
            if place.setdefault(name, path.name) != path.name:
                twice[name] = (place[name], path.name)
    if twice:
        first, second = next(iter(twice.values()))
        problems.append(
            Problem(f"{_count(len(twice), 'tensor')} in two files, as {first} and {second}: {list_some(twice)}")
        )
    return problems


# ---------------------------------------------------------------------------------------------------------------
# Tokenizer


def tokenizer_problems(tokenizer: Any, config: Any, other_ends: Any = None) -> list[Problem]:
    """Whether a tokenizer fits the model: every id has an embedding row, and a token ends a reply.

    Embedding rows that no token uses are common (rows are padded for speed) and no problem.

    Args:
        tokenizer: The checkpoint's.
        config: Its configuration.
        other_ends: eos_token_id of its generation_config.json, if it has one.
    """
    problems = []
    rows = getattr(config.get_text_config(), "vocab_size", None)
    vocabulary = tokenizer.get_vocab()
    beyond = {token: i for token, i in vocabulary.items() if rows is not None and i >= rows}
    if beyond:
        problems.append(
            Problem(
                f"{_count(len(beyond), 'token')} of the tokenizer beyond the model's {rows:,} embedding rows: "
                + list_some(f"{token!r} (id {i})" for token, i in beyond.items()),
                "use the tokenizer that the model was saved with, or resize its embeddings and train the new rows",
            )
        )
    if tokenizer.eos_token_id is None and not other_ends and other_ends != 0:
        problems.append(
            Problem(
                "the tokenizer has no eos_token, so no reply would end",
                'name the token that ends a turn in tokenizer_config.json, such as "eos_token": "<|im_end|>"',
            )
        )
    problems += _image_token_problems(config, {i: token for token, i in vocabulary.items()})
    return problems


def _image_token_problems(config: Any, tokens: Mapping[int, str]) -> list[Problem]:
    image = getattr(config, "image_token_id", None)
    if image is None or image in tokens:
        return []
    return [
        Problem(
            f"config.json says image_token_id {image}, which the tokenizer does not have",
            "use the tokenizer that the model was saved with",
        )
    ]


# ---------------------------------------------------------------------------------------------------------------
# Tensors

FOREIGN_NAMES = {
    "lora_": "LoRA tensors: merge them with peft's merge_and_unload() before saving",
    ".base_layer.": "LoRA tensors: merge them with peft's merge_and_unload() before saving",
    "base_model.model.": "peft's names: save the merged model, merge_and_unload().save_pretrained()",
    "_orig_mod.": "torch.compile's names: save the model inside, model._orig_mod.save_pretrained()",
    "_fsdp_wrapped_module.": "FSDP's names: save the full state dict, without the wrapper",
    "_checkpoint_wrapped_module.": "activation checkpointing's names: save the model without the wrapper",
    "module.": "DataParallel's names: save model.module.save_pretrained()",
    "model.model.": "names with a doubled `model.`: rename the tensors without the first one",
    "_forward_module.": "DeepSpeed's or Lightning's names: convert the checkpoint to Hugging Face's form first",
}
"""Part of an unexpected tensor's name, and what wrote it; the first that fits is named."""


def tensor_problems(info: Mapping[str, Any], config: Any, quantized: bool = False) -> list[Problem]:
    """What transformers' own loading report (`output_loading_info`) holds against a checkpoint.

    The report leaves out tied weights, buffers that are computed, and names that the model's class ignores or
    converts.

    Args:
        info: {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}.
        config: The model's configuration.
        quantized: Whether the checkpoint is quantized: its scales are known to the quantizer alone, so unexpected
            tensors are not counted.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    problems = []
    if missing:
        problems.append(Problem(f"{_count(len(missing), 'tensor')} missing: {list_some(missing)}"))
    if unexpected and not quantized:
        problems.append(Problem(f"{_count(len(unexpected), 'tensor')} unexpected: {list_some(unexpected)}"))
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        shapes = [f"{name} is {list(found)}, expected {list(expected)}" for name, found, expected in wrong]
        problems.append(Problem(f"{_count(len(wrong), 'tensor')} of another shape: {list_some(shapes)}"))
    problems += [Problem(str(text)) for text in info.get("error_msgs", ())]
    hint = _foreign_names(unexpected) or _untied_head(missing, config)
    if problems and hint:
        problems = [*(Problem(problem.found, "") for problem in problems[:-1]), Problem(problems[-1].found, hint)]
    return problems


def _foreign_names(names: Collection[str]) -> str:
    return next((cause for part, cause in FOREIGN_NAMES.items() if any(part in name for name in names)), "")


def _untied_head(missing: Collection[str], config: Any) -> str:
    tied = getattr(config, "tie_word_embeddings", False)
    if set(missing) != {"lm_head.weight"} or tied:
        return ""
    return "if the output weights are the embeddings, set tie_word_embeddings to true in config.json"


@torch.no_grad()
def nonfinite_problems(model: Any) -> list[Problem]:
    """Parameters that hold NaN or infinity, in one pass and without a copy of any.

    Weights that accelerate keeps on a disk or in another memory (meta tensors here) are not looked at.
    """
    flags: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        counted = parameter.is_floating_point() and parameter.element_size() > 1  # 8-bit floats have no minimum
        if counted and parameter.numel() and not parameter.is_meta:
            low, high = torch.aminmax(parameter)
            flags[name] = torch.isfinite(low) & torch.isfinite(high)
    bad = [name for name, sound in flags.items() if not sound]
    if not bad:
        return []
    kinds = {str(model.get_parameter(name).dtype).removeprefix("torch.") for name in bad}
    dtype = ", ".join(sorted(kinds))
    fix = (
        "float16 overflows above 65,504: try dtype bfloat16 or float32; if that fails too, the file itself holds them"
        if "float16" in kinds
        else "the file itself holds them, as after a diverged run or an export in float16: use an earlier checkpoint, "
        "or save it again in dtype bfloat16 or float32"
    )
    return [Problem(f"{_count(len(bad), 'tensor')} with NaN or infinity in {dtype}: {list_some(bad)}", fix)]
