"""What an image file is, told from its bytes: for errors that name it, and for what a decoder's limits must not refuse.

No decoder runs here. Everything read from a file is bounded, for the file may be hostile.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
"""Chunks of a PNG that hold no pixels. Pillow refuses a file whose texts or color profile are long."""
MAX_PARTS = 50_000
"""Chunks of a PNG, segments of a JPEG: each costs time and none need hold a pixel."""
_XMP_BYTES = 4 * 2**20
"""Of an XMP packet, as far as it is searched for the orientation."""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
_EXIF_BYTES = 2**20

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (0, b"\0\0\1\0", "a Windows icon"),
    (0, b"\0\0\2\0", "a Windows cursor"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop image"),
    (0, b"DDS ", "a DDS image"),
    (0, b"qoif", "a QOI image"),
    (0, b"v/1\1", "an OpenEXR image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"\x01\xda", "an SGI image"),
    (0, b"\x0a\x05\x01", "a PCX image"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI file"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"PK\3\4", "a ZIP archive or Office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (0, b"OggS", "an Ogg file"),
    (0, b"ID3", "an MP3 file"),
    (8, b"WAVE", "a WAV file"),
    (8, b"AVI ", "an AVI video"),
)
_BRANDS = {
    b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image",
    b"hevc": "a HEIC image", b"heim": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF image",
    b"crx ": "a Canon raw image", b"qt  ": "a QuickTime video",
}  # fmt: skip
_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE\s+svg[^>]*>\s*)*<svg\b", re.I | re.DOTALL),
        "an SVG drawing",
    ),
    (re.compile(r"<!doctype\s+html|<html\b|<head\b|<body\b", re.I), "an HTML page"),
    (re.compile(r"<\?xml\b"), "an XML document"),
    (re.compile(r"version https://git-lfs"), "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (re.compile(r"data:[\w/+.-]*[;,]"), "a data address; give it as it is, not as a file"),
    (re.compile(r"[\[{]\s*[\"{\[\]}]"), "JSON"),
    (re.compile(r"/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk0"), "base64; decode it first, or give a data address"),
)
_OWN = ((_PNG, "PNG"), (b"\xff\xd8", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"))


def own_format(data: bytes) -> str | None:
    """Which of the formats that are read the first bytes announce, if any."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _OWN if data.startswith(signature)), None)


def kind_of(data: bytes) -> str:
    """What bytes that no decoder identifies seem to be, as the beginning of an error."""
    if not data:
        return "an empty file"
    if (own := own_format(data)) is not None:
        return _variant(data) or f"a damaged {own}"
    if (named := _named(data)) is not None:
        return f"bytes of another kind ({named})"
    try:
        text = data[:4096].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":  # a letter that the first 4096 bytes cut in two
            return "bytes of another kind"
        text = data[: error.start].decode("utf-8-sig", "replace")
    if "\0" in text:
        return "bytes of another kind"
    found = next((name for pattern, name in _TEXTS if pattern.match(text.lstrip())), None)
    return f"text ({found})" if found else "text"


def _named(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), 64), 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "an MP4 video")
    if re.match(rb"P[1-7]\s", data):
        return "a PNM image"
    return next((name for at, signature, name in _SIGNATURES if data[at : at + len(signature)] == signature), None)


def fault_of(data: bytes, error: Exception) -> str:
    """Why a decoder gave up, as the beginning of an error: a form that it does not read, or damage. Its words are only
    sorted, never quoted."""
    words = str(error).casefold()
    variant = _variant(data)
    if variant is not None:
        return variant
    if "unsupported" in words or "not supported" in words:
        return f"a form of {own_format(data) or 'image'} that is not read here; save it anew with 8 bits a channel"
    if isinstance(error, MemoryError):
        return "more memory than there is"
    if "truncat" in words or "unexpected end" in words:
        return "damaged: the file ends before the image does"
    return "damaged"


def _variant(data: bytes) -> str | None:
    """The name of a sound but rare form that Pillow's decoders do not read: of JPEG 12 bits, arithmetic and so on."""
    if own_format(data) != "JPEG":
        return None
    frame = _jpeg_frame(data)
    if frame is None:
        return None
    marker, bits = frame
    if marker == 0xC3:
        return "a lossless JPEG, which is not read here"
    if marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
        return "a hierarchical JPEG, which is not read here"
    if marker in (0xC9, 0xCA, 0xCB):
        return "a JPEG of arithmetic coding, damaged or not read here"
    if bits != 8:
        return f"a JPEG of {bits} bits a channel, which is not read here"
    return None


def _jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """(marker, bits a sample) of a JPEG's frame header; None where there is none."""
    at = 2
    for _ in range(MAX_PARTS):
        if at + 5 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, data[at + 4]
        elif marker in (0x01, *range(0xD0, 0xD9)):
            at += 2
        elif marker in (0xD9, 0xDA):
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def has_too_many_parts(data: bytes) -> bool:
    """Is the file cut into more than `MAX_PARTS` chunks or segments?"""
    if data.startswith(_PNG):
        return sum(1 for _ in islice(_chunks(data), MAX_PARTS + 1)) > MAX_PARTS
    return data.startswith(b"\xff\xd8") and data.count(b"\xff\xfe", 0, 2**22) > MAX_PARTS


def without_metadata(data: bytes) -> bytes | None:
    """A PNG without texts and color profile but with its orientation; None for other files, and where nothing is to be
    taken away."""
    if not data.startswith(_PNG):
        return None
    chunks = list(_chunks(data))
    if not any(kind in _METADATA[:4] for kind, _ in chunks):
        return None
    turn = _orientation(chunks)
    parts = [_PNG]
    for kind, place in chunks:
        if kind not in _METADATA:
            parts.append(data[place.start : place.stop])
        if kind == b"IHDR" and turn:
            parts.append(_exif_chunk(turn))
    return b"".join(parts)


class _Place:
    """Where a chunk stands, its length and checksum included, and a view of what it holds."""

    __slots__ = ("data", "start", "stop")

    def __init__(self, data: bytes, start: int, stop: int) -> None:
        self.data, self.start, self.stop = data, start, stop

    def held(self, limit: int) -> bytes:
        return self.data[self.start + 8 : min(self.stop - 4, self.start + 8 + limit)]


def _chunks(data: bytes) -> Iterator[tuple[bytes, _Place]]:
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        stop = min(at + 12 + length, len(data))
        yield data[at + 4 : at + 8], _Place(data, at, stop)
        at = stop


def _orientation(chunks: list[tuple[bytes, _Place]]) -> int | None:
    """EXIF's orientation, else XMP's, as Pillow has it."""
    for kind, place in chunks:
        if kind == b"eXIf" and (turn := _exif_orientation(place.held(_EXIF_BYTES))):
            return turn
    for kind, place in chunks:
        if kind == b"iTXt" and (turn := _xmp_orientation(place.held(_XMP_BYTES))):
            return turn
    return None


def _exif_orientation(held: bytes) -> int | None:
    exif = Image.Exif()
    try:
        exif.load(held)
        return int(exif.get(0x0112, 0)) or None
    except Exception:  # a damaged EXIF block says nothing
        return None


def _xmp_orientation(held: bytes) -> int | None:
    name, _, rest = held.partition(b"\0")
    if name != b"XML:com.adobe.xmp" or len(rest) < 2:
        return None
    packet = rest[2:].split(b"\0", 2)[-1]
    if rest[0]:
        try:
            packet = zlib.decompressobj().decompress(packet, _XMP_BYTES)
        except zlib.error:
            return None
    found = _XMP_ORIENTATION.search(packet)
    return int(found[1]) if found else None


def _exif_chunk(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    held = b"eXIf" + exif.tobytes()
    return struct.pack(">I", len(held) - 4) + held + struct.pack(">I", zlib.crc32(held))
