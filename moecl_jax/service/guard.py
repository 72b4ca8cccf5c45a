"""What is checked of a request before its body is parsed: host, key, size and speed."""

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moecl_jax.service.keys import Keys, unauthorized
from moecl_jax.service.limits import Limits, Refused
from moecl_jax.service.metrics import Metrics

_MOST_DISCARDED = 16  # times the largest body


class Guard:
    """ASGI middleware that refuses requests early, reads bodies whole, and counts answers.

    A service without keys is there for its own machine alone. It refuses what a page of another
    site makes a browser send: requests that name another host (DNS rebinding), and requests other
    than GET, such as a POST without a body, of which the browser says that they are of that site.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        limits: Limits,
        metrics: Metrics,
        draining: Callable[[], bool],
    ) -> None:
        """Guards an application.

        Args:
          app: the application.
          keys: keys that paths below /v1/ need.
          limits: sizes and times.
          metrics: what is counted.
          draining: says whether connections are to be closed, since the service stops.
        """
        self.app, self.keys, self.limits, self.draining = app, keys, limits, draining
        self.metrics = metrics
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        self._open += 1
        try:
            body = await self._body(scope, Headers(scope=scope), receive)
        except Refused as refused:
            await _refuse(counted, refused)
        except _Gone:
            return
        else:
            await self.app(scope, _replayed(body, receive), counted)
        finally:
            self._open -= 1

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        """The request's body.

        Raises:
          Refused: the request is not let in.
          _Gone: the client has gone.
        """
        if not self.keys:
            _refuse_other_sites(scope["method"], headers)
        most = 0  # elsewhere nothing takes a body, and no key is asked for
        if scope["path"].startswith("/v1/"):
            most = self.limits.body_bytes
            if self.keys.holder_of(headers.get("authorization")) is None:
                raise Unauthorized
            if self._open > self.limits.requests:
                raise Refused(503, f"{self._open - 1} requests are open; try again later", 1)
        more = "; send fewer texts at a time" if most else ""
        too_long = Refused(413, f"the body has more than {most} bytes{more}")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most and "expect" in headers:
            raise too_long  # the client waits for a word before it sends the body
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await _read(receive, most)
        except TimeoutError as error:
            seconds = self.limits.body_seconds
            raise Refused(408, f"the body did not arrive within {seconds:g} s") from error
        if body is None:
            raise too_long
        return body

    def _counted(self, scope: Scope, send: Send) -> Send:
        """Sends on, counts, and asks to close the connection where the service stops."""
        started = time.monotonic()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self.metrics.requests.labels(route, message["status"]).inc()
                self.metrics.request_seconds.labels(route).observe(time.monotonic() - started)
                if self.draining():
                    closing = (b"connection", b"close")
                    message = {**message, "headers": [*message["headers"], closing]}
            await send(message)

        return send_on


class Unauthorized(Refused):
    """A request without a valid key."""

    def __init__(self) -> None:
        """Says what `keys.require` says."""
        self._error = unauthorized()
        super().__init__(self._error.status_code, self._error.detail)

    @property
    def headers(self) -> dict[str, str]:
        """Names the scheme of authentication (RFC 9110, 11.6.1)."""
        return dict(self._error.headers or {})


class _Gone(Exception):
    """The client closed the connection before its request was complete."""


def _refuse_other_sites(method: str, headers: Headers) -> None:
    """Refuses a request that a page of another site may have made."""
    if not _is_local(_host(headers)):
        raise Refused(421, "a service without keys is reached as localhost alone")
    if method in ("GET", "HEAD"):
        return  # changes nothing, and its answer cannot be read there
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:  # not a browser, or an old one
        host = headers.get("host", "").lower()
        own = origin is None or origin.partition("://")[2].lower() == host
    if not own:
        raise Refused(403, "a service without keys does not answer pages of other sites")


def _is_local(host: str) -> bool:
    """Whether it is localhost, or an address of this machine's own network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(headers: Headers) -> str:
    """The host without its port."""
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


async def _read(receive: Receive, most: int) -> bytes | None:
    """A body, or None if it has more than `most` bytes.

    A longer one is read all the same, up to a limit, and thrown away: a client that is still
    sending would not see an answer.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        if not message.get("more_body", False) or size > _MOST_DISCARDED * most:
            return b"".join(parts) if size <= most else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, and then what follows."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, refused: Refused) -> None:
    """Answers with a refusal, and closes the connection, of which something may be unread."""
    body = json.dumps({"detail": refused.detail}).encode()
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **refused.headers,
    }
    raw = [(name.lower().encode(), str(value).encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
