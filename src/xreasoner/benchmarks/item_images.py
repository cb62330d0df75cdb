"""The images of benchmark items: in the row as bytes or base64, or as files beside the rows and in their archives."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from xreasoner.data.dataset_files import Folder
from xreasoner.errors import DataError, MediaError
from xreasoner.media import Guard, picture

_BASE64 = re.compile(r"(?:data:[^,]{,64},)?[A-Za-z0-9+/]{64,}={,2}")
_GUARD = Guard(max_bytes=64 * 2**20, max_pixels=128_000_000, max_total_pixels=512_000_000)


def picture_bytes(reference: Any, folder: Folder) -> bytes:
    """The encoded picture that a row holds or names. Raises `DataError` where there is none."""
    if isinstance(reference, Mapping):  # how `datasets` keeps pictures in Parquet
        if reference.get("bytes") is not None:
            return bytes(reference["bytes"])
        reference = reference.get("path")
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str) or not reference:
        raise DataError(f"found {reference!r} in the place of an image")
    name = folder.named(reference)
    if name is not None:
        return folder.read(name)
    if _BASE64.fullmatch(reference):
        try:
            return base64.b64decode(reference.partition(",")[2] or reference)
        except binascii.Error as error:
            raise DataError(f"the image in base64 is damaged ({error})") from None
    raise DataError(f"the image {reference[:200]!r} is not below {folder.root}")


def is_there(reference: Any, folder: Folder) -> bool:
    """Whether the picture can be had, without reading its file."""
    path = reference.get("path") if isinstance(reference, Mapping) and reference.get("bytes") is None else reference
    if isinstance(path, str) and not _BASE64.fullmatch(path):
        return folder.named(path) is not None
    return path is not None


def decoded(reference: Any, folder: Folder, item: str) -> Image.Image:
    """An RGB picture, through the media guard. Raises `DataError` naming the item."""
    try:
        return picture(picture_bytes(reference, folder), _GUARD, name=f"of {item}")
    except (DataError, MediaError) as error:
        raise DataError(f"item {item}: {error}") from None
