"""The media guard against servers, files and pictures that misbehave. No part of it is replaced: the servers are real.

Servers listen on loopback addresses, which the guard refuses by itself; the tests name theirs as `private_hosts`, and
give names to addresses by the guard's own `resolve`. A test is named after the CVE whose mistake it would show.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from random import Random
from urllib.parse import quote

import pytest
from PIL import Image, PngImagePlugin

from xreasoner.batching import run_batch
from xreasoner.errors import MediaError, UserError
from xreasoner.media import FORMATS, MAX_SCANS, Guard, Reference, is_public, picture, pictures
from xreasoner.reasoner import Reasoner

Reply = Callable[[socket.socket, str], None]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def saved(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def plain(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


RED_PNG, BLUE_PNG = saved(plain()), saved(plain(BLUE))


def data_address(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def refused(reference: Reference, guard: Guard) -> str:
    """The guard's complaint: one line that says which, what and what instead, with nothing behind it."""
    with pytest.raises(MediaError) as caught:
        picture(reference, guard)
    line = str(caught.value)
    assert line.startswith("image ")
    assert "; expected " in line
    assert line.isprintable()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return line


# --- servers --------------------------------------------------------------------------------------------------------


class Server:
    """A socket that reads a request's head and then answers as it is told, one thread a connection."""

    def __init__(self, reply: Reply, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None):
        self.reply, self.tls, self.requests = reply, tls, list[str]()
        self._listener = socket.create_server((address, port))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            connection.settimeout(5)
            if self.tls:
                connection = stack.enter_context(self.tls.wrap_socket(connection, server_side=True))
            head = b""
            while b"\r\n\r\n" not in head and not head.startswith(b"\x16"):  # or a TLS client that speaks to us
                piece = connection.recv(4096)
                if not piece:
                    return
                head += piece
            self.requests.append(head.decode("latin-1"))
            self.reply(connection, self.requests[-1].split()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(reply: Reply, *args: object, **more: object) -> Server:
        servers.append(Server(reply, *args, **more))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Serve = Callable[..., Server]


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Reply:
    """An answer with the given or the true Content-Length; -1: none."""
    lines = [f"HTTP/1.1 {status}", *headers]
    lines += [] if length == -1 else [f"Content-Length: {len(body) if length is None else length}"]
    return lambda wire, _: wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def redirect(location: str) -> Reply:
    return answer(b"", f"Location: {location}", status="302 Found")


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Reply:
    """Send until the other end hangs up."""

    def reply(wire: socket.socket, _: str) -> None:
        wire.sendall(b"HTTP/1.1 200 OK\r\n" + head)
        while True:
            wire.sendall(piece)
            time.sleep(pause)

    return reply


def names(**table: Sequence[str]) -> Callable[[str, int], Sequence[str]]:
    """A resolver: `pictures` stands for `pictures.test`."""

    def resolve(host: str, _: int) -> Sequence[str]:
        if host.removesuffix(".test") not in table:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return table[host.removesuffix(".test")]

    return resolve


def guard_for(*servers: Server, hosts: Sequence[str] = (), **more: object) -> Guard:
    """`pictures.test` on the servers' ports is allowed on 127.0.0.1; `hosts` are allowed if they are public."""
    settings: dict[str, object] = {"seconds": 3.0, "resolve": names(pictures=["127.0.0.1"], inside=["127.0.0.1"])}
    private = frozenset(f"pictures.test:{server.port}" for server in servers)
    return Guard(hosts=frozenset(hosts), private_hosts=private, **{**settings, **more})  # type: ignore[arg-type]


def at(server: Server, path: str = "/a.png") -> str:
    return f"http://pictures.test:{server.port}{path}"


def test_a_picture_is_fetched(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server = serve(answer(RED_PNG, "Content-Type: application/octet-stream"))
    found = picture(at(server, "/a/b.png?size=3&x=%20#part"), guard_for(server))
    assert (found.mode, found.size, found.getpixel((0, 0))) == ("RGB", (8, 8), RED)
    lines = server.requests[0].splitlines()
    assert lines[0] == "GET /a/b.png?size=3&x=%20 HTTP/1.1"
    assert f"Host: pictures.test:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines


@pytest.mark.parametrize(
    "spelling", ["HTTP://PICTURES.test:{}", "http://pictures.test.:{}/", "http://pictures.test:{}?a"]
)
def test_harmless_spellings_are_one_host(serve: Serve, spelling: str) -> None:
    server = serve(answer(RED_PNG))
    assert picture(spelling.format(server.port), guard_for(server)).size == (8, 8)
    assert f"Host: pictures.test:{server.port}\r\n" in server.requests[0]
    assert server.requests[0].split()[1] in ("/", "/?a")


def test_a_body_without_length_and_one_in_chunks(serve: Serve) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (RED_PNG[:20], RED_PNG[20:])) + b"0\r\n\r\n"
    for server in (serve(answer(RED_PNG, length=-1)), serve(answer(chunks, "Transfer-Encoding: chunked", length=-1))):
        assert picture(at(server), guard_for(server)).size == (8, 8)


def test_remote_pictures_are_off_by_default() -> None:
    assert "remote images are off" in refused("https://example.org/a.png", Guard())


def test_another_host_or_port_is_refused_unasked(serve: Serve) -> None:
    server = serve(answer(RED_PNG))
    guard = guard_for(server, hosts=["example.org"])
    assert "elsewhere.test" in refused(f"http://elsewhere.test:{server.port}/a.png", guard)
    for address in ("http://pictures.test/", "http://example.org:8080/", "http://www.example.org/"):
        assert "is not allowed" in refused(address, guard)
    assert not server.requests


def test_any_host_means_any_public_host_on_the_usual_ports() -> None:
    guard = Guard(hosts=frozenset({"*"}), resolve=names(inside=["10.0.0.1"]))
    assert "not on the public internet" in refused("http://inside.test/a.png", guard)
    assert "not on the public internet" in refused("https://127.0.0.1/a.png", guard)
    assert "is not allowed" in refused("http://inside.test:22/a.png", guard)


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "blob", "jar", "unix"])
def test_other_schemes_are_refused(scheme: str) -> None:
    assert f"the scheme '{scheme}'" in refused(f"{scheme}://example.org/a.png", Guard(hosts=frozenset({"*"})))


def test_a_name_that_nobody_knows_and_one_where_nobody_listens(serve: Serve) -> None:
    server = serve(answer(RED_PNG))
    server.close()
    assert "cannot be reached" in refused(at(server), guard_for(server))
    assert "has no address" in refused(at(server), guard_for(server, resolve=names()))


def test_the_second_address_is_tried(serve: Serve) -> None:
    server = serve(answer(RED_PNG))
    guard = guard_for(server, resolve=names(pictures=["127.0.0.9", "127.0.0.1"]))
    assert picture(at(server), guard).size == (8, 8)


# --- the record of the field ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "http://pictures.test:{0}\\@inside.test:{1}/",
        "http://pictures.test:{0}\\.inside.test:{1}/",
        "http:\\\\inside.test:{1}\\pictures.test:{0}/",
        "http://inside.test:{1}\\..\\pictures.test:{0}/",
        "http:/\\inside.test:{1}/",
    ],
)
def test_cve_2026_24779_a_backslash_does_not_move_the_host(serve: Serve, spelling: str) -> None:
    """A checker that split at the backslash and a client that did not saw two hosts."""
    server, inside = serve(answer(RED_PNG)), serve(answer(BLUE_PNG))
    assert "backslash" in refused(spelling.format(server.port, inside.port), guard_for(server, hosts=["*"]))
    assert not server.requests
    assert not inside.requests


@pytest.mark.parametrize(
    "spelling",
    [
        "http://pictures.test:{0}@inside.test:{1}/",
        "http://pictures.test:{0}%40inside.test:{1}/",
        "http://inside.test:{1}#@pictures.test:{0}/",
        "http://inside.test:{1}?@pictures.test:{0}/",
        "http://inside.test:{1};pictures.test:{0}/",
        "http://inside.test:{1} pictures.test:{0}/",
        "http://inside.test:{1}\t.pictures.test:{0}/",
        "http://inside.test:{1}\r\nHost:pictures.test:{0}/",
        "http://inside.test:{1},pictures.test:{0}/",
        "http://[pictures.test]:{0}/",
        "http://inside.test[::1]:{1}/",
        "http://[::1]inside.test:{1}/",
        "http://inside%2etest:{1}/",
        "http://ｉnside.test:{1}/",
        "http://inside。test:{1}/",
        "http:///inside.test:{1}/",
        "http:inside.test:{1}/",
        "http://:{1}/",
        "http://inside.test:{1}:{0}/",
        "http://inside.test:0{1}0/",
        "http://inside.test:-1/",
        "http://-inside.test:{1}/",
        "http://inside..test:{1}/",
        "//inside.test:{1}/",
    ],
)
def test_cve_2026_25960_what_is_fetched_is_what_was_parsed(serve: Serve, spelling: str) -> None:
    """The mend of 24779 checked with one parser and fetched with another; here both read one result."""
    server, inside = serve(answer(RED_PNG)), serve(answer(BLUE_PNG))
    guard = guard_for(server, hosts=[f"inside.test:{inside.port}"])
    assert refused(spelling.format(server.port, inside.port), guard)
    assert not server.requests
    assert not inside.requests


def test_cve_2026_34753_a_batch_passes_the_same_guard(serve: Serve, reasoner: Reasoner, tmp_path: Path) -> None:
    """A batch runner fetched by its own way, past the service's checks."""
    inside = serve(answer(BLUE_PNG))
    server = serve(redirect(f"http://inside.test:{inside.port}/a"))
    addresses = [f"http://inside.test:{inside.port}/a", f"http://127.0.0.1:{inside.port}/a", at(server), "/etc/passwd"]
    lines = []
    for k, address in enumerate(addresses):
        parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What is it?"}]
        lines.append(json.dumps({"custom_id": str(k), "body": {"messages": [{"role": "user", "content": parts}]}}))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    guard = guard_for(server, hosts=["inside.test", f"inside.test:{inside.port}"], root=tmp_path)
    outcome = run_batch(reasoner, tmp_path / "in.jsonl", tmp_path / "out.jsonl", guard)
    said = [json.loads(line)["error"]["message"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert outcome.refused == [1, 2, 3, 4]
    for line, words in zip(said, ("not on the public", "not allowed", "not on the public", "outside"), strict=True):
        assert words in line
    assert len(server.requests) == 1
    assert not inside.requests


@pytest.mark.parametrize(
    "location",
    [
        "http://inside.test:{}/metadata",
        "//inside.test:{}/metadata",
        "http://127.0.0.1:{}/metadata",
        "http://[::1]:{}/metadata",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "gopher://inside.test:{}/",
        "\\\\inside.test:{}/metadata",
        "http://pictures.test@inside.test:{}/",
        "http://[/",
        "http://ïnside.test:{}/",
    ],
)
def test_cve_2026_45401_every_hop_is_checked(serve: Serve, location: str) -> None:
    """An allowed host redirects to where it should not; the name inside is even allowed, were it public."""
    inside = serve(answer(BLUE_PNG))
    server = serve(redirect(location.format(inside.port)))
    allowed = ["*", f"inside.test:{inside.port}", f"127.0.0.1:{inside.port}", f"[::1]:{inside.port}"]
    assert refused(at(server), guard_for(server, hosts=allowed, root=Path("/")))
    assert len(server.requests) == 1
    assert not inside.requests


def test_redirects_that_are_in_order_are_followed(serve: Serve) -> None:
    def reply(wire: socket.socket, path: str) -> None:
        (answer(RED_PNG) if path == "/c" else redirect({"/a/x": "../b?q", "/b?q": "/c"}[path]))(wire, path)

    server = serve(reply)
    assert picture(at(server, "/a/x"), guard_for(server)).size == (8, 8)
    assert len(server.requests) == 3


def test_redirects_end(serve: Serve) -> None:
    server = serve(redirect("/again"))
    assert "more than 2 redirects" in refused(at(server), guard_for(server, max_redirects=2))
    assert len(server.requests) == 3


@pytest.mark.parametrize("embedded", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.100.100.200"])
@pytest.mark.parametrize("form", ["::ffff:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}"])
def test_cve_2026_45331_an_ipv4_address_in_ipv6_dress(serve: Serve, form: str, embedded: str) -> None:
    inside = serve(answer(BLUE_PNG))
    dressed = form.format(embedded)
    allowed = ["*", f"inside.test:{inside.port}", f"[{ip_address(dressed)}]:{inside.port}"]
    guard = guard_for(hosts=allowed, resolve=names(inside=[dressed]))
    for host in ("inside.test", f"[{dressed}]", f"[{ip_address(dressed)}]"):
        assert "not on the public internet" in refused(f"http://{host}:{inside.port}/", guard)
    assert not inside.requests


def test_rebinding_the_connection_goes_to_the_address_that_was_checked(serve: Serve) -> None:
    """The name changes its address after each question, and it is one that the system resolves otherwise."""
    server = serve(answer(RED_PNG), "127.0.0.2")
    inside = serve(answer(BLUE_PNG), "127.0.0.1", server.port)
    asked = iter([["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]])
    place = f"localhost:{server.port}"
    guard = Guard(private_hosts=frozenset({place}), resolve=lambda host, port: next(asked), seconds=3)
    assert picture(f"http://{place}/", guard).getpixel((0, 0)) == RED
    assert next(asked) == ["127.0.0.1"]  # it was asked once
    assert f"Host: {place}\r\n" in server.requests[0]
    assert not inside.requests


def test_rebinding_one_private_address_spoils_a_name(serve: Serve) -> None:
    inside = serve(answer(BLUE_PNG))
    guard = guard_for(hosts=[f"inside.test:{inside.port}"], resolve=names(inside=["93.184.216.34", "127.0.0.1"]))
    assert "not on the public internet" in refused(f"http://inside.test:{inside.port}/", guard)
    assert not inside.requests


def test_rebinding_between_two_hops(serve: Serve) -> None:
    """The name is trusted at its own store's port; the second hop asks again and does not trust the new address."""
    inside = serve(answer(BLUE_PNG))
    server = serve(redirect(f"http://pictures.test:{inside.port}/"))
    guard = guard_for(server, hosts=[f"pictures.test:{inside.port}"])
    assert "not on the public internet" in refused(at(server), guard)
    assert not inside.requests


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.0.0.1.", "1.2.3", "[1]"]
)
def test_odd_spellings_of_an_address(serve: Serve, host: str) -> None:
    inside = serve(answer(BLUE_PNG))
    assert refused(f"http://{host}:{inside.port}/", Guard(hosts=frozenset({"*"})))
    assert refused(f"http://{host}/", Guard(hosts=frozenset({"*"})))
    assert not inside.requests


PUBLIC = "8.8.8.8 172.15.255.255 100.63.255.255 2606:4700::1111 64:ff9b::808:808"
NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.9.8.7 100.64.0.1 100.127.255.255 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1 172.31.255.255
192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1
255.255.255.255 168.63.129.16 :: ::1 ::7f00:1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::a00:1 64:ff9b:1::8.8.8.8
100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%lo
fec0::1 ff02::1
"""


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


def broken() -> list[bytes]:
    """Pictures whose decoders complain in many ways."""
    found = [saved(Image.effect_noise((64, 64), 50).convert("RGB"), kind)[:-200] for kind in FORMATS]
    jpeg2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"\x00" * 64  # CVE-2026-22778's own kind
    return [*found, jpeg2000, b"\x89PNG\r\n\x1a\n", b"RIFF\x10\x00\x00\x00WEBPVP8 ", b"GIF89a", b"BM", b"\xff\xd8\xff"]


def test_cve_2026_22778_a_decoder_is_never_quoted(serve: Serve) -> None:
    """Pillow's message held the repr of a buffer with its address in memory."""
    for data in broken():
        server = serve(answer(data, "Content-Type: image/png"))
        line = refused(at(server), guard_for(server))
        for word in ("0x", "BytesIO", "object", "truncated", "bytes not", "cannot identify"):
            assert word not in line


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (3, 3), (100, 3), (3, 100), (804, 4), (4, 804)])
def test_cve_2026_22773_ambiguous_dimensions(serve: Serve, size: tuple[int, int]) -> None:
    """One and three pixels are taken for channels, and Qwen2.5-VL's resize raises beyond a ratio of 200."""
    server = serve(answer(saved(plain(size=size))))
    assert f"{size[0]} × {size[1]} pixels" in refused(at(server), guard_for(server))
    assert f"{size[0]} × {size[1]} pixels" in refused(saved(plain(size=size)), Guard())
    assert f"{size[0]} × {size[1]} pixels" in refused(plain(size=size), Guard())


def test_narrow_but_not_ambiguous() -> None:
    assert picture(plain(size=(800, 4)), Guard()).size == (800, 4)


def fits(size: int) -> bytes:
    """A compressed FITS image, small as a file."""
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {size}", f"NAXIS2  = {size}", "END"]
    head = "".join(f"{card:80}" for card in cards).ljust(2880).encode()
    return head + gzip.compress(b"\0" * size * size)


def test_cve_2026_40192_formats_that_nobody_asked_for(serve: Serve) -> None:
    """Pillow opens FITS, TIFF and many more by itself, each with bombs and holes of its own."""
    others = {kind: saved(plain(), kind) for kind in ("TIFF", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS")}
    for data in [fits(500), *others.values()]:
        with Image.open(io.BytesIO(data)) as opened:  # so this is a picture, of another kind
            assert opened.format not in FORMATS
        server = serve(answer(data, "Content-Type: image/png"))
        for line in (refused(data, Guard()), refused(at(server), guard_for(server))):
            assert "bytes of another kind" in line or "text" in line


# --- servers that misbehave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_an_endless_body_is_cut_at_the_cap(serve: Serve, head: bytes) -> None:
    """PYSEC-2026-4184, for what is fetched: the whole body was read before its size was looked at."""
    server = serve(endless(head, b"1000\r\n" + b"x" * 4096 + b"\r\n"))
    start = time.monotonic()
    assert "expected at most 100,000 bytes" in refused(at(server), guard_for(server, max_bytes=100_000))
    assert time.monotonic() - start < 2


def test_a_chunk_of_negative_size_is_not_read_to_the_end(serve: Serve) -> None:
    """http.client reads all there is behind it, at once."""
    server = serve(endless(b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 65536))
    start = time.monotonic()
    assert "expected at most 100,000 bytes" in refused(at(server), guard_for(server, max_bytes=100_000))
    assert time.monotonic() - start < 2


def test_a_declared_length_beyond_the_cap_is_not_read(serve: Serve) -> None:
    server = serve(answer(RED_PNG, length=10**9))
    assert "1,000,000,000 bytes" in refused(at(server), guard_for(server))


def test_a_length_that_is_too_small_ends_the_reading(serve: Serve) -> None:
    server = serve(endless(b"Content-Length: 20\r\n\r\n", RED_PNG * 100))
    assert "damaged" in refused(at(server), guard_for(server))


def test_a_length_that_is_too_great_is_noticed(serve: Serve) -> None:
    server = serve(answer(RED_PNG, length=len(RED_PNG) + 5))
    assert f"ended after {len(RED_PNG)} bytes" in refused(at(server), guard_for(server))


@pytest.mark.parametrize("length", ["-1", "+9", "1_0", "9" * 5000, "x", "", "9\r\nContent-Length: 8"])
def test_a_length_that_is_none(serve: Serve, length: str) -> None:
    server = serve(answer(RED_PNG, f"Content-Length: {length}", length=-1))
    assert "Content-Length is no number" in refused(at(server), guard_for(server))


@pytest.mark.parametrize("head", [b"Content-Length: 5000\r\n\r\n", b"X-Slow: ", b"X: 1\r\n"])
def test_a_slow_drip_ends_at_the_deadline(serve: Serve, head: bytes) -> None:
    """Each byte comes in time and the whole never does: in the body, in one header's line, between headers."""
    server = serve(endless(head, b"A: b\r\n" if head.endswith(b"1\r\n") else b"x", pause=0.02))
    start = time.monotonic()
    assert "not there after 0.4 s" in refused(at(server), guard_for(server, seconds=0.4))
    assert time.monotonic() - start < 1


def test_slow_hops_share_one_deadline(serve: Serve) -> None:
    def reply(wire: socket.socket, path: str) -> None:
        time.sleep(0.25)
        redirect("/again")(wire, path)

    server = serve(reply)
    assert "not there after 0.4 s" in refused(at(server), guard_for(server, seconds=0.4, max_redirects=9))
    assert len(server.requests) == 2


def test_a_slow_resolver_ends_at_the_deadline() -> None:
    done = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        done.wait(5)
        return []

    guard = Guard(hosts=frozenset({"*"}), resolve=resolve, seconds=0.2)
    assert "not there after 0.2 s" in refused("http://pictures.test/", guard)
    done.set()


@pytest.mark.parametrize("body", [b"<!doctype html><title>Sign in</title>", b'{"secret": 1}', b""])
def test_a_wrong_type_is_told_by_the_bytes(serve: Serve, body: bytes) -> None:
    server = serve(answer(body, "Content-Type: image/png"))
    line = refused(at(server), guard_for(server))
    assert ("text" if body else "an empty file") in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "header", ["Content-Encoding: gzip", "Content-Encoding: br", "Transfer-Encoding: gzip, chunked"]
)
def test_a_gzip_bomb_is_not_unpacked(serve: Serve, header: str) -> None:
    server = serve(answer(gzip.compress(b"\0" * 10_000_000), header))
    assert "a compressed answer" in refused(at(server), guard_for(server))


def test_a_gzip_bomb_in_disguise_is_no_picture(serve: Serve) -> None:
    server = serve(answer(gzip.compress(b"\0" * 10_000_000), "Content-Type: image/png"))
    assert "bytes of another kind" in refused(at(server), guard_for(server))


@pytest.mark.parametrize(
    "status", ["404 Not Found", "206 Partial", "204 No Content", "304 Not Modified", "500 <script>"]
)
def test_other_answers_are_named_by_their_number(serve: Serve, status: str) -> None:
    server = serve(answer(RED_PNG, status=status))
    line = refused(at(server), guard_for(server))
    assert f"answered {status[:3]}" in line
    assert "script" not in line


GARBAGE = [
    b"",
    b"\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n",
    b"\x16\x03\x01" * 9,
    bytes(range(256)),
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 200 " + b"x" * 70_000,
    b"HTTP/1.1 200\r\n" + b"A: b\r\n" * 200,
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    b"HTTP/1.1 302\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused(serve: Serve, garbage: bytes) -> None:
    server = serve(lambda wire, _: wire.sendall(garbage))
    assert refused(at(server), guard_for(server))
    assert refused(at(server).replace("http", "https"), guard_for(server))


def test_a_password_is_refused_and_not_repeated(serve: Serve) -> None:
    server = serve(answer(RED_PNG))
    line = refused(f"http://me:hunter2@pictures.test:{server.port}/a.png?token=tok#frag", guard_for(server))
    assert "a user's name or password" in line
    assert not [word for word in ("hunter2", "tok", "frag") if word in line]
    assert not server.requests


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For pictures.test, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures.test"
    )
    command += " -addext subjectAltName=DNS:pictures.test -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_is_checked_against_the_name(serve: Serve, certificate: tuple[Path, Path]) -> None:
    """The connection goes to an address, and still the name is sent and the certificate must be the name's."""
    context, sent = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[str | None]()
    context.load_cert_chain(*certificate)
    context.sni_callback = lambda _, name, __: sent.append(name)
    server = serve(answer(RED_PNG), tls=context)
    trusted = ssl.create_default_context(cafile=certificate[0])
    others = Guard(private_hosts=frozenset({f"other.test:{server.port}", f"127.0.0.1:{server.port}"}), tls=trusted)
    others = Guard(private_hosts=others.private_hosts, tls=trusted, resolve=names(other=["127.0.0.1"]))
    assert picture(at(server).replace("http", "https"), guard_for(server, tls=trusted)).size == (8, 8)
    assert sent == ["pictures.test"]
    for guard, host in ((guard_for(server), "pictures.test"), (others, "other.test"), (others, "127.0.0.1")):
        assert "certificate" in refused(f"https://{host}:{server.port}/a.png", guard)
    assert len(server.requests) == 1


# --- data: and bytes ------------------------------------------------------------------------------------------------


def test_data_and_bytes() -> None:
    assert picture(RED_PNG, Guard()).getpixel((0, 0)) == RED
    assert picture(data_address(RED_PNG), Guard()).getpixel((0, 0)) == RED
    assert picture(data_address(RED_PNG, "").replace("data", "DATA"), Guard()).getpixel((0, 0)) == RED


@pytest.mark.parametrize("change", ["{}=", "={}", "{}!", "{}é", "{}%3D", "{}A", "-_+/{}", "{}\ud800", "{}\0"])
def test_base64_is_strict(change: str) -> None:
    text = base64.b64encode(RED_PNG + b"\0" * (-len(RED_PNG) % 3)).decode()
    assert "base64 that is not well formed" in refused("data:image/png;base64," + change.format(text), Guard())


def test_base64_in_place_of_an_address_is_named() -> None:
    text = base64.b64encode(RED_PNG).decode()
    for guard in (Guard(), Guard(root=Path("."))):
        assert "expected data:image/png;base64, before it" in refused(text, guard)


@pytest.mark.parametrize("padding", ["", "=", "=="])
def test_padding_may_be_incomplete(padding: str) -> None:
    text = base64.b64encode(RED_PNG + b"\0" * ((1 - len(RED_PNG)) % 3)).decode()
    assert text.endswith("==")
    assert picture("data:image/png;base64," + text.rstrip("=") + padding, Guard()).getpixel((0, 0)) == RED


def _lines(text: str, end: str) -> str:
    return end.join(text[k : k + 76] for k in range(0, len(text), 76))


@pytest.mark.parametrize("more", [0, 1, 2])
@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.encodebytes(data).decode(),
        lambda data: _lines(base64.b64encode(data).decode(), "\r\n"),
        lambda data: _lines(base64.b64encode(data).decode(), " "),
        lambda data: base64.b64encode(data).decode() + "\n",
        lambda data: " \n" + base64.b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: base64.b64encode(data).decode().rstrip("="),
        lambda data: base64.b64encode(data).decode().rstrip("=") + "\n",
        lambda data: quote(base64.b64encode(data).decode()),
        lambda data: base64.encodebytes(data).decode().replace("\n", "%0A"),
    ],
)
def test_every_form_of_base64_is_read(write: Callable[[bytes], str], more: int) -> None:
    """Line breaks, a trailing newline, the alphabet for URLs, no padding, escaped for a URL."""
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 90).save(buffer, "PNG")
    data = buffer.getvalue()
    assert picture("data:image/png;base64," + write(data + bytes(more)), Guard()).size == (16, 16)


@pytest.mark.parametrize(
    "address", ["data:", "data:,hello", "data:image/png,abc", "data:image/png;base64", "data:;base64x,"]
)
def test_a_data_address_must_be_base64(address: str) -> None:
    assert "without base64" in refused(address, Guard())


def test_the_cap_is_applied_before_base64_is_decoded() -> None:
    guard = Guard(max_bytes=len(RED_PNG))
    assert picture(data_address(RED_PNG), guard).size == (8, 8)
    assert "characters of base64" in refused("data:image/png;base64," + "!" * 10_000, guard)  # not even well formed
    for more in range(1, 4):
        assert f"expected at most {len(RED_PNG)} bytes" in refused(data_address(RED_PNG + bytes(more)), guard)
    assert "bytes; expected at most" in refused(RED_PNG + b"\0", guard)


def test_what_is_no_reference_is_named() -> None:
    assert "found a list" in refused([RED_PNG], Guard())  # type: ignore[arg-type]
    assert "found a NoneType" in refused(None, Guard())  # type: ignore[arg-type]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a picture, beside one with a secret."""
    for name, data in (("root/in/red.png", RED_PNG), ("root/a b%.png", RED_PNG), ("beside/blue.png", BLUE_PNG)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "root2").symlink_to("beside")
    return tmp_path / "root"


def test_files_below_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "link.png").symlink_to("in/red.png")
    (root / "folder").symlink_to(root / "in")
    whole = root / "in/red.png"
    references: list[Reference] = [
        whole,
        str(whole),
        "in/red.png",
        "in/../in/red.png",
        f"file://{whole}",
        f"FILE://localhost{whole}",
    ]
    references += [f"file:{whole}", root / "link.png", "folder/red.png", f"file://{root}/a%20b%25.png", "a b%.png"]
    for reference in references:
        assert picture(reference, Guard(root=root)).getpixel((0, 0)) == RED
    monkeypatch.chdir(root.parent)
    assert picture("in/red.png", Guard(root=Path("root"))).size == (8, 8)


def test_files_are_off_by_default(root: Path) -> None:
    for reference in (root / "in/red.png", str(root / "in/red.png"), f"file://{root}/in/red.png", "nowhere.png"):
        assert "files are not read here" in refused(reference, Guard())


def test_nothing_outside_the_root_is_read(root: Path) -> None:
    (root / "out.png").symlink_to("../beside/blue.png")
    (root / "outside").symlink_to(root.parent / "beside")
    (root / "twice").symlink_to("outside")
    secret = root.parent / "beside/blue.png"
    references: list[Reference] = [
        secret,
        f"file://{secret}",
        "../beside/blue.png",
        "out.png",
        "outside/blue.png",
        "twice/blue.png",
    ]
    references += [
        "in/../../beside/blue.png",
        root.parent / "root2/blue.png",
        "file:///etc/passwd",
        "/proc/self/environ",
    ]
    references += [f"file://{root}/../beside/blue.png", f"file://{root}/%2e%2e/beside/blue.png", "../nowhere.png", ".."]
    for reference in references:
        assert "outside the folder" in refused(reference, Guard(root=root))


def test_a_link_put_there_after_the_check_is_not_followed(root: Path) -> None:
    from xreasoner.media import _open_below

    (root / "outside").symlink_to("../beside")
    (root / "out.png").symlink_to("../beside/blue.png")
    for parts in (("outside", "blue.png"), ("out.png",)):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            _open_below(str(root), parts)


def test_only_regular_files(root: Path) -> None:
    os.mkfifo(root / "fifo.png")
    before = len(os.listdir("/dev/fd"))
    with socket.socket(socket.AF_UNIX) as wire:
        here = os.getcwd()
        os.chdir(root)  # a socket's path must be short
        wire.bind("socket.png")
        os.chdir(here)
        for reference in ("fifo.png", "in", "", ".", "socket.png"):
            assert "; expected a file" in refused(reference, Guard(root=root))
    for device in ("/dev/zero", "/dev/urandom", "/dev/null"):
        assert "device" in refused(device, Guard(root=Path("/")))
    assert len(os.listdir("/dev/fd")) == before  # each was closed again


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("nowhere.png", "No such file"),
        ("in/red.png/x", "Not a directory"),
        ("a" * 5000, "File name too long"),
        ("loop.png", "levels of symbolic links"),
        ("a\0b.png", "no file has such a name"),
        ("\ud800.png", "no file has such a name"),
        ("file:///a%00b", "no file has such a name"),
        ("file://elsewhere/a.png", "of another kind"),
        ("file:a.png", "of another kind"),
        ("file:////etc/passwd", "of another kind"),
        ("file://[/a.png", "of another kind"),
        ("file:///a.png?b", "of another kind"),
        ("a\nb\x1b[31m.png", "No such file"),
    ],
)
def test_files_that_are_not_there(root: Path, reference: str, found: str) -> None:
    (root / "loop.png").symlink_to("loop.png")
    anywhere = Path("/") if reference.startswith("file") else root
    line = refused(reference, Guard(root=anywhere))
    assert found in line
    assert len(line) < 400


def test_a_large_file_is_not_read(root: Path) -> None:
    with (root / "large.png").open("wb") as file:
        file.truncate(10**12)  # sparse
    assert "1,000,000,000,000 bytes" in refused("large.png", Guard(root=root))
    if Path("/proc/kallsyms").exists():  # a regular file that says its size is 0
        assert "expected at most 10 bytes" in refused("/proc/kallsyms", Guard(root=Path("/proc"), max_bytes=10))


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_the_five_formats_first_frame_only(kind: str) -> None:
    more = {"save_all": True, "append_images": [plain(BLUE)] * 3} if kind in ("GIF", "WEBP", "PNG") else {}
    found = picture(saved(plain(), kind, **more), Guard())
    red, green, blue = found.getpixel((0, 0))  # type: ignore[misc]
    assert (found.mode, found.size) == ("RGB", (8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_a_camera_file_with_two_pictures_is_read_as_its_first() -> None:
    red, _, blue = picture(saved(plain(), "MPO", save_all=True, append_images=[plain(BLUE)]), Guard()).getpixel((0, 0))  # type: ignore[misc]
    assert red > 240
    assert blue < 15


def test_a_pil_image_is_copied_and_measured() -> None:
    given = plain()
    found = picture(given, Guard())
    assert found is not given
    found.putpixel((0, 0), BLUE)
    assert given.getpixel((0, 0)) == RED
    assert "10 × 10 is 100 pixels; expected at most 99" in refused(plain(size=(10, 10)), Guard(max_pixels=99))
    assert "damaged" in refused(Image.open(io.BytesIO(saved(Image.effect_noise((64, 64), 50))[:-200])), Guard())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    """Stored as each orientation says, an upright picture comes out upright: red in the upper left, 16 wide."""
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # transpose's own numbers, from upright to stored
    upright = plain(size=(16, 32))
    upright.paste(BLUE, (8, 0, 16, 32))
    upright.paste((0, 255, 0), (0, 16, 16, 32))
    turn = turns[orientation - 1]
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = picture(
        saved(stored, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})), Guard()
    )
    assert found.size == (16, 32)
    for place, channel in (((3, 7), 0), ((12, 7), 2), ((3, 24), 1), ((12, 24), 1)):
        assert found.getpixel(place)[channel] > 200  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_damaged_exif_block_does_not_spoil_the_picture(exif: bytes) -> None:
    assert picture(saved(plain(), "JPEG", exif=exif), Guard()).size == (8, 8)


def test_what_shines_through_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0] * 256)
    for data in (saved(clear), saved(clear, "WEBP", lossless=True), saved(palette, transparency=0)):
        assert picture(data, Guard()).getpixel((0, 0)) == (255, 255, 255)
    assert picture(saved(palette, "GIF", transparency=0), Guard()).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades() -> None:
    grey = Image.new("I;16", (8, 8))
    for place, value in enumerate((0, 256, 30_000, 65_535)):
        grey.putpixel((place, 0), value)
    found = picture(saved(grey), Guard())
    assert [found.getpixel((place, 0))[0] for place in range(4)] == [0, 1, 117, 255]  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    data = saved(plain((255, 255, 255)).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert picture(data, Guard()).getpixel((4, 4)) == (255, 255, 255)


# --- bombs and caps -------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """One bit a pixel, with the rows already compressed."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 19
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHBB", 0, 0, width, height, 0, 8)
        + b"\0"
    )


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(saved(plain(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("make", [png, webp, bmp, gif, jpeg])
@pytest.mark.parametrize("side", [6000, 9600, 16_000])
def test_a_decompression_bomb_is_not_decoded(make: Callable[[int, int], bytes], side: int) -> None:
    """Beyond our cap alone, beyond where Pillow warns, and beyond where Pillow refuses."""
    start = time.monotonic()
    line = refused(make(side, side), Guard())
    assert f"{side} × {side} is {side**2:,} pixels" in line or "more pixels than Pillow opens" in line
    assert time.monotonic() - start < 0.5


def test_a_real_bomb() -> None:
    """12 kB that would fill 400 MB."""
    squeeze = zlib.compressobj(1)
    rows = b"".join(squeeze.compress(bytes(1251)) for _ in range(10_000)) + squeeze.flush()
    line = refused(png(10_000, 10_000, rows), Guard())
    assert "pixels" in line


def test_bombs_in_a_png_text_or_profile() -> None:
    """The image is sound and is read; what is packed beside it is not unpacked."""
    squeezed = zlib.compress(b"\0" * 100_000_000, 1)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        data = RED_PNG[:33] + chunk(kind, head + squeezed) + RED_PNG[33:]
        tracemalloc.start()
        assert picture(data, Guard()).getpixel((0, 0)) == RED
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


def test_a_jpeg_of_too_many_scans() -> None:
    """Ten bytes more, one more pass over all pixels: a small file that decodes for minutes."""
    data = saved(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    assert picture(data, Guard()).size == (64, 64)
    last = data.rindex(b"\xff\xda")
    assert "scans" in refused(data[:-2] + data[last:-2] * MAX_SCANS + b"\xff\xd9", Guard())


def test_the_pixel_cap_is_exact() -> None:
    guard = Guard(max_pixels=64)
    assert picture(RED_PNG, guard).size == (8, 8)
    assert "9 × 8 is 72 pixels; expected at most 64" in refused(saved(plain(size=(9, 8))), guard)


def test_the_caps_of_one_question() -> None:
    assert [image.getpixel((0, 0)) for image in pictures([RED_PNG, plain(BLUE)], Guard())] == [RED, BLUE]
    with pytest.raises(MediaError, match="3 images; expected at most 2"):
        pictures([RED_PNG, "nowhere.png", b"never read"], Guard(max_images=2))
    with pytest.raises(MediaError, match=r"image 3 of 3 \(bytes\): 8 × 8 is 64 pixels; expected at most 2"):
        pictures([RED_PNG] * 3, Guard(max_total_pixels=130))


def test_the_pictures_of_one_question_share_a_deadline(serve: Serve) -> None:
    def reply(wire: socket.socket, path: str) -> None:
        time.sleep(0.2)
        answer(RED_PNG)(wire, path)

    server = serve(reply)
    with pytest.raises(MediaError, match=r"image 2 of 9 .*not there after 0\.3 s"):
        pictures([at(server)] * 9, guard_for(server, seconds=0.3))


def test_nothing_but_a_media_error_comes_out_of_damaged_pictures() -> None:
    """A thousand pictures with some bytes changed: each is a picture, or refused in our words."""
    rng = Random(0)
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 40, zip=True)
    whole = [saved(image, kind, exif=exif) for kind in ("JPEG", "WEBP")] + [
        saved(image, "PNG", exif=exif, pnginfo=text)
    ]
    whole += [saved(image, "BMP"), saved(image.convert("P"), "GIF"), saved(image, "JPEG", progressive=True)]
    read = 0
    for turn in range(1000):
        data = bytearray(whole[turn % len(whole)])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data)) if turn % 2 else rng.randrange(60)] = rng.randrange(256)
        with contextlib.suppress(MediaError):
            read += picture(bytes(data), Guard(max_pixels=100_000)).mode == "RGB"
    assert 100 < read < 900


# --- the guard itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["https://example.org", "Example.org", "example.org/", "example.org:443", "*.org", "a b", ""]
)
def test_a_host_that_would_never_match_is_refused(host: str) -> None:
    for lists in ({"hosts": frozenset({host})}, {"private_hosts": frozenset({host})}):
        with pytest.raises(UserError, match=r"expected a name as in example\.org"):
            Guard(**lists)  # type: ignore[arg-type]


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Guard(root=tmp_path / "nowhere")


def test_private_hosts_are_named_one_by_one() -> None:
    with pytest.raises(UserError, match="the host"):
        Guard(private_hosts=frozenset({"*"}))


@pytest.mark.parametrize(
    "cap", ["max_images", "max_bytes", "max_pixels", "max_total_pixels", "seconds", "connect_seconds"]
)
def test_a_cap_of_nothing_is_refused(cap: str) -> None:
    with pytest.raises(UserError, match=f"{cap} is 0"):
        Guard(**{cap: 0})  # type: ignore[arg-type]


def test_a_long_or_hostile_reference_makes_one_short_line() -> None:
    for reference in (
        "http://x.test/" + "a" * 9000,
        "http://x.test/\n\x1b[31m",
        "ftp://" + "é" * 5000,
        "data:" + "," * 9000,
    ):
        assert len(refused(reference, Guard(hosts=frozenset({"*"})))) < 400
