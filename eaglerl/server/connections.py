"""Limits on the number of connections and on how long each may take."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, fields
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from eaglerl.server.errors import ApiError


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits that uvicorn does not have.

    Attributes:
        connections: most connections at a time. One more replaces the oldest that has not sent a
            whole request; if all are being answered, it is refused with status 503.
        header_seconds: time from the connection, or from the first byte of a request, to the end of
            its headers; then status 408.
        body_seconds: time from the headers to the end of the body; then status 408.
        stalled_seconds: time that a client may leave an answer unread before it is disconnected.
        idle_seconds: time between an answer and the next request.
    """

    connections: int = 256
    header_seconds: float = 15.0
    body_seconds: float = 60.0
    stalled_seconds: float = 60.0
    idle_seconds: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be positive and finite, got {value}")


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 within `limits`; see `protocol_with`."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    # A connection has one timer, for what it is waiting for now.
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _awaits = ""
    _since = 0.0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self._since = time.monotonic()
        if len(self.connections) > self.limits.connections and not self._make_place():
            self._refused = True
            self._answer(_REFUSAL)
            return
        self._wait_for("headers", self.limits.header_seconds)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers of a closed connection."""
        self._wait_for("", 0.0)
        self._cancel_stalled()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer: the client reads again."""
        self._cancel_stalled()
        super().resume_writing()

    def shutdown(self) -> None:
        """Close the connection, after its answer if one is under way."""
        if self._awaits == "body":
            self._give_up(ApiError(503, "the server is shutting down", code="server_stopping"))
        elif not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not valid HTTP."""
        self._give_up(ApiError(400, "the request is not valid HTTP/1.1", code="invalid_http"))

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    @property
    def _waiting(self) -> bool:
        """Whether no whole request is waiting for its answer."""
        return self._awaits != "" or self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        """Set the timer for what the client has yet to send."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._wait_for("body", self.limits.body_seconds)
        elif state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait_for("headers", self.limits.header_seconds)
        else:
            self._wait_for("", 0.0)

    def _wait_for(self, what: str, seconds: float) -> None:
        if what == self._awaits:
            # More bytes of the same part do not extend the time.
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaits = what
        self._since = time.monotonic()
        self._deadline = self.loop.call_later(seconds, self._too_late) if what else None

    def _too_late(self) -> None:
        message = f"the {self._awaits} of the request did not arrive in time"
        self._give_up(ApiError(408, message, code="request_timeout"))

    def _give_up(self, error: ApiError) -> None:
        """Answer with an error and close the connection."""
        self._wait_for("", 0.0)
        if self.cycle is not None and not self.cycle.response_complete:
            # Wake the handler that waits for the rest of the body.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._answer(error)

    def _answer(self, error: ApiError) -> None:
        body = json.dumps(error.content).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **error.headers,
        }
        response = h11.Response(status_code=error.status, headers=[*headers.items()])
        try:
            events = (response, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        except h11.LocalProtocolError:
            # An answer has already begun and cannot be replaced.
            self.transport.abort()
            return
        self.transport.close()

    def _make_place(self) -> bool:
        """Close the oldest connection without a whole request; return whether there was one."""
        waiting = [
            other
            for other in self.connections
            if other is not self and isinstance(other, LimitedProtocol) and other._waiting
        ]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda other: other._since)
        oldest.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


_REFUSAL = ApiError(
    503,
    "all connections are in use; try again later",
    code="server_busy",
    headers={"Retry-After": "1"},
)


def protocol_with(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Make a protocol class with these limits, for uvicorn's option ``http``."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
