"""What a request may cost: bytes, seconds, and who may send one. ASGI middleware."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

COOKIE = "kclf_token"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Args:
        num_bytes: of its body.
        seconds: in which the body has to arrive.
        photos: in it.
        pixels: of a photo, after the scaled decode that JPEGs have.
    """

    num_bytes: int = 32 * 2**20
    seconds: float = 30.0
    photos: int = 64
    pixels: int = 50_000_000


class Refused(Exception):
    """A request that is not served: the status and the words of the answer."""


class Guard:
    """Limits the size and the time of bodies, asks for the token, and sets security headers.

    Args:
        app: what it stands before.
        limits: of a request.
        token: what requests have to bring as `Authorization: Bearer TOKEN`; None asks for nothing. A browser
            brings it once, as `/?token=TOKEN`, and gets a cookie.
    """

    def __init__(self, app: App, limits: Limits, token: str | None = None) -> None:
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        cookie = self._cookie(scope)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = [(b"set-cookie", cookie)] if cookie else []
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS, *more]
            await send(message)

        try:
            if self.token is not None and cookie is None and not self._knows_token(scope, headers):
                raise Refused(401, "Expected the header Authorization: Bearer TOKEN")
            length = headers.get(b"content-length", b"0")
            self._require_few_bytes(float(length) if length.isdigit() else math.inf)  # of any length
            await self.app(scope, self._bounded(receive), watched)
        except Refused as refused:
            if not started:
                await _answer(send, *refused.args)

    def _require_few_bytes(self, num_bytes: float) -> None:
        if num_bytes > self.limits.num_bytes:
            raise Refused(413, f"Expected at most {self.limits.num_bytes:,} bytes")

    def _bounded(self, receive: Receive) -> Receive:
        loop = asyncio.get_running_loop()
        until, num_bytes, done = loop.time() + self.limits.seconds, 0, False

        async def bounded() -> Message:
            nonlocal num_bytes, done
            if done:  # waiting for the client to go away is no slowness of the body
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - loop.time()))
            except TimeoutError:
                seconds = f"{self.limits.seconds:g} seconds"
                raise Refused(408, f"Expected the whole request within {seconds}") from None
            num_bytes += len(message.get("body", b""))
            self._require_few_bytes(num_bytes)
            done = not message.get("more_body", False)
            return message

        return bounded

    def _knows_token(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        kept = HTTPConnection(scope).cookies.get(COOKIE, "").encode()
        return self._is_token(given if scheme.lower() == b"bearer" else kept)

    def _cookie(self, scope: MutableMapping[str, Any]) -> bytes | None:
        """The cookie for a browser that opens the page with the token in its address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self.token is None or scope["path"] != "/" or not self._is_token(given.encode()):
            return None
        return f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/".encode()

    def _is_token(self, given: bytes) -> bool:
        return hmac.compare_digest(given, (self.token or "").encode()) and bool(given)


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *SECURITY_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
