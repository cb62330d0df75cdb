"""The media guard on any bytes: an RGB image or a `MediaError` of one line, in under a second; memory stays flat."""

from __future__ import annotations

import base64
import gc
import io
import tracemalloc
import warnings
from typing import Any

from fuzz.budget import fuzz
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from xreasoner.errors import MediaError
from xreasoner.media import Guard, picture

GUARD = Guard(max_pixels=1_000_000, max_bytes=200_000)


def seeds() -> list[bytes]:
    """Small sound files of each format, with and without what may stand beside the pixels."""
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 400, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "PNG", {"exif": exif, "pnginfo": text, "icc_profile": bytes(500)}),
        (image.convert("P"), "PNG", {"transparency": 3}),
        (image.convert("LA"), "PNG", {}),
        (image.convert("L").convert("I;16"), "PNG", {}),
        (image, "PNG", {"save_all": True, "append_images": [image]}),
        (image, "JPEG", {"exif": exif, "icc_profile": bytes(500)}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "WEBP", {"exif": exif}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image.convert("P"), "GIF", {"save_all": True, "append_images": [image.convert("P")]}),
        (image, "BMP", {}),
        (image.convert("1"), "BMP", {}),
        (image, "TIFF", {}),
        (image, "ICO", {}),
    ]
    found = []
    for form, kind, more in forms:
        file = io.BytesIO()
        form.save(file, kind, **more)
        found.append(file.getvalue())
    return found


SEEDS = seeds()


def changed(drawn: tuple[bytes, list[tuple[int, int]], int, bytes]) -> bytes:
    """A seed with some bytes changed, cut at a place, and more behind it."""
    data, changes, cut, more = drawn
    held = bytearray(data)
    for place, value in changes:
        held[place % len(held)] = value
    return bytes(held[: len(held) - cut]) + more


files = st.one_of(
    st.tuples(
        st.sampled_from(SEEDS),
        st.lists(st.tuples(st.one_of(st.integers(0, 80), st.integers(0, 2000)), st.integers(0, 255)), max_size=5),
        st.one_of(st.just(0), st.integers(0, 400)),
        st.binary(max_size=20),
    ).map(changed),
    st.binary(max_size=300),
    st.tuples(st.sampled_from([seed[:8] for seed in SEEDS]), st.binary(max_size=200)).map(b"".join),
)


def fuzz_media(data: bytes) -> None:
    """Read the bytes as a file, as a data address and as an address. Raises nothing but what a `MediaError` says."""
    references: list[str | bytes] = [
        data,
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
        data[:100].decode("latin-1"),
        "data:" + data[:100].decode("latin-1"),
        "http://" + data[:60].decode("latin-1"),
    ]
    for reference in references:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = picture(reference, GUARD)
        except MediaError as error:
            line = str(error)
            assert "\n" not in line
            assert "expected" in line
            assert len(line) < 1000
        else:
            assert found.mode == "RGB"
            assert found.width * found.height <= GUARD.max_pixels
            found.tobytes()


def test_fuzz_media() -> None:
    assert fuzz(fuzz_media, files) > 0


def test_reading_images_keeps_no_memory() -> None:
    def used() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def some() -> None:
        for seed in SEEDS * 5:
            fuzz_media(seed)
            fuzz_media(seed[:-20])

    some()
    tracemalloc.start()
    some()
    before = used()
    some()
    assert used() - before < 200_000
    tracemalloc.stop()
