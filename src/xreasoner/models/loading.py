"""Loading a vision-language model, and turning messages and pictures into its inputs."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from xreasoner.engines.base import Message, Preprocessing
from xreasoner.errors import CheckpointError, NonFiniteWeightsError, UserError, XReasonerError
from xreasoner.hub import optional_hub_file
from xreasoner.images.resize import first_resized
from xreasoner.models.checkpoint_checks import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    Problem,
    adapter_alone,
    adapter_base,
    adapter_beside,
    first_line,
    folder_problems,
    nonfinite_problems,
    report,
    tensor_problems,
    tokenizer_problems,
)
from xreasoner.registry import MODELS, resolve
from xreasoner.trace import OPEN, thought_opening

QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose pictures are patches in grids and whose positions have a time, a row and a column."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer and image processor.

    folder: where it came from (a folder, or a hub id); name: as the user gave it; revision: a hub model's commit.
    processor: transformers' own for text and pictures together, for models outside `QWEN_VL`.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    folder: str
    name: str
    revision: str | None = None
    processor: Any = None

    @property
    def device(self) -> torch.device:
        """Where the tokens go in; for weights that accelerate keeps elsewhere, where it computes with them."""
        embeddings = self.model.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)
        if embeddings.weight.is_meta and hook is not None:
            return torch.device(hook.execution_device)
        device: torch.device = embeddings.weight.device
        return device

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def positions(self) -> int:
        """The tokens that the model takes; no number that matters where it says none."""
        return getattr(self.text_config, "max_position_embeddings", None) or 1 << 60

    @property
    def patch_size(self) -> int | None:
        """The side, in pixels, of the square that becomes one image token; None outside `QWEN_VL`."""
        if self.processor is not None:
            return None
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    @property
    def placeholders(self) -> list[int]:
        """Ids of the tokens that stand for pictures and videos."""
        ids = [getattr(self.model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
        return [i for i in ids if i is not None]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt.

    input_ids [T]; position_ids [3, T] (time, row, column), or [1, T] outside `QWEN_VL`; pixel_values [P, D], the
    patches of all N pictures, and image_grid_thw [N, 3], their grids in patches, or None where there is no picture.
    more: what else the model's own processor made of the pictures. opening: the text with which the prompt opened the
    reply's thought (`<think>` and what follows it), "" where it did not.
    """

    input_ids: Tensor
    position_ids: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    more: Mapping[str, Tensor] = field(default_factory=dict)
    opening: str = ""

    @property
    def pictures(self) -> dict[str, Tensor]:
        """The model's inputs beside the tokens."""
        named = {"pixel_values": self.pixel_values, "image_grid_thw": self.image_grid_thw, **self.more}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def find(name: str) -> str:
    """The folder or hub id behind a model's name; the folder may lack weights, which a plan does not need.

    Raises:
        CheckpointError: The folder is not a whole checkpoint; the message names every file that is missing, damaged,
            or does not belong there.
        UserError: There is no such folder.
    """
    where = _locate(name)
    problems = folder_problems(Path(where), need_weights=False) if Path(where).is_dir() else []
    if problems:
        raise report(name, problems, _mend(name))
    return where


def _locate(name: str) -> str:
    """The folder or hub id, whatever state it is in."""
    folder = resolve(MODELS, "model", name)() if name in MODELS else Path(name)
    if folder.is_dir():
        return str(folder)
    if name in MODELS:
        raise CheckpointError(f"model {name!r}: its folder is missing from this installation; make it with `make base`")
    if name.count("/") == 1 and not name.startswith((".", "/")) and not folder.exists():
        return name  # a hub id
    known = ", ".join(sorted(MODELS))
    raise UserError(f"model {name!r}: no such folder; expected a checkpoint's folder, a hub id, or one of {known}")


def _mend(name: str) -> str:
    if name in MODELS:
        return "reinstall the package, or make it again with `make base`"
    if not Path(name).exists():
        return f"fetch it again with `hf download {name} --force-download`"
    return "copy it again, or run `xreasoner train` with its recipe again"


def load(
    name: str,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> Loaded:
    """Load a model by registered name, folder or hub id: float32 on a CPU, bfloat16 on a GPU unless told.

    No code of the checkpoint is run.

    Args:
        name: A registered name, a folder or a hub id.
        device: A GPU if there is one, by default; "meta" reads no weights.
        dtype: What the weights are held in.
        device_map: "auto" spreads a model that does not fit one GPU.
        attn_implementation: "flash_attention_2", "sdpa" or "eager" for prompts and pictures; None is transformers'
            choice.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, an adapter or another model's, its weights are not
            finite, or the engine cannot run it. One message holds all that is wrong.
        UserError: The name stands for nothing, or an option is not available here.
    """
    where = _locate(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    problems = folder_problems(Path(where)) if Path(where).is_dir() else _hub_problems(where)
    try:
        with _quiet():
            config, tokenizer, processors = _parts(name, where, problems)
            if problems:
                _add_tensor_problems(where, problems)
                raise report(name, problems, _mend(name))
            model, info = _read(where, device, dtype, "meta" if device == "meta" else device_map, attn_implementation)
    except Exception as error:
        if problems and not isinstance(error, CheckpointError):
            raise report(name, problems, _mend(name)) from error
        raise _explained(error, name, where, attn_implementation) from error
    problems += tensor_problems(info, config, getattr(model, "is_quantized", False))
    if getattr(model, "_hf_peft_config_loaded", False):
        problems.append(adapter_beside([ADAPTER_CONFIG], None))
    if problems:
        raise report(name, problems, _mend(name))
    problems = [] if device == "meta" else nonfinite_problems(model)
    if problems:
        raise report(name, problems, _mend(name), NonFiniteWeightsError)
    model.eval()
    _patches_by_product(model)
    revision = getattr(model.config, "_commit_hash", None)
    return Loaded(model, tokenizer, processors[0], where, name, revision, processors[1])


def _hub_problems(hub: str) -> list[Problem]:
    """What can be told of a hub id before anything large is fetched: whether it holds an adapter."""
    adapter = optional_hub_file(hub, ADAPTER_CONFIG)
    if adapter is None:
        return []
    base = adapter_base(adapter.parent)
    alone = optional_hub_file(hub, "config.json") is None
    return [adapter_alone(base) if alone else adapter_beside([ADAPTER_CONFIG], base)]


def _parts(name: str, where: str, problems: list[Problem]) -> tuple[Any, Any, tuple[Any, Any]]:
    """Configuration, tokenizer and processors; what does not fit together is added to the problems."""
    options: dict[str, Any] = {"trust_remote_code": False}
    config = AutoConfig.from_pretrained(where, **options)
    wrong = _kind_problems(config)
    if wrong:
        raise report(name, [*problems, *wrong], _mend(name))
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    processors = _processors(where, config)
    problems += _use_processor_template(where, tokenizer)
    generation = optional_file(where, "generation_config.json")
    ends = None if generation is None else json.loads(generation.read_bytes()).get("eos_token_id")
    problems += tokenizer_problems(tokenizer, config, ends)
    return config, tokenizer, processors


def _use_processor_template(where: str, tokenizer: Any) -> list[Problem]:
    """Give the tokenizer the template that transformers' processors use.

    chat_template.jinja comes before chat_template.json (the form of older checkpoints), and both before
    tokenizer_config.json, whose template may be one for text alone.
    """
    older = optional_file(where, "chat_template.json")
    if older is not None and optional_file(where, "chat_template.jinja") is None:
        found = json.loads(older.read_text(encoding="utf-8")).get("chat_template")
        tokenizer.chat_template = found or tokenizer.chat_template
    if not tokenizer.chat_template:
        return [
            Problem(
                f"it has no chat template; expected one in {where}/chat_template.jinja, chat_template.json or "
                "tokenizer_config.json",
                "copy the template from the model that it was made from",
            )
        ]
    try:
        message = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        return [Problem(f"its chat template is no Jinja template (line {error.lineno}: {first_line(error)})")]
    except Exception:  # whatever else a template raises, it may raise for this message alone
        return []
    return []


def optional_file(where: str, name: str) -> Path | None:
    """A file of a folder or hub id, if there is one."""
    if not Path(where).is_dir():
        return optional_hub_file(where, name)
    path = Path(where) / name
    return path if path.is_file() else None


def _add_tensor_problems(where: str, problems: list[Problem]) -> None:
    """Add what the weights' names and shapes show, where they can be read at all; no tensor is read for it."""
    with tempfile.TemporaryDirectory() as beside:
        for path in Path(where).iterdir() if Path(where).is_dir() else ():
            if path.is_file() and path.name not in ADAPTER_FILES:  # an adapter would be counted into the model
                (Path(beside) / path.name).symlink_to(path.resolve())
        try:
            model, info = _read(beside, "meta", torch.float32, "meta", None)
        except Exception:  # what stops it is among the problems already
            return
    problems += tensor_problems(info, model.config, getattr(model, "is_quantized", False))


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns on many lines of what is told here in one."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _explained(error: Exception, name: str, where: str, attention: str | None) -> Exception:
    """The error as one of ours, with its first line."""
    if isinstance(error, XReasonerError):
        return error
    line = first_line(error)
    if isinstance(error, ImportError):
        return UserError(f"model {name!r} cannot be loaded here: {line}")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in line:
        return UserError(
            f"model {name!r} does not fit the memory here: {line}; use dtype bfloat16, more GPUs (device auto), or a "
            "smaller model"
        )
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"model {name!r} cannot be read from {where}: its .bin file is damaged, or holds more than tensors, which "
            "is never run; save the model as safetensors"
        )
    if isinstance(error, SafetensorError | json.JSONDecodeError | RuntimeError | OSError | EOFError):
        return CheckpointError(f"model {name!r} cannot be read from {where}: {line}; {_mend(name)}")
    if "trust_remote_code" in str(error):
        return CheckpointError(f"model {name!r} wants to run code that came with it, which is never done")
    if attention is not None and "attn_implementation" in str(error):
        return UserError(f"attn_implementation {attention!r}: {line}")
    if isinstance(error, ValueError):
        return CheckpointError(f"model {name!r} cannot be loaded from {where}: {line}")
    # a configuration of another form makes transformers fail in any way
    return CheckpointError(f"model {name!r} cannot be loaded from {where}: {type(error).__name__}: {line}")


def _check_device(device: str) -> None:
    """Raise `UserError` for a device that is none, or is not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {device!r} is not to be had here ({first_line(error)}); expected cpu, or cuda where there is a GPU"
        ) from None


def _kind_problems(config: Any) -> list[Problem]:
    """A model that reads no images, or whose cache is not plain keys and values."""
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        found = f"it is of type {config.model_type!r}; expected a vision-language model"
        return [Problem(f"{found} that transformers loads as AutoModelForImageTextToText, such as 'qwen2_5_vl'", "")]
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if kinds or getattr(config, "is_encoder_decoder", False):
        found = ", ".join(sorted(kinds)) or "an encoder and a decoder"
        expected = "the torch engine keeps plain keys and values and expected full attention in every layer"
        return [
            Problem(f"{config.model_type} has {found}; {expected}. Serve it with vLLM and give the server's URL", "")
        ]
    return []


def _processors(where: str, config: Any) -> tuple[Any, Any]:
    """The image processor, and the whole processor for models outside `QWEN_VL`."""
    if config.model_type in QWEN_VL:
        settings, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(where)
        return Qwen2VLImageProcessorPil.from_pretrained(where, size=_pixel_limits(settings)), None
    processor = AutoProcessor.from_pretrained(where, trust_remote_code=False)
    return processor.image_processor, processor


def _pixel_limits(settings: Mapping[str, Any]) -> dict[str, int]:
    """The limits of an image's area, in any of the three forms in which transformers has written them.

    Raises `ValueError` for limits that no image can keep.
    """
    size = settings.get("size")
    size = size if isinstance(size, Mapping) else {}
    limits = {}
    for edge, name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        forms = (settings.get(name), size.get(name), size.get(edge), Qwen2VLImageProcessorPil.size[edge])
        limits[edge] = next(value for value in forms if value is not None)
    low, high = limits.values()
    if not all(isinstance(value, int) for value in (low, high)) or not 0 < low <= high:
        raise ValueError(
            f"preprocessor_config.json: min_pixels {low!r} and max_pixels {high!r}; expected numbers with "
            "0 < min_pixels <= max_pixels"
        )
    return limits


def _read(
    where: str, device: str, dtype: torch.dtype, device_map: str | None, attention: str | None
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of what it lacked and did not use."""
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if device_map is not None:
        options["device_map"] = device_map
    model, info = AutoModelForImageTextToText.from_pretrained(
        where, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise CheckpointError(
            f"model {where!r} ({model.config.model_type}) computes logits for whole prompts only; the torch engine "
            "expected `logits_to_keep`. Serve it with vLLM and give the server's URL"
        )
    return model if device_map is not None else model.to(device), info


class _Product(torch.nn.Conv3d):
    """Of a single patch: [N, C, T, H, W], as large as the kernel, to [N, D]. A convolution takes twice as long."""

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def _patches_by_product(model: Any) -> None:
    """Towers hand patches to their convolution one by one."""
    found = getattr(getattr(getattr(model.model, "visual", None), "patch_embed", None), "proj", None)
    if model.config.model_type in QWEN_VL and type(found) is torch.nn.Conv3d and found.kernel_size == found.stride:
        found.__class__ = _Product


_LOOKALIKE = str.maketrans({"|": "¦"})


def plain(loaded: Loaded, text: str) -> str:
    """Text in which no special token is spelled: `<|image_pad|>` typed by a user is not a picture.

    Special tokens without a `|`, as some checkpoints' tags, are left to whoever encodes the text.
    """
    for token in loaded.tokenizer.added_tokens_decoder.values():
        if token.special and token.content in text:
            text = text.replace(token.content, token.content.translate(_LOOKALIKE))
    return text


def _safe(loaded: Loaded, messages: Sequence[Message]) -> list[Message]:
    safe = []
    for message in messages:
        content = message["content"]
        content = plain(loaded, content) if isinstance(content, str) else _safe_parts(loaded, content)
        safe.append({**message, "role": plain(loaded, message["role"]), "content": content})
    return safe


_SEAM = "\ufdd0"
"""Put into a special token that a message spells, so that it is encoded in two parts, as text. (A code point that
Unicode keeps out of text.)"""


def _with_seams(tokenizer: Any, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with a seam in every special token that they spell, but for the assistant's, whose tags are tags."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]

    def seam(text: str) -> str:
        for token in special:
            text = text.replace(token, token[0] + _SEAM + token[1:])
        return text

    def sewn(message: Message) -> Message:
        content = message["content"]
        if isinstance(content, str):
            return {**message, "content": seam(content)}
        parts = [{**part, "text": seam(part["text"])} if part["type"] == "text" else part for part in content]
        return {**message, "content": parts}

    return [message if message["role"] == "assistant" else sewn(message) for message in messages]


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], str]:
    """The ids of a chat prompt, an image as one token, and the part with which its template opened the thought.

    A special token that a user's text spells (a checkpoint may have `<think>` as one) is text.
    """
    text, opening = render_chat(tokenizer, _with_seams(tokenizer, messages))
    ids: list[int] = []
    for part in text.split(_SEAM):
        # verbose: the tokenizer warns of what is too long, which is refused in our own words
        ids += tokenizer.encode(part, add_special_tokens=False, verbose=False)
    return ids, opening


def _safe_parts(loaded: Loaded, parts: Sequence[Any]) -> list[Any]:
    """Neighbouring texts become one first, or a special token could be spelled across two of them."""
    merged: list[Any] = []
    for part in parts:
        if part.get("type") not in ("text", "image"):
            raise UserError(f"a message's part is of type {part.get('type')!r}; expected 'text' or 'image'")
        if merged and part["type"] == "text" == merged[-1]["type"]:
            merged[-1] = {"type": "text", "text": merged[-1]["text"] + part["text"]}
        else:
            merged.append(part)
    return [{**part, "text": plain(loaded, part["text"])} if part["type"] == "text" else part for part in merged]


def encode(
    loaded: Loaded,
    messages: Sequence[Message],
    images: Sequence[Image] = (),
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    preprocessing: Preprocessing = "processor",
) -> Encoded:
    """The ids of a chat prompt that ends where the assistant begins, pictures expanded to their tokens.

    Special tokens that the user's text spells stay text. min_pixels, max_pixels: width times height that pictures are
    resized to lie between; None: the model's own. preprocessing: see `engines.base.Request`. Raises `UserError`
    when the number of pictures differs from that of the placeholders, and for limits that the model cannot keep.
    """
    safe = _safe(loaded, messages)
    size = _size(loaded, min_pixels, max_pixels)
    pictures = [image.convert("RGB") for image in images]
    if preprocessing == "qwen-vl-utils":
        if loaded.patch_size is None:
            raise UserError(
                f"preprocessing is qwen-vl-utils, and {loaded.model.config.model_type} resizes images in its own way; "
                "expected processor"
            )
        pictures = [first_resized(image, loaded.patch_size) for image in pictures]
    if loaded.processor is not None:
        text, opening = render_chat(loaded.tokenizer, safe)
        return replace(_encode_by_processor(loaded, text, pictures), opening=opening)
    pad = loaded.model.config.image_token_id
    ids, opening = encode_chat(loaded.tokenizer, safe)
    _check_count(ids.count(pad), images)
    patches = grids = None
    if images:
        try:
            pixels = loaded.image_processor(pictures, **size, return_tensors="pt")
        except ValueError as error:
            raise UserError(f"an image cannot be read by the model: {first_line(error)}") from error
        patches, grids = pixels["pixel_values"], pixels["image_grid_thw"]
        merge = loaded.image_processor.merge_size**2
        counts = iter((grids.prod(-1) // merge).tolist())
        ids = [token for i in ids for token in ([pad] * next(counts) if i == pad else [i])]
    input_ids = torch.tensor(ids)
    if grids is None:
        return Encoded(input_ids, torch.arange(len(ids)).expand(3, -1), None, None, opening=opening)
    kinds = (input_ids == pad).long()
    position_ids, _ = loaded.model.model.get_rope_index(
        input_ids[None], mm_token_type_ids=kinds[None], image_grid_thw=grids
    )
    return Encoded(input_ids, position_ids[:, 0], patches, grids, opening=opening)


def render_chat(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str]:
    """A chat prompt as text, and the part of it with which the template opened the reply's thought.

    Only what the template writes after the messages counts: a message may speak of the tags.
    """
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if OPEN not in text[-_LONGEST_TAIL:]:
        return text, ""
    bare: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    return text, thought_opening(text[_common_prefix(text, bare) :])


def _common_prefix(one: str, other: str) -> int:
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


_LONGEST_TAIL = 1000
"""Characters at a prompt's end among which a template's own `<think>` is looked for."""


def _check_count(places: int, images: Sequence[Image]) -> None:
    if places != len(images):
        raise UserError(f"the messages have {places} places for images, {len(images)} were given")


def _size(loaded: Loaded, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
    """The image processor's argument, if any."""
    if min_pixels is None and max_pixels is None:
        return {}
    if loaded.processor is not None:
        raise UserError(
            f"min_pixels and max_pixels are given, and {loaded.model.config.model_type} resizes images in its own "
            "way; expected neither"
        )
    own = loaded.image_processor.size
    cell = (loaded.image_processor.patch_size * loaded.image_processor.merge_size) ** 2
    most = max_pixels if max_pixels is not None else max(own["longest_edge"], min_pixels or 0)
    least = min_pixels if min_pixels is not None else min(own["shortest_edge"], most)
    if least < 1 or most < cell or least > most:
        raise UserError(
            f"min_pixels {least} and max_pixels {most}; expected 1 <= min_pixels <= max_pixels, and max_pixels of at "
            f"least {cell}, which is one token"
        )
    return {"size": {"shortest_edge": least, "longest_edge": most}}


def _encode_by_processor(loaded: Loaded, text: str, pictures: Sequence[Image]) -> Encoded:
    """By transformers' own processor, which knows how many tokens a picture takes."""
    place = loaded.tokenizer.decode(loaded.model.config.image_token_id)
    _check_count(text.count(place), pictures)
    given = {"images": [list(pictures)]} if pictures else {}
    inputs = loaded.processor(text=[text], add_special_tokens=False, return_tensors="pt", **given)
    input_ids = inputs.pop("input_ids")[0]
    more = {name: inputs[name] for name in inputs if name not in ("attention_mask", "mm_token_type_ids")}
    return Encoded(input_ids, torch.arange(len(input_ids))[None], more.pop("pixel_values", None), None, more)
