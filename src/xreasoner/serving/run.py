"""`xreasoner serve`: the service on a port."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn

from xreasoner.errors import UserError, XReasonerError
from xreasoner.media import Guard
from xreasoner.reasoner import Reasoner
from xreasoner.serving.app import create_app
from xreasoner.serving.desk import Desk, Limits
from xreasoner.serving.door import LOOPBACK
from xreasoner.serving.metrics import Metrics


def serve(
    opened: Callable[[], Reasoner],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    names: Sequence[str] = (),
    guard: Guard | None = None,
    limits: Limits | None = None,
    grace: float = 60.0,
    prompt: str = "default",
    lenient: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C, which let what runs end, for at most `grace` seconds.

    opened: opens the model; called in a thread while /health says 503. names: further names that the Host header may
    have. prompt, lenient: see `app.create_app`. Raises `UserError` for an address beyond this machine without a key,
    and what `opened` raises.
    """
    local = is_loopback(host)
    if not local and not key:
        raise UserError(
            f"--host {host} is reached from other machines, and there is no key; give --key (or XREASONER_API_KEY)"
        )
    hosts = None if not local and not names else {*LOOPBACK, *names, host.lower()}
    desk = Desk(opened, limits or Limits(), Metrics())
    app = create_app(desk, guard or Guard(), hosts, key, prompt=prompt, lenient=lenient)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace),
        timeout_keep_alive=15,
        backlog=1024,
    )
    listening = _listen(host, port)
    server = uvicorn.Server(config)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def on_loaded() -> None:
        if desk.error is not None:
            server.should_exit = True
        else:
            say(f"serving {desk.reasoner.model} at {where} (the page), {where}/v1 (OpenAI's interface)")

    desk.on_loaded = on_loaded
    say(f"loading; {where}/health says when it is ready")
    with suppress(KeyboardInterrupt):  # the signal that ended it, raised once more when all is done
        server.run(sockets=[listening])
    if desk.error is not None:
        raise desk.error


def _listen(host: str, port: int) -> socket.socket:
    """Raises `XReasonerError` where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise XReasonerError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from None
    return found


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
