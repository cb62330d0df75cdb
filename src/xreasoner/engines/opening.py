"""From what a user names to an engine: a registered model, a folder, a hub id, or servers' addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xreasoner.engines.base import Engine
from xreasoner.errors import UserError

KINDS = ("torch", "vllm", "openai")


def addresses(model: str | Sequence[str]) -> list[str]:
    """The servers' addresses among what was named: a sequence, or one text with commas; [] for a model."""
    names = model.split(",") if isinstance(model, str) else list(model)
    found = [name.strip() for name in names if name.strip().startswith(("http://", "https://"))]
    if found and len(found) != len(names):
        raise UserError(f"model {model!r}: some are addresses and some are not; expected servers only, or one model")
    return found


def check_kind(model_or_urls: str | Sequence[str], engine: str | None) -> None:
    """Raise `UserError` for an engine that does not exist, or that does not run what is named."""
    urls = addresses(model_or_urls)
    if engine is not None and (engine not in KINDS or (engine == "openai") != bool(urls)):
        wanted = "openai" if urls else "torch or vllm"
        raise UserError(f"engine {engine!r} for {model_or_urls!r}; expected {wanted}")


def open_engine(model_or_urls: str | Sequence[str], *, engine: str | None = None, **options: Any) -> Engine:
    """The engine for a model: `torch` in this process, or `openai` for addresses; `vllm` when asked for.

    options: of the engine's kind; those that are None are left out. torch: device, dtype ("bfloat16", …),
    attn_implementation. openai: api_key, served_model, timeout, …. vllm: vLLM's own. Raises `UserError` for what the
    kind does not know.
    """
    urls = addresses(model_or_urls)
    kind = engine or ("openai" if urls else "torch")
    given = {name: value for name, value in options.items() if value is not None}
    check_kind(model_or_urls, engine)
    if not urls and not isinstance(model_or_urls, str):
        raise UserError(f"models {list(model_or_urls)!r}; expected one model, or servers' addresses")
    try:
        if kind == "openai":
            from xreasoner.engines.openai_engine import OpenAIEngine

            return OpenAIEngine(urls, given.pop("served_model", None), **given)
        if kind == "vllm":
            from xreasoner.engines.vllm_engine import VllmEngine

            return VllmEngine(str(model_or_urls), **given)
        return _torch(str(model_or_urls), **given)
    except TypeError as error:  # `_torch` and `load` name what they do not take
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"the {kind} engine: {str(error).partition(' ')[2]}") from None


def _torch(model: str, dtype: str | None = None, **options: Any) -> Engine:
    import torch

    from xreasoner.engines.torch_engine import TorchEngine
    from xreasoner.models.loading import load

    if dtype is not None:
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise UserError(f"dtype {dtype!r}; expected bfloat16, float16 or float32")
        options["dtype"] = found
    where = placed(options.pop("device", None), torch.cuda.is_available())
    return TorchEngine(load(model, **{**where, **options}))


def placed(device: str | None, gpus: bool) -> dict[str, str]:
    """Where a model goes, as `load` takes it: over all GPUs where there are any, as in the card's snippet."""
    if device == "auto" or (device is None and gpus):
        return {"device_map": "auto"}
    return {} if device is None else {"device": device}
