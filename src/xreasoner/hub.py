"""Single files of a model on the Hugging Face Hub that may be there or not."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

SECONDS = 5.0
"""How long the hub may take to say whether a file is there."""


@lru_cache(maxsize=256)
def optional_hub_file(hub: str, name: str) -> Path | None:
    """A file of a hub id, or None if it has none or, offline, none in the cache.

    The hub is asked once, without retries: whoever is offline waits for the cached model's files alone.

    Args:
        hub: The hub id.
        name: The file's name.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    try:
        get_hf_file_metadata(hf_hub_url(hub, name), timeout=SECONDS)
        return Path(hf_hub_download(hub, name))
    except Exception:  # not there, not allowed, no network: each by an error of its own
        cached = try_to_load_from_cache(hub, name)
        return Path(cached) if isinstance(cached, str) else None
