"""The end of a stream of events."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from eaglerl.server.streams import EventStream, server_sent_event

SCOPE = {"type": "http", "asgi": {"spec_version": "2.4"}}


async def _events(*, fail: bool = False) -> AsyncIterator[str]:
    yield server_sent_event({"a": 1}, "first")
    if fail:
        raise OSError("no more")
    yield server_sent_event("done")


async def _never() -> dict:
    await asyncio.Event().wait()
    raise AssertionError


async def _gone() -> dict:
    return {"type": "http.disconnect"}


def _stream(events: AsyncIterator[str], told: list, receive=_never) -> None:
    async def send(message: dict) -> None:
        told.append(message.get("body", message["type"]))

    stream = EventStream(events, on_close=lambda: told.append("closed"))
    asyncio.run(stream(SCOPE, receive, send))


def test_who_has_read_to_the_end_finds_it_closed() -> None:
    told: list = []
    _stream(_events(), told)
    first, done = b'event: first\ndata: {"a":1}\n\n', b"data: done\n\n"
    assert told == ["http.response.start", first, done, "closed", b""]


def test_a_stream_that_fails_is_closed_once() -> None:
    told: list = []
    with pytest.raises(OSError, match="no more"):
        _stream(_events(fail=True), told)
    assert told.count("closed") == 1
    assert told[-1] == "closed"


def test_a_stream_whose_client_has_gone_is_closed_once() -> None:
    async def endless() -> AsyncIterator[str]:
        while True:
            yield server_sent_event("more")
            await asyncio.sleep(0)

    told: list = []
    _stream(endless(), told, _gone)
    assert told.count("closed") == 1
    assert told[-1] == "closed"
