"""Middleware that checks every request: its host, its key and the size of its body."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eaglerl.server.errors import ApiError

# Bodies up to this size are always read; there are at most as many as connections.
_SMALL_BYTES = 1 << 16
# Total size of all larger bodies that are being read.
_MOST_BYTES = 32 << 20
_PROTECTED = ("/v1/", "/live/")


class RequestChecks:
    """Middleware that refuses requests before their body is parsed.

    The host is checked against DNS rebinding: a page of another site must not reach a server on the
    visitor's own machine under a name that the site's owner points there.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        api_key: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        """Set up.

        Args:
            app: the application behind it.
            max_body_bytes: largest body of a request.
            api_key: key that ``Authorization: Bearer`` must carry; None for a server without a
                key. The page itself needs no key, but its requests do.
            hosts: allowed values of the header ``Host``; None for any.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._key = None if api_key is None else api_key.encode()
        self._most_bytes = max(_MOST_BYTES, 2 * max_body_bytes)
        self._bytes = 0
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_key(headers, scope["path"])
            body = await self._read(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = headers.get("host", "")
        name = host[1:].split("]")[0] if host.startswith("[") else host.split(":")[0]
        if name.lower() not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            raise ApiError(403, f"the header Host must name one of: {allowed}", code="wrong_host")

    def _check_key(self, headers: Headers, path: str) -> None:
        if self._key is None or not path.startswith(_PROTECTED):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Headers are decoded as Latin-1, so encoding them restores the bytes that were sent.
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                401,
                "the header Authorization must carry the server's key: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Read the whole body; return None if the client has disconnected."""
        told = headers.get("content-length", "0")
        if told.isdecimal() and int(told) > self._max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._bytes += len(parts[-1])
                if size > self._max_body_bytes:
                    raise self._too_large()
                if size > _SMALL_BYTES and self._bytes > self._most_bytes:
                    raise self._too_many()
                more = message.get("more_body", False)
        finally:
            self._bytes -= size
        return b"".join(parts)

    def _too_many(self) -> ApiError:
        return ApiError(
            503,
            "too many large requests are being read; try again later",
            code="server_busy",
            headers={"Connection": "close", "Retry-After": "1"},
        )

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body may have at most {self._max_body_bytes} bytes",
            code="body_too_large",
            # The rest of the body is not read.
            headers={"Connection": "close"},
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receiver that gives the body that was read, then what follows it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
