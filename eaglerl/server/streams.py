"""Transport of events from the engine's thread to a client, while the client is connected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_E = TypeVar("_E")
_R = TypeVar("_R")


class Channel(Generic[_E]):
    """A queue into which threads put events and from which the event loop takes them."""

    def __init__(self) -> None:
        """Set up for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_E] = asyncio.Queue()

    def put(self, event: _E) -> None:
        """Add an event, from any thread."""
        # After the loop has ended there is nobody left to receive the event.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self) -> _E:
        """Return the next event, waiting for it."""
        return await self._events.get()


def server_sent_event(content: Any, name: str | None = None) -> str:
    """Format one event of ``text/event-stream``."""
    data = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; `on_close` is called when they end or the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], on_close: Callable[[], None]) -> None:
        """Set up.

        Args:
            events: events formatted by `server_sent_event`.
            on_close: called exactly once, at the end.
        """
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._until_the_last(events), headers=headers)
        self._on_close: Callable[[], None] | None = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await while_connected(self.stream_response(send), receive)
        finally:
            self._close()

    async def _until_the_last(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            yield event
        # Closed before the last chunk, so that a client that has read the whole response finds the
        # session closed.
        self._close()

    def _close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


async def while_connected(work: Awaitable[_R], receive: Receive) -> _R | None:
    """Await something while the client is connected.

    Args:
        work: what to await; cancelled when the client disconnects.
        receive: receiver of the request, whose body has been read.

    Returns:
        The result; None if the client has disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
