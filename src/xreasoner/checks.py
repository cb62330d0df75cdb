"""A command's arguments, checked before anything is loaded: a mistake is reported within a second.

Nothing here imports torch or transformers. What passes may still be refused later, where more is known.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from xreasoner.engines.base import PREPROCESSING, Preprocessing
from xreasoner.errors import CheckpointError, UserError, XReasonerError
from xreasoner.media import Reference, pictures
from xreasoner.prompts import PROMPTS
from xreasoner.registry import MODELS, nearest
from xreasoner.trace import CLOSE

DTYPES = ("bfloat16", "float16", "float32", "float64")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|auto)(?::(\d+))?")
SECONDS = 3.0
"""How long the hub may take to answer before it counts as not reachable."""


def check_preprocessing(name: str) -> Preprocessing:
    """The name of a way to resize images. Raises `UserError` for one that is not known."""
    for known in PREPROCESSING:
        if name == known:
            return known
    raise UserError(f"unknown preprocessing {name!r}; {nearest(name, PREPROCESSING)}")


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Run every check and report all that fail. Raises what a single one raised, or `UserError` for several."""
    failed: list[XReasonerError] = []
    for check in checks:
        try:
            check()
        except XReasonerError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} problems", *map(str, failed)]))


def check_model(model: str | Sequence[str]) -> None:
    """Raise for a model that is not a registered name, a checkpoint's folder, a hub id that can be had, or URLs."""
    names = [name.strip() for name in model.split(",")] if isinstance(model, str) else list(model)
    if any(name.startswith(("http://", "https://")) for name in names):
        for name in names:
            _check_url(name, model)
        return
    if not isinstance(model, str):
        raise UserError(f"{' '.join(model)}: expected one model, or servers' addresses")
    path = Path(model)
    if model in MODELS:
        return
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json", "params.json")):
            raise CheckpointError(f"model {model!r}: {path / 'config.json'} is missing; expected a Hugging Face folder")
    elif path.exists():
        raise UserError(f"model {model!r}: this is a file; expected the folder that holds config.json and the weights")
    elif _HUB_ID.fullmatch(model):
        check_hub(model)
    else:
        hint = nearest(model, MODELS)
        hint = f"{hint} " if hint.startswith("did") else ""
        raise UserError(
            f"model {model!r}: no such folder; {hint}expected a checkpoint's folder, a hub id such as "
            "microsoft/X-Reasoner-7B, tiny or tiny-base, or a server's URL"
        )


def _check_url(name: str, model: str | Sequence[str]) -> None:
    if not name.startswith(("http://", "https://")):
        shown = model if isinstance(model, str) else " ".join(model)
        raise UserError(f"model {shown!r}: some are addresses and some are not; expected servers only, or one model")
    try:
        parts = urlsplit(name)
        sound = bool(parts.hostname) and (parts.port is None or parts.port > 0) and not re.search(r"\s", name)
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"model {name!r}: not an address; expected one such as http://127.0.0.1:8000/v1")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", home / "hub"))).expanduser()


def check_hub(model: str) -> None:
    """Raise `UserError` for a hub id that is not in the cache, and that the hub cannot give now."""
    folder = hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots"
    if any(folder.glob("*/config.json")):
        return
    here = f"model {model!r}: no folder of this name, and not in the hub's cache ({hub_cache()})"
    download = f"run `hf download {model}` where there is a network, or give a checkpoint's folder"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(f"{here}; {name} is set, so nothing is fetched: {download}")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    status = _status(f"{endpoint}/{model}/resolve/main/config.json")
    if status is None:
        raise UserError(f"{here}; {urlsplit(endpoint).hostname} cannot be reached: {download}")
    if status == 404:
        raise UserError(f"{here}; {endpoint}/{model} does not exist: check the spelling")


def _status(url: str) -> int | None:
    """The HTTP status of an address; None where nobody answers."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, method="HEAD"), timeout=SECONDS) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def check_images(references: Sequence[Reference]) -> None:
    """Raise `MediaError` for an image file that is missing or cannot be read; addresses are fetched later."""
    from xreasoner.reasoner import located, own_guard

    local = [each for each in references if not (isinstance(each, str) and each.startswith(("http://", "https://")))]
    pictures([located(each) for each in local], own_guard())


def check_device(device: str | None) -> None:
    """Raise `UserError` for a device that does not exist, as far as this is known without torch."""
    if device is None:
        return
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UserError(f"device {device!r} is not available; expected cpu, or cuda or cuda:N where there is a GPU")
    if match[1] == "cuda" and sys.platform == "linux":
        if not _has_gpu():
            raise UserError(f"device {device!r} is not available: this machine has no GPU; expected cpu")
        cards = len(list(Path("/dev").glob("nvidia[0-9]*")))
        if match[2] is not None and 0 < cards <= int(match[2]):
            raise UserError(f"device {device!r} is not available: this machine has {cards} GPUs, counted from 0")


def _has_gpu() -> bool:
    """Whether a driver's device is there: NVIDIA's, AMD's, or that of Windows' Linux."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path(name).exists() for name in ("/dev/kfd", "/dev/dxg"))


def check_dtype(dtype: str | None) -> None:
    """Raise `UserError` for a dtype that weights cannot have."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}; {nearest(dtype, DTYPES[:3])}")


def check_attention(name: str | None) -> None:
    """Raise `UserError` for an attention implementation that transformers does not know; hub kernels pass."""
    if name is not None and "/" not in name and name.removeprefix("paged|") not in ATTENTION:
        raise UserError(f"attn_implementation {name!r}; {nearest(name, ATTENTION)}")


def check_prompt(name: str | None) -> None:
    """Raise `UserError` for a prompt that does not exist."""
    if name is not None and name not in PROMPTS:
        raise UserError(f"unknown prompt {name!r}; {nearest(name, PROMPTS)}")


def check_exit_text(text: str | None) -> None:
    """Raise `UserError` for a text that does not close the thought."""
    if text is not None and CLOSE not in text:
        raise UserError(f"exit_text is {text!r}; expected a text with {CLOSE}, as in ' So I answer now. {CLOSE}'")


def check_pixels(least: int | None, most: int | None) -> None:
    """Raise `UserError` for bounds that cross."""
    if least is not None and most is not None and least > most:
        raise UserError(f"min_pixels is {least} and max_pixels {most}; expected min_pixels <= max_pixels")


def check_output(path: Path, folder: bool = False) -> None:
    """Raise `UserError` with the real cause for a file (or folder) that cannot be written."""
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{path} already exists and is a file; choose another --out")
    if not folder and path.is_dir():
        raise UserError(f"{path} is a folder; expected a file's path, such as {path / 'out'}")
    place = path if folder and path.exists() else path.parent
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise UserError(f"cannot write {path}: {place} is a file; choose another --out")
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {place}: {error.strerror}; {remedy(error)}") from None


def remedy(error: OSError) -> str:
    """What to do about a refused write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room and run the command again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "change its permissions, or choose another --out"
    return "choose another --out"
