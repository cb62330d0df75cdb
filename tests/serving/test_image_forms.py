"""The forms that image files have: each is read right, pixel for pixel, or refused for what it is.

A sound file is never called damaged, and nothing but a `MediaError` comes out of one that is not.
"""

from __future__ import annotations

import base64
import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from xreasoner import image_forms
from xreasoner.errors import MediaError
from xreasoner.media import FORMATS, Guard, Reference, picture

RED, WHITE, BLACK, GREY = (255, 0, 0), (255, 255, 255), (0, 0, 0), (128, 128, 128)
Color = tuple[int, int, int]


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def plain(color: Color = RED, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, color)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED_PNG, RED_JPEG = saved(plain()), saved(plain(), "JPEG")


def near(found: Image.Image, color: Color, place: tuple[int, int] = (4, 4), by: int = 3) -> bool:
    got = found.getpixel(place)
    assert isinstance(got, tuple)
    return found.mode == "RGB" and all(abs(a - b) <= by for a, b in zip(got, color, strict=True))


def refused(reference: Reference, guard: Guard | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        picture(reference, guard or Guard())
    line = str(caught.value)
    assert "\n" not in line
    assert "expected" in line
    return line


# --- mode -----------------------------------------------------------------------------------------------------------

IN_MODE: dict[str, tuple[Any, Color]] = {
    "1": (255, WHITE),
    "L": (128, GREY),
    "LA": ((128, 255), GREY),
    "La": ((128, 255), GREY),
    "P": (0, BLACK),
    "PA": ((0, 255), BLACK),
    "RGB": (RED, RED),
    "RGBA": ((255, 0, 0, 255), RED),
    "RGBa": ((255, 0, 0, 255), RED),
    "RGBX": ((255, 0, 0, 255), RED),
    "CMYK": ((0, 255, 255, 0), RED),
    "YCbCr": ((76, 85, 255), RED),
    "LAB": (None, RED),
    "HSV": ((0, 255, 255), RED),
    "I": (128, GREY),
    "I;16": (128 * 256, GREY),
    "I;16L": (128 * 256, GREY),
    "I;16B": (128 * 256, GREY),
    "I;16N": (128 * 256, GREY),
    "F": (128.0, GREY),
}


@pytest.mark.parametrize("mode", sorted(IN_MODE))
def test_a_pil_image_of_every_mode(mode: str) -> None:
    value, color = IN_MODE[mode]
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            plain(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = Image.new(mode, (8, 8), value)
    assert image is not None
    if mode in ("P", "PA"):
        image.putpalette([0, 0, 0, 255, 255, 255])
    assert near(picture(image, Guard()), color, by=6 if mode == "LAB" else 3)  # 8 bits of L*a*b* are coarse


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("I", 128 * 256, GREY),
        ("I", 70_000, "integer pixels from 70000 to 70000"),
        ("I", -1, "integer pixels from -1 to -1"),
        ("F", 0.0, BLACK),
        ("F", 0.5, "floating-point pixels"),
        ("F", 300.0, "floating-point pixels"),
        ("F", -1.0, "floating-point pixels"),
        ("F", float("nan"), "floating-point pixels"),
        ("F", float("inf"), "floating-point pixels"),
    ],
)
def test_samples_of_other_ranges_are_scaled_or_refused(mode: str, value: float, expected: Color | str) -> None:
    image = Image.new(mode, (8, 8), value)
    if isinstance(expected, str):
        assert expected in refused(image)
    else:
        assert near(picture(image, Guard()), expected)


CLEAR = Image.new("RGBA", (8, 8), (0, 0, 0, 0))


@pytest.mark.parametrize(
    "reference",
    [
        CLEAR,
        CLEAR.convert("LA"),
        Image.new("PA", (8, 8), (0, 0)),
        saved(CLEAR),
        saved(CLEAR.convert("LA")),
        saved(CLEAR, "GIF"),
        saved(CLEAR, "WEBP", lossless=True),
        saved(Image.new("P", (8, 8)), transparency=0),
    ],
)
def test_what_is_transparent_is_white(reference: Reference) -> None:
    assert near(picture(reference, Guard()), WHITE)


# --- PNG: bit depth, color type, chunks -----------------------------------------------------------------------------

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = (
    [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)] + [(c, d) for c in (2, 4, 6) for d in (8, 16)]
)


def png(depth: int, color: int, samples: tuple[int, ...], before: bytes = b"", interlace: int = 0) -> bytes:
    """8 × 8 pixels, all alike."""
    bits = "".join(f"{sample:0{depth}b}" for sample in samples) * 8
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    if interlace:
        passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
        rows = b""
        for width, height in passes:
            line = "".join(f"{sample:0{depth}b}" for sample in samples) * width
            line = line.ljust(-(-len(line) // 8) * 8, "0")
            rows += (b"\0" + int(line, 2).to_bytes(len(line) // 8, "big")) * height
    else:
        rows = row * 8
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, interlace))
    palette = chunk(b"PLTE", bytes((*RED, *WHITE))) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "depth"), DEPTHS)
@pytest.mark.parametrize("interlace", [0, 1])
def test_png_of_every_depth(color: int, depth: int, interlace: int) -> None:
    top = 2**depth - 1
    samples = {0: (top,), 2: (top, 0, 0), 3: (0,), 4: (top, top), 6: (top, 0, 0, top)}[color]
    assert near(picture(png(depth, color, samples, interlace=interlace), Guard()), WHITE if color in (0, 4) else RED)


@pytest.mark.parametrize(
    ("depth", "color", "samples", "clear"),
    [
        (1, 0, (1,), (1,)),
        (8, 0, (7,), (7,)),
        (16, 0, (30_000,), (30_000,)),
        (8, 2, (9, 8, 7), (9, 8, 7)),
        (16, 2, (30_000, 1, 2), (30_000, 1, 2)),
    ],
)
def test_png_with_a_transparent_color(depth: int, color: int, samples: tuple[int, ...], clear: tuple[int, ...]) -> None:
    held = b"".join(struct.pack(">H", value) for value in clear)
    assert near(picture(png(depth, color, samples, chunk(b"tRNS", held)), Guard()), WHITE)


def test_png_with_another_transparent_shade_of_sixteen_bits() -> None:
    held = chunk(b"tRNS", struct.pack(">H", 30_001))
    assert near(picture(png(16, 0, (30_000,), held), Guard()), (117, 117, 117))


def xmp(turn: int = 1, filler: int = 0, packed: bool = False) -> bytes:
    packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'.encode() + b" " * filler
    packed_flag = b"\1\0" if packed else b"\0\0"
    return chunk(
        b"iTXt", b"XML:com.adobe.xmp\0" + packed_flag + b"\0\0" + (zlib.compress(packet) if packed else packet)
    )


NOISE = np.random.default_rng(0).integers(0, 256, 3 * 2**20, np.uint8).tobytes()


def exif(turn: int = 1, filler: int = 0) -> bytes:
    found = Image.Exif()
    found[0x0112] = turn
    found[0x010E] = "x" * filler
    return found.tobytes()


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
METADATA: dict[str, bytes] = {
    "small text": chunk(b"tEXt", b"Comment\0hello"),
    "text of 2 MB": chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "compressed text of 2 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
    "compressed XMP of 2 MB": xmp(filler=2_000_000, packed=True),
    "XMP of 2 MB": xmp(filler=2_000_000),
    "international text of 2 MB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
    "ICC profile of 3 MB": chunk(b"iCCP", b"big\0\0" + zlib.compress(NOISE)),
    "small ICC profile": chunk(b"iCCP", b"s\0\0" + zlib.compress(SRGB)),
    "broken ICC profile": chunk(b"iCCP", b"s\0\0" + b"nonsense"),
    "EXIF of 3 MB": chunk(b"eXIf", exif(filler=3_000_000)),
    "broken EXIF": chunk(b"eXIf", b"nonsense"),
    "70 texts of 1 MB": chunk(b"zTXt", b"C\0\0" + zlib.compress(b"x" * 1_000_000)) * 70,
    "5,000 texts": chunk(b"tEXt", b"C\0x") * 5000,
    "5,000 unknown chunks": chunk(b"abCd", b"x") * 5000,
    "gamma": chunk(b"gAMA", struct.pack(">I", 45455)),
    "chromaticities": chunk(b"cHRM", struct.pack(">8I", *[31270] * 8)),
    "sRGB": chunk(b"sRGB", b"\0"),
    "dots an inch": chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    "no dots at all": chunk(b"pHYs", struct.pack(">IIB", 0, 0, 0)),
    "time": chunk(b"tIME", struct.pack(">HBBBBB", 2026, 1, 1, 1, 1, 1)),
    "background": chunk(b"bKGD", struct.pack(">HHH", 0, 0, 0)),
    "significant bits": chunk(b"sBIT", b"\5\6\5"),
}


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", METADATA)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_png_with_metadata(name: str, place: str) -> None:
    at = 33 if place == "before the pixels" else len(RED_PNG) - 12
    start = time.monotonic()
    assert near(picture(RED_PNG[:at] + METADATA[name] + RED_PNG[at:], Guard()), RED, by=0)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    ("form", "beside"),
    [("eXIf", "ICC profile of 3 MB"), ("eXIf", "compressed text of 2 MB"), ("XMP", "ICC profile of 3 MB"), ("XMP", "")],
)
def test_png_stays_upright_beside_large_metadata(turn: int, form: str, beside: str) -> None:
    """The orientation counts where the profile or text beside it is put aside."""
    turns = [None, 0, 3, 1, 5, 2, 6, 4]
    upright = plain(size=(16, 32))
    upright.paste(WHITE, (8, 0, 16, 32))
    how = turns[turn - 1]
    stored = saved(upright if how is None else upright.transpose(Image.Transpose(how)))
    held = chunk(b"eXIf", exif(turn)) if form == "eXIf" else xmp(turn, 0 if beside else 2_000_000, packed=True)
    found = picture(stored[:33] + held + METADATA.get(beside, b"") + stored[33:], Guard())
    assert found.size == (16, 32)
    assert near(found, RED, (3, 16))
    assert near(found, WHITE, (12, 16))


def test_more_chunks_than_any_image_has() -> None:
    data = RED_PNG[:33] + chunk(b"tEXt", b"C\0x") * 60_000 + RED_PNG[33:]
    assert "more than 50,000 chunks or segments" in refused(data)
    data = RED_JPEG[:2] + b"\xff\xfe\0\3x" * 60_000 + RED_JPEG[2:]
    assert "more than 50,000 chunks or segments" in refused(data)


# --- JPEG -----------------------------------------------------------------------------------------------------------


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_frame(marker: int, bits: int = 8) -> bytes:
    data = bytearray(RED_JPEG)
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    return bytes(data)


JPEGS: dict[str, tuple[bytes, Color]] = {
    "baseline": (RED_JPEG, (254, 0, 0)),
    "progressive": (saved(plain(), "JPEG", progressive=True), (254, 0, 0)),
    "optimized": (saved(plain(), "JPEG", optimize=True), (254, 0, 0)),
    "4:4:4": (saved(plain(), "JPEG", subsampling=0), (254, 0, 0)),
    "grayscale": (saved(Image.new("L", (8, 8), 128), "JPEG"), GREY),
    "CMYK": (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), RED),
    "restart markers": (saved(plain(), "JPEG", restart_marker_blocks=1), (254, 0, 0)),
    "ICC profile of 3 MB": (saved(plain(), "JPEG", icc_profile=NOISE), (254, 0, 0)),
    "EXIF of 60 kB": (saved(plain(), "JPEG", exif=exif(filler=60_000)), (254, 0, 0)),
    "5,000 comments": (RED_JPEG[:2] + segment(0xFE, b"x") * 5000 + RED_JPEG[2:], (254, 0, 0)),
    "200 segments of 60 kB": (RED_JPEG[:2] + segment(0xE1, b"x" * 60_000) * 200 + RED_JPEG[2:], (254, 0, 0)),
    "Photoshop resources": (
        RED_JPEG[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + b"\0" * 60) + RED_JPEG[2:], (254, 0, 0)
    ),
    "fill bytes": (RED_JPEG[:2] + b"\xff" * 9 + RED_JPEG[2:], (254, 0, 0)),
    "two images in one file": (saved(plain(), "MPO", save_all=True, append_images=[plain(WHITE)]), (254, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_forms(name: str) -> None:
    data, color = JPEGS[name]
    assert near(picture(data, Guard()), color)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (with_frame(0xC3), "a lossless JPEG"),
        (with_frame(0xC5), "a hierarchical JPEG"),
        (with_frame(0xCA), "a JPEG of arithmetic coding"),
        (with_frame(0xC0, 12), "a JPEG of 12 bits a channel"),
        (with_frame(0xC1, 12), "a JPEG of 12 bits a channel"),
    ],
)
def test_jpeg_forms_that_are_not_read_are_named(data: bytes, found: str) -> None:
    line = refused(data)
    assert found in line


# --- the other formats that are read --------------------------------------------------------------------------------


def bmp(bits: int, compression: int = 0) -> bytes:
    data = bytearray(saved(plain(), "BMP"))
    struct.pack_into("<H", data, 28, bits)
    struct.pack_into("<I", data, 30, compression)
    return bytes(data)


ANIMATED = {"save_all": True, "append_images": [plain(WHITE), plain(BLACK)], "duration": 50}
READ: dict[str, bytes] = {
    "WebP lossy": saved(plain(), "WEBP"),
    "WebP lossless": saved(plain(), "WEBP", lossless=True),
    "WebP with alpha": saved(plain().convert("RGBA"), "WEBP"),
    "WebP with 3 MB of ICC, EXIF and XMP": saved(
        plain(), "WEBP", icc_profile=NOISE, exif=exif(filler=3_000_000), xmp=NOISE
    ),
    "animated WebP": saved(plain(), "WEBP", **ANIMATED),
    "GIF": saved(plain(), "GIF"),
    "GIF87a": b"GIF87a" + saved(plain(), "GIF")[6:],
    "animated GIF": saved(plain(), "GIF", loop=0, **ANIMATED),
    "GIF with 5 MB of comment": (
        saved(plain(), "GIF").partition(b",")[0] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 20_000 + b"\0,"
        + saved(plain(), "GIF").partition(b",")[2]
    ),
    "animated PNG": saved(plain(), "PNG", **ANIMATED),
    "animated PNG whose default image is no frame": saved(plain(), "PNG", default_image=True, **ANIMATED),
    "BMP": saved(plain(), "BMP"),
    "BMP with a palette": saved(plain().convert("P"), "BMP"),
    "PNG and garbage behind it": RED_PNG + b"garbage" * 1000,
    "JPEG and garbage behind it": RED_JPEG + b"\0garbage" * 1000,
    "GIF and garbage behind it": saved(plain(), "GIF") + b"garbage",
    "JPEG and a video behind it": RED_JPEG + b"\0\0\0\x18ftypmp42" + bytes(10_000),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_other_forms_are_read(name: str) -> None:
    assert near(picture(READ[name], Guard()), RED)


@pytest.mark.parametrize(("bits", "compression"), [(24, 4), (24, 5), (7, 0), (24, 99)])
def test_bmp_forms_that_are_not_read_are_named(bits: int, compression: int) -> None:
    assert "a form of BMP that is not read here" in refused(bmp(bits, compression))


# --- what is not read -----------------------------------------------------------------------------------------------

TWO_PAGES = {"save_all": True, "append_images": [plain(WHITE)]}
SVG = b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"></svg>'
OTHERS: dict[str, tuple[bytes, str]] = {
    "TIFF": (saved(plain(), "TIFF"), "a TIFF image"),
    "TIFF of two pages": (saved(plain(), "TIFF", **TWO_PAGES), "a TIFF image"),
    "TIFF, compressed": (saved(plain(), "TIFF", compression="tiff_lzw"), "a TIFF image"),
    "TIFF, 16 bits": (saved(Image.new("I;16", (8, 8)), "TIFF"), "a TIFF image"),
    "TIFF, float": (saved(Image.new("F", (8, 8)), "TIFF"), "a TIFF image"),
    "TIFF, big-endian": (b"MM\0*\0\0\0\x08" + bytes(100), "a TIFF image"),
    "AVIF": (saved(plain(size=(16, 16)), "AVIF"), "an AVIF image"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a HEIC image"),
    "HEIF by a later brand": (b"\0\0\0\x18ftypabcd\0\0\0\0mif1abcd" + bytes(100), "a HEIF image"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(100), "an MP4 video"),
    "icon": (saved(plain(size=(16, 16)), "ICO"), "a Windows icon"),
    "PPM": (saved(plain(), "PPM"), "a PNM image"),
    "PGM": (saved(Image.new("L", (8, 8)), "PPM"), "a PNM image"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), "a JPEG 2000 image"),
    "JPEG XL": (b"\xff\x0a" + bytes(64), "a JPEG XL image"),
    "Photoshop": (b"8BPS\0\1" + bytes(64), "a Photoshop image"),
    "DICOM": (bytes(128) + b"DICM" + bytes(64), "a DICOM file"),
    "NIfTI": (b"\x5c\1\0\0" + bytes(340) + b"n+1\0", "a NIfTI file"),
    "SVG": (SVG, "an SVG drawing"),
    "SVG alone": (b"<svg width='8'/>", "an SVG drawing"),
    "SVG with a BOM": (b"\xef\xbb\xbf<svg/>", "an SVG drawing"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
    "ZIP": (b"PK\3\4" + bytes(64), "a ZIP archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "a gzip archive"),
    "NumPy": (b"\x93NUMPY\1\0", "a NumPy array"),
    "HTML": (b"<!DOCTYPE html><html><title>Sign in</title></html>", "an HTML page"),
    "HTML after blanks": (b"\n  <html lang=en>", "an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', "an XML document"),
    "JSON": (b'{"error": {"message": "not found"}}', "JSON"),
    "JSON array": (b'[{"a": 1}]', "JSON"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    "base64 of a PNG": (base64.b64encode(RED_PNG), "base64"),
    "base64 of a JPEG": (base64.b64encode(RED_JPEG), "base64"),
    "a data address in a file": (b"data:image/png;base64,iVBORw0KGgo", "a data address"),
    "text": (b"no image at all", "text"),
    "text in UTF-8": ("kein Bild, sondern Öl".encode() * 500, "text"),
    "empty": (b"", "an empty file"),
    "one byte": (b"\x89", "bytes of another kind"),
    "noise": (NOISE[:1000], "bytes of another kind"),
    "zeros": (bytes(1000), "bytes of another kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_to_us_is_named(name: str) -> None:
    data, found = OTHERS[name]
    line = refused(data)
    assert found in line
    assert "damaged" not in line


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_damaged(kind: str, share: float) -> None:
    line = refused(cut(saved(PHOTO, kind), share))
    assert "damaged" in line
    assert "bytes of another kind" not in line


@pytest.mark.parametrize("kind", FORMATS)
def test_the_name_of_a_file_does_not_matter(kind: str, tmp_path: Any) -> None:
    path = tmp_path / "image.txt"
    path.write_bytes(saved(plain(), kind))
    assert near(picture(path, Guard(root=tmp_path)), RED)


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64,", "data:;base64,", "data:image/jpeg;base64,", "data:image/png;charset=utf-8;base64,",
     "data:application/octet-stream;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/png;name=a.png;base64,"],
)  # fmt: skip
def test_data_addresses_with_parameters(head: str) -> None:
    assert near(picture(head + base64.b64encode(RED_PNG).decode(), Guard()), RED)


def test_a_data_address_of_another_kind_is_named() -> None:
    assert "an SVG drawing" in refused("data:image/svg+xml;base64," + base64.b64encode(SVG).decode())
    assert "without base64" in refused("data:image/svg+xml;utf8,<svg/>")
    assert "an empty file" in refused("data:image/png;base64,")


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((1, 1), "1 × 1 pixels"),
        ((1, 500), "1 × 500 pixels"),
        ((3, 8), "3 × 8 pixels"),
        ((4, 4), None),
        ((4, 800), None),
        ((4, 804), "4 × 804 pixels; expected a side at most 200 times"),
        ((2000, 5), "2000 × 5 pixels; expected a side at most 200 times"),
        ((6000, 6000), "36,000,000; expected at most 32,000,000"),
        ((9500, 9500), "pixels"),
        ((20_000, 20_000), "pixels"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_sizes(kind: str, size: tuple[int, int], found: str | None) -> None:
    """The header decides: what is too large is not decoded."""
    if kind == "PNG":
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
        rows = zlib.compress(bytes((size[0] + 1) * size[1])) if size[0] * size[1] < 20_000 else b""
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    elif size[0] * size[1] < 20_000:
        data = saved(Image.new("L", size), "GIF")
    else:
        data = (
            b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b"," + struct.pack("<HHHHBB", 0, 0, *size, 0, 8) + b"\0"
        )
    start = time.monotonic()
    if found is None:
        assert picture(data, Guard()).size == size
    else:
        line = refused(data)
        assert found.replace("36,000,000; ", "") in line or "pixels" in line
        assert "damaged" not in line
    assert time.monotonic() - start < 1


def test_nothing_is_printed_or_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in [*READ.values(), *(data for data, _ in JPEGS.values())]:
            picture(data, Guard())


def test_metadata_is_taken_away_from_png_alone() -> None:
    assert image_forms.without_metadata(RED_JPEG) is None
    assert image_forms.without_metadata(RED_PNG) is None
    assert image_forms.without_metadata(b"") is None
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 100)
    assert image_forms.without_metadata(saved(plain(), pnginfo=text)) == RED_PNG


@pytest.mark.parametrize("make", [lambda: RED_PNG + METADATA["compressed text of 2 MB"], lambda: RED_PNG[:40]])
def test_chunks_that_end_early_are_no_fault_of_ours(make: Callable[[], bytes]) -> None:
    image_forms.without_metadata(make())
