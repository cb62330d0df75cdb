"""The media guard: from a reference to an RGB picture, or a `MediaError` that says what was wrong.

Service, batch and command read pictures here and nowhere else; they differ by their `Guard` alone:

    picture(reference, guard)      one picture
    pictures(references, guard)    those of one question; the caps on number, pixels and seconds hold for all together

A reference is a path, a `file:`, `http(s):` or `data:` address, bytes, or a PIL image. Whatever is not allowed by the
guard is refused before it is read, and what is read is measured before it is decoded. Remote pictures are fetched by
hand, because the address that is connected to must be the address that was checked: one parse serves both, names are
resolved once, and redirects start again from the beginning. Proxies of the environment are not used for that reason.
Both functions block until the picture is there; a service calls them in a thread.

`MediaError` never holds a decoder's own words, an address that a name led to, or a password or query of a URL.
"""

from __future__ import annotations

import binascii
import io
import os
import re
import socket
import ssl
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes, urljoin

from PIL import Image, UnidentifiedImageError

from xreasoner import image_forms
from xreasoner.errors import MediaError, UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Reference = str | Path | bytes | Image.Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""The picture formats that are opened; others are nobody's need and somebody's hole (CVE-2026-40192)."""

MAX_RATIO = 200
"""Longer side over shorter side: Qwen2.5-VL's own resize raises beyond it."""

MIN_SIDE = 4
"""In pixels. A picture 1 or 3 high is taken for one of 1 or 3 channels by image processors (CVE-2026-22773)."""

MAX_SCANS = 100
"""Of a progressive JPEG, which has about 10. Each is a pass over all pixels and may cost only some bytes."""

MAX_ADDRESS = 8192
"""Characters of an http(s) address."""

_WANTED = f"one of {', '.join(FORMATS)}"
_REDIRECTS = (301, 302, 303, 307, 308)

# IANA's special-purpose registry; Python 3.11's is_global lacks some of it. 168.63.129.16 looks public and is the
# door to a virtual machine's own host at Azure.
_NOT_PUBLIC_4 = (
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32")),
    *map(IPv4Network, ("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24")),
    *map(IPv4Network, ("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")),
)
# All that is public in IPv6 lies in 2000::/3. Without it go loopback, mapped, local and multicast forms; out of it
# are taken Teredo and its neighbours, documentation, and 6to4, which embeds an IPv4 address.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NETLOC = re.compile(rf"(\[[0-9a-f:.]+\]|{_LABEL}(?:\.{_LABEL})*)\.?(?::(\d{{1,5}}))?", re.IGNORECASE | re.ASCII)
_NUMERIC = re.compile(r"\d+|0x[0-9a-f]*")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY  # not to wait for a FIFO's writer


def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name as the system resolves it. Raises `OSError`."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Guard:
    """What pictures may be and where they may come from. By itself: `data:` addresses, bytes and PIL images.

    Raises `UserError` for a host that is not spelled as it is compared, a folder that is not there, a cap that is not
    positive.
    """

    hosts: frozenset[str] = frozenset()
    """Hosts to fetch from, whose addresses must be public: `example.org` (ports 80 and 443), `example.org:8443`;
    `*` is every public host on ports 80 and 443."""

    private_hosts: frozenset[str] = frozenset()
    """Hosts to fetch from **whatever their address is**: an operator's own store, a test's server. No `*`."""

    root: Path | None = None
    """The folder that files are read below and that relative paths start from; `None`: no files."""

    max_images: int = 16
    """Pictures of one question."""

    max_bytes: int = 20 * 2**20
    """Of one picture, as a file."""

    max_pixels: int = 32_000_000
    """Width times height of one picture; decoded, a pixel takes 4 bytes. Pillow's own cap, 178,956,970, holds too."""

    max_total_pixels: int = 64_000_000
    """Width times height over the pictures of one question."""

    max_redirects: int = 3

    connect_seconds: float = 5.0
    """To connect to one address, TLS included."""

    seconds: float = 20.0
    """For all that is fetched for one question, from the first name's resolution to the last byte."""

    resolve: Callable[[str, int], Sequence[str]] = field(default=system_addresses, repr=False)
    """Name and port to addresses; may raise `OSError`. Asked once for each hop."""

    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """For an own certificate authority; `None`: the system's."""

    def __post_init__(self) -> None:
        for name in ("max_images", "max_bytes", "max_pixels", "max_total_pixels", "connect_seconds", "seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; expected the one that images' files are read below")
        for host in (self.hosts - {"*"}) | self.private_hosts:
            if _spelled(host) != host:
                raise UserError(f"the host {host!r}; expected a name as in example.org or example.org:8443")


def _spelled(host: str) -> str | None:
    """A host of a guard's list as it is compared: lower case, no usual port. `None` for what is no host."""
    try:
        return _parse(f"http://{host}").place
    except MediaError:
        return None


def picture(reference: Reference, guard: Guard, name: str | None = None) -> Image.Image:
    """One picture, upright and in RGB. `name` is what errors call it. Raises `MediaError`."""
    end = time.monotonic() + guard.seconds
    return _picture(reference, guard, name_of(reference if name is None else name), end, guard.max_pixels)


def pictures(references: Sequence[Reference], guard: Guard) -> tuple[Image.Image, ...]:
    """The pictures of one question, in order. Raises `MediaError` that names each bad one by its place from 1."""
    if len(references) > guard.max_images:
        raise MediaError(f"{len(references)} images; expected at most {guard.max_images}")
    end, left, found = time.monotonic() + guard.seconds, guard.max_total_pixels, list[Image.Image]()
    problems: list[str] = []
    for place, reference in enumerate(references, 1):
        name = f"{place} of {len(references)} ({name_of(reference)})"
        try:
            found.append(_picture(reference, guard, name, end, min(guard.max_pixels, left)))
            left -= found[-1].width * found[-1].height
        except MediaError as error:
            problems.append(str(error))
    if problems:
        raise MediaError("; ".join(problems))
    return tuple(found)


def name_of(reference: Reference) -> str:
    """A reference as errors print it: one short line, without a URL's password and query."""
    if not isinstance(reference, str | Path):
        return "bytes" if isinstance(reference, bytes) else "image"
    text = str(reference)
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() == "data":
        text = text[:100].partition(",")[0] + ",…"
    elif scheme:
        text = re.sub(r"^([^/]*//)[^/]*@", r"\1", re.split(r"[?#]", text, maxsplit=1)[0])
    text = "".join(letter if letter.isprintable() else "�" for letter in text[:10_000])
    return text if len(text) <= 200 else f"{text[:100]}…{text[-99:]}"


def _picture(reference: Reference, guard: Guard, name: str, end: float, pixels: int) -> Image.Image:
    try:
        if isinstance(reference, Image.Image):
            return _opened(lambda: reference, pixels)
        data = _read(reference, guard, end)
        return _opened(lambda: _open(data), pixels, data)
    except MediaError as error:
        problem = str(error)
    raise MediaError(f"image {name}: {problem}")  # outside, so that no traceback shows what led to it


def _read(reference: str | Path | bytes, guard: Guard, end: float) -> bytes:
    """The bytes that a reference stands for, at most `guard.max_bytes`."""
    if isinstance(reference, bytes):
        return _capped(reference, guard)
    if isinstance(reference, Path):
        return _read_file(reference, guard)
    if not isinstance(reference, str):
        raise MediaError(f"found a {type(reference).__name__}; expected a path, an address, bytes or a PIL image")
    found = _SCHEME.match(reference)
    scheme = found[1].lower() if found else ""
    if scheme == "data":
        return _read_data(reference, guard)
    if scheme in ("http", "https"):
        return _fetch(reference, guard, end)
    if scheme == "file":
        return _read_file(_file_path(reference), guard)
    if scheme and reference[len(scheme) :].startswith("://"):
        raise MediaError(f"an address of the scheme {scheme[:20]!r}; expected http, https, data or file")
    return _read_file(Path(reference), guard)


def _capped(data: bytes, guard: Guard) -> bytes:
    if len(data) > guard.max_bytes:
        raise _too_long(guard, f"{len(data):,} bytes")
    return data


def _too_long(guard: Guard, found: str = "more") -> MediaError:
    return MediaError(f"{found}; expected at most {guard.max_bytes:,} bytes")


# --- data: ---------------------------------------------------------------------------------------------------------


def _read_data(address: str, guard: Guard) -> bytes:
    head, comma, text = address.partition(",")
    if not comma or not head.strip().lower().endswith(";base64"):
        raise MediaError("a data address without base64; expected data:image/png;base64,…")
    most = (guard.max_bytes + 2) // 3 * 4
    if len(text) > 2 * most + 1024:  # measured first: what is too long is not read, line breaks included
        raise _too_long(guard, f"{len(text):,} characters of base64")
    text = _standard_base64(text)
    if len(text) > most:
        raise _too_long(guard, f"{len(text):,} characters of base64")
    if len(text) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]*+={0,2}", text):  # Python's own strict mode lets "AAAA=" by
        raise MediaError("base64 that is not well formed; expected letters, digits, + and /")
    return _capped(binascii.a2b_base64(text), guard)


_URL_ALPHABET = str.maketrans("-_", "+/")
_SPACES = str.maketrans("", "", " \t\r\n\f\v\ufeff")


def _standard_base64(text: str) -> str:
    """Base64 in one line, in the standard alphabet and padded.

    Encoders break lines after 64 or 76 characters, end with a newline, escape what a URL escapes, use the alphabet for
    URLs, and leave the padding out; all of that is the same data.
    """
    if "%" in text:
        text = unquote_to_bytes(text).decode("latin-1")
    if re.search("[-_]", text) and not re.search("[+/]", text):
        text = text.translate(_URL_ALPHABET)
    text = text.translate(_SPACES)
    bare = text.rstrip("=")
    padding = "=" * (-len(bare) % 4)
    return bare + padding if len(text) - len(bare) <= len(padding) else text


# --- files ---------------------------------------------------------------------------------------------------------


def _file_path(address: str) -> Path:
    """The path of a `file:` address, of this machine only."""
    found = re.fullmatch(r"file:(?://(?:localhost)?)?(/[^?#]*)", address, re.IGNORECASE)
    if not found or found[1].startswith("//"):
        raise MediaError("a file address of another kind; expected file:///folder/image.png")
    return Path(os.fsdecode(unquote_to_bytes(found[1])))


_BASE64_IMAGE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/_\s-]{60,}={0,2}\s*")
"""The bytes of an image of each format as base64, as some servers take them in place of an address."""


def _read_file(path: Path, guard: Guard) -> bytes:
    if _BASE64_IMAGE.fullmatch(str(path)):
        raise MediaError("base64 without its address; expected data:image/png;base64, before it")
    if guard.root is None:
        raise MediaError("files are not read here; expected a data address (data:image/png;base64,…)")
    root, real = os.path.realpath(guard.root), _real(guard.root / path)
    if not real.is_relative_to(root):
        raise MediaError("outside the folder that images are read from; expected a file below it")
    try:
        return _read_regular(_open_below(root, real.relative_to(root).parts), guard)
    except OSError as error:
        problem = error.strerror
    raise MediaError(f"{problem}; expected a file, {_WANTED}")


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a zero byte
        raise MediaError("no file has such a name; expected a path") from None


def _open_below(root: str, parts: tuple[str, ...]) -> int:
    """A descriptor of a resolved path, opened folder by folder so that a link put there since then is not followed."""
    *folders, last = parts or (".",)
    here = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(last, _FILE, dir_fd=here)
    finally:
        os.close(here)


def _read_regular(descriptor: int, guard: Guard) -> bytes:
    """Read a regular file and close it."""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"a folder, device or pipe; expected a file, {_WANTED}")
        if found.st_size > guard.max_bytes:
            raise _too_long(guard, f"{found.st_size:,} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _capped(file.read(guard.max_bytes + 1), guard)  # it may grow, and those of /proc have no size
    finally:
        os.close(descriptor)


# --- http and https ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Address:
    """The one parse of an address: what is checked and what is fetched are both read from here."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def place(self) -> str:
        """As in a guard's lists."""
        return self.host if self.port in (80, 443) else f"{self.host}:{self.port}"

    @property
    def header(self) -> str:
        """As in the Host header."""
        return self.host if self.port == (443 if self.secure else 80) else f"{self.host}:{self.port}"


def _parse(text: str) -> _Address:
    """An http(s) address of the plain spelling; whatever two parsers could read differently is refused."""
    if len(text) > MAX_ADDRESS:
        raise MediaError(f"an address of {len(text):,} characters; expected at most {MAX_ADDRESS:,}")
    if not re.fullmatch(r"[!-\[\]-~]+", text):  # visible ASCII but the backslash (CVE-2026-24779, -25960)
        raise MediaError("an address with a space, backslash or letter beyond ASCII; expected those %-encoded")
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in ("http", "https"):
        raise MediaError("an address of another scheme; expected http or https")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(netloc) :].partition("#")[0]
    if "@" in netloc:
        raise MediaError("an address with a user's name or password; expected one without")
    found = _NETLOC.fullmatch(netloc)
    secure = scheme.lower() == "https"
    port = int((found and found[2]) or (443 if secure else 80))
    if not found or not 0 < port < 65536:
        raise MediaError("an address whose host or port is not spelled as one; expected https://example.org/image.png")
    return _Address(secure, _host(found[1].lower()), port, tail if tail.startswith("/") else f"/{tail}")


def _host(text: str) -> str:
    """A name, or an address in its one usual spelling: 127.1, 0x7f.1 and 2130706433 are refused."""
    if not text.startswith("[") and not _NUMERIC.fullmatch(text.rpartition(".")[2]):
        if len(text) > 253:
            raise MediaError("a host's name of more than 253 characters; expected a shorter one")
        return text
    try:
        found = ip_address(text.strip("[]"))
    except ValueError:
        raise MediaError("a host of digits that is no address; expected four decimal numbers, or a name") from None
    return f"[{found}]" if found.version == 6 else str(found)


def _is_private_host(address: _Address, guard: Guard) -> bool:
    """Whether the host's address may be any. Raises `MediaError` for a host that is not allowed at all."""
    if address.place in guard.private_hosts:
        return True
    if not guard.hosts and not guard.private_hosts:
        raise MediaError("remote images are off; expected a data address (data:image/png;base64,…)")
    if address.place in guard.hosts or ("*" in guard.hosts and address.port in (80, 443)):
        return False
    raise MediaError(f"the host {address.place} is not allowed; expected one that the operator allowed")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public internet. A NAT64 address is judged by what it embeds."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def _addresses(address: _Address, guard: Guard, end: float) -> list[IPv4Address | IPv6Address]:
    """The addresses to connect to, each of them checked: one that is private spoils the name."""
    may_be_private = _is_private_host(address, guard)
    if address.host.startswith("[") or _NUMERIC.fullmatch(address.host.rpartition(".")[2]):
        found = [ip_address(address.host.strip("[]"))]
    else:
        found = [ip_address(text) for text in _resolve(address, guard, end)]
    if not found:
        raise MediaError(f"the name {address.host} has no address; expected a host that exists")
    if not may_be_private and not all(is_public(one) for one in found):
        raise MediaError(f"the host {address.place} is not on the public internet; expected one that is")
    return found


def _resolve(address: _Address, guard: Guard, end: float) -> Sequence[str]:
    """Ask the resolver, in a thread because the system's knows no deadline."""
    answer: Future[Sequence[str]] = Future()

    def work() -> None:
        try:
            answer.set_result(guard.resolve(address.host, address.port))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="resolve", daemon=True).start()
    try:
        return answer.result(timeout=_left(end))
    except socket.gaierror:
        return []


def _left(end: float) -> float:
    """Seconds until the deadline. Raises `TimeoutError` after it."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(address: _Address, guard: Guard, end: float) -> socket.socket:
    """A connection to the very address that was checked; for TLS, the certificate is checked against the name."""
    for found in _addresses(address, guard, end):
        wire = socket.socket(socket.AF_INET6 if found.version == 6 else socket.AF_INET)
        try:
            wire.settimeout(min(guard.connect_seconds, _left(end)))
            wire.connect((str(found), address.port))
            return _secured(wire, address, guard) if address.secure else wire
        except ssl.SSLCertVerificationError:
            wire.close()
            raise MediaError(f"the certificate of {address.place} does not hold; expected a valid one") from None
        except OSError:
            wire.close()
            _left(end)
    raise MediaError(f"the host {address.place} cannot be reached; expected one that answers")


def _secured(wire: socket.socket, address: _Address, guard: Guard) -> ssl.SSLSocket:
    context = guard.tls or ssl.create_default_context()
    return context.wrap_socket(wire, server_hostname=address.host.strip("[]"))


class _Wire(io.RawIOBase):
    """The reading side of a socket that keeps the deadline however slowly bytes drip: for `HTTPResponse`.

    It also counts what comes, for http.client reads all there is behind a chunk whose size is negative.
    """

    def __init__(self, wire: socket.socket, end: float, guard: Guard) -> None:
        self._wire, self._end, self._guard, self._left = wire, end, guard, 2 * guard.max_bytes + 2**20

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._wire.settimeout(_left(self._end))
        read = self._wire.recv_into(buffer)
        self._left -= read
        if self._left < 0:
            raise _too_long(self._guard)
        return read

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)


def _fetch(url: str, guard: Guard, end: float) -> bytes:
    """The body behind an address. Every hop is parsed, checked and resolved as the first was."""
    try:
        for _ in range(guard.max_redirects + 1):
            address = _parse(url)
            with _connect(address, guard, end) as wire, _answer(wire, address, end, guard) as response:
                if response.status not in _REDIRECTS:
                    return _body(response, address, guard)
                url = _next(url, response.headers.get("Location", ""))
        problem = f"more than {guard.max_redirects} redirects; expected the image's own address"
    except TimeoutError:
        problem = f"not there after {guard.seconds:g} s; expected a host that answers in time"
    except (OSError, HTTPException):
        problem = "the connection broke, or its other end does not speak HTTP; expected a image"
    raise MediaError(problem)


def _answer(wire: socket.socket, address: _Address, end: float, guard: Guard) -> HTTPResponse:
    """Send the request and read the answer's head."""
    wire.settimeout(_left(end))
    wire.sendall(
        f"GET {address.target} HTTP/1.1\r\nHost: {address.header}\r\nUser-Agent: xreasoner\r\nAccept: image/*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    response = HTTPResponse(cast(socket.socket, _Wire(wire, end, guard)), method="GET")
    response.begin()
    return response


def _next(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise MediaError("a redirect to what is no address; expected the image's own address") from None


def _body(response: HTTPResponse, address: _Address, guard: Guard) -> bytes:
    """The body, counted while it is read. The server's Content-Type is not asked: the bytes decide."""
    if response.status != 200:
        raise MediaError(f"{address.place} answered {response.status}; expected 200 and a image")
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise MediaError("a compressed answer (Content-Encoding); expected the image as it is")
    if response.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise MediaError("a compressed answer (Transfer-Encoding); expected the image as it is")
    length, data = _length(response, guard), bytearray()
    while piece := response.read(min(2**16, guard.max_bytes + 1 - len(data))):
        data += piece
        if len(data) > guard.max_bytes:
            raise _too_long(guard)
    if length is not None and not response.chunked and len(data) < length:
        raise MediaError(f"the answer ended after {len(data):,} bytes; expected the {length:,} it declared")
    return bytes(data)


def _length(response: HTTPResponse, guard: Guard) -> int | None:
    """The declared length in bytes. Raises `MediaError` where it is beyond the cap or no number."""
    found = set(response.headers.get_all("Content-Length") or [])
    if not found:
        return None
    text = found.pop().strip()
    if found or not re.fullmatch(r"[0-9]{1,18}", text):
        raise MediaError("an answer whose Content-Length is no number; expected one number")
    if int(text) > guard.max_bytes:
        raise _too_long(guard, f"{int(text):,} bytes")
    return int(text)


# --- decoding ------------------------------------------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    transparency = image.info.get("transparency")
    if image.format == "PNG" and data[24] == 16 and isinstance(transparency, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparency)  # as Pillow reads the samples
    return image


def _opened(open_it: Callable[[], Image.Image], pixels: int, data: bytes | None = None) -> Image.Image:
    """The image in RGB, or a `MediaError` in our words: a decoder's may hold an address (CVE-2026-22778)."""
    if data is not None and data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise MediaError(f"a JPEG of more than {MAX_SCANS} scans; expected a image as cameras write it")
    if data is not None and image_forms.has_too_many_parts(data):
        raise MediaError(f"more than {image_forms.MAX_PARTS:,} chunks or segments; expected an image saved anew")
    try:
        image = open_it()
        _check_size(image, pixels)
        return _rgb(image)
    except MediaError:
        raise
    except UnidentifiedImageError:
        problem = image_forms.kind_of(data or b"")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = "more pixels than Pillow opens"
    except Exception as error:  # a decoder that is fed a hostile file raises anything
        smaller = image_forms.without_metadata(data or b"")
        if smaller is not None:  # Pillow's cap on texts and profiles is no fault of the image
            return _opened(lambda: _open(smaller), pixels, smaller)
        problem = image_forms.fault_of(data or b"", error)
    raise MediaError(f"{problem}; expected {_WANTED}, whole")


def _check_size(image: Image.Image, pixels: int) -> None:
    width, height = image.size
    if width * height > pixels:
        raise MediaError(f"{width} × {height} is {width * height:,} pixels; expected at most {max(pixels, 0):,}")
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{width} × {height} pixels; expected at least {MIN_SIDE} × {MIN_SIDE}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(f"{width} × {height} pixels; expected a side at most {MAX_RATIO} times as long as the other")


def _rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of the first frame, upright; what shines through is white, as Qwen's own code has it."""
    turn = _TURNS.get(_orientation(image))
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
    else:
        flat = image.convert("RGB")
    return flat if turn is None else flat.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Samples of more than 8 bits in 8; by itself Pillow makes all beyond 255 white, which is most of an X-ray."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "F":
        low, high = cast(tuple[float, float], image.getextrema())
        if not 0 <= low <= high <= 255 or 0 < high <= 1:
            raise MediaError("floating-point pixels of another range; expected 0 to 255, or 8 bits a channel")
        return image
    if not image.mode.startswith("I"):
        return image
    wide = image.convert("I")
    low, high = cast(tuple[int, int], wide.getextrema())
    if low < 0 or high > 65535:
        raise MediaError(f"integer pixels from {low} to {high}; expected 0 to 65535, or 8 bits a channel")
    shades = wide if image.mode == "I" and high <= 255 else wide.point(lambda value: value * (1 / 256))
    grey = shades.convert("L")
    clear = image.info.get("transparency")
    grey.info.pop("transparency", None)
    if isinstance(clear, int):  # one shade of 65,536, which 8 bits cannot tell from its neighbors
        import numpy as np  # here, so that commands report a mistake without loading it

        grey.putalpha(Image.fromarray(np.where(np.asarray(wide) == clear, 0, 255).astype(np.uint8)))
    return grey


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation to the turn that undoes it."""


def _orientation(image: Image.Image) -> int:
    image.load()  # a PNG's EXIF may come last
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a picture with a damaged EXIF block is still a picture
        return 1
