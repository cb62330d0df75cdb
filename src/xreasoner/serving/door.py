"""Who may come in: hosts, origins and the API key, looked at before anything of a request is read."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xreasoner.serving.metrics import Metrics

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health", "/sign-in.css")
COOKIE = "xreasoner"
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
ROUTES = ("/v1/chat/completions", "/v1/decisions", "/v1/models", "/openapi.json", "/metrics", "/health", "/")


CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
"""HTTP status → the code of OpenAI's that clients look for; others have none, or what the error itself says."""


def error(
    status: int,
    message: str,
    kind: str = "",
    param: str | None = None,
    retry: int | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape.

    Args:
        status: HTTP status.
        message: what was found, what was expected, how to fix it.
        kind: OpenAI's `type`; by default of the status.
        param: the field of the body that is wrong.
        retry: seconds after which the client may try again.
        code: OpenAI's code, a text such as `model_not_found`; by default of the status, or null.
    """
    if not kind:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}
    return JSONResponse(body, status, headers=None if retry is None else {"retry-after": str(retry)})


class Door:
    """ASGI middleware around the whole service.

    hosts: what the Host header may name, without the port (a page elsewhere must not reach a service on this machine
    through a name of its own); None: anything. key: asked for everywhere but at /health; None: nobody is asked.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None, key: str | None, metrics: Metrics) -> None:
        self.app, self.key, self.metrics = app, key, metrics
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.token = hmac.new(key.encode(), b"the page's cookie", hashlib.sha256).hexdigest() if key else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = {"code": 0}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                status["code"] = message["status"]
                extra = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            refusal = await self._refusal(scope, receive)
            await (refusal or self.app)(scope, receive, told)
        finally:
            route = "/v1/models" if scope["path"].startswith("/v1/models/") else scope["path"]
            route = route if route in ROUTES else "other"
            self.metrics.requests.labels(route, str(status["code"] or 499)).inc()

    async def _refusal(self, scope: Scope, receive: Receive) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.hosts is not None and _bare(host) not in self.hosts:
            return error(403, f"the host {host[:100]!r} is not served here; expected {', '.join(sorted(self.hosts))}")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            return error(403, "requests from other sites' pages are refused")
        if self.key is None or scope["path"] in OPEN:
            return None
        if scope["path"] == "/sign-in" and scope["method"] == "POST":
            return await self._sign_in(headers, receive)
        if self._known(headers):
            return None
        if scope["path"] == "/" and scope["method"] == "GET":
            return _sign_in_page(401)
        refused = error(401, "the API key is missing or wrong; expected the header Authorization: Bearer KEY")
        refused.headers["www-authenticate"] = "Bearer"
        return refused

    def _known(self, headers: Headers) -> bool:
        assert self.key is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode(), self.key.encode())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.token.encode())

    async def _sign_in(self, headers: Headers, receive: Receive) -> Response:
        """The page's form: the right key becomes a cookie that no script reads and no other site sends."""
        assert self.key is not None
        body, end = b"", time.monotonic() + 10
        while len(body) <= 4096 and time.monotonic() < end:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        given = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]
        if len(body) > 4096 or not hmac.compare_digest(given.encode(), self.key.encode()):
            return _sign_in_page(401, "Wrong API key. Check it and try again.")
        inside = RedirectResponse("/", 303)
        inside.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 86400)
        return inside


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # brackets that hold no address
        return None


def _bare(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _sign_in_page(status: int, said: str = "") -> HTMLResponse:
    return HTMLResponse(page("sign-in.html").replace("<!-- said -->", said), status)


def page(name: str) -> str:
    """A file of the page."""
    return (files("xreasoner.serving") / "page" / name).read_text(encoding="utf-8")
