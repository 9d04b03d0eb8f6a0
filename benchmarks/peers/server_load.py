"""Load on a server: streamed completions over HTTP, by a number of clients at once.

The client shares the processor with the server, so it only notes when bytes came, and reads them
afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_READ_BYTES = 1 << 16
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Streamed:
    """A streamed answer.

    Attributes:
        text: the whole text.
        tokens: tokens of the answer, as the server counts them.
        sent: seconds from the beginning of the load to the request.
        arrivals: seconds from there to every piece of text.
    """

    text: str
    tokens: int
    sent: float
    arrivals: tuple[float, ...]


def run_load(
    port: int,
    bodies: Mapping[str, Mapping[str, Any]],
    clients: int,
    *,
    timeout: float,
) -> tuple[dict[str, Streamed], float]:
    """Send requests to ``/v1/completions``; every client sends the next as soon as one has ended.

    Args:
        port: of the server on this machine.
        bodies: JSON bodies of the requests, by a name.
        clients: most requests at once.
        timeout: seconds after which all of them must have ended.

    Returns:
        The answers by name, and the seconds from the first request to the last answer's end.

    Raises:
        RuntimeError: the server answered something else, or did not answer in time.
    """
    try:
        return asyncio.run(asyncio.wait_for(_run(port, bodies, clients), timeout))
    except TimeoutError:
        raise RuntimeError(f"the answers took more than {timeout:.0f} s") from None


async def _run(
    port: int, bodies: Mapping[str, Mapping[str, Any]], clients: int
) -> tuple[dict[str, Streamed], float]:
    requests = {name: _request(body) for name, body in bodies.items()}
    waiting = iter(requests.items())
    received: dict[str, tuple[float, list[tuple[float, bytes]]]] = {}
    began = time.perf_counter()

    async def client() -> None:
        for name, request in waiting:
            sent = time.perf_counter()
            received[name] = sent, await _exchange(port, request)

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    answers = {name: read_stream(pieces, sent, began) for name, (sent, pieces) in received.items()}
    return {name: answers[name] for name in bodies}, seconds


def _request(body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


async def _exchange(port: int, request: bytes) -> list[tuple[float, bytes]]:
    """Send a request; return what came until the server closed, with the times."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    pieces = []
    try:
        writer.write(request)
        while data := await reader.read(_READ_BYTES):
            pieces.append((time.perf_counter(), data))
    finally:
        writer.close()
    return pieces


def read_stream(pieces: Sequence[tuple[float, bytes]], sent: float, began: float) -> Streamed:
    """Read a response of server-sent events.

    Args:
        pieces: what came, each part with its time.
        sent: time of the request.
        began: time of the load's beginning.

    Raises:
        RuntimeError: it is no such response, lacks the number of tokens or any text, or says that
            the server did not read the whole prompt.
    """
    text, tokens, ended = [], None, False
    arrivals = []
    for came, event in _events(pieces):
        if event == _DONE:
            ended = True
            continue
        content = json.loads(event)
        if "choices" not in content:
            raise RuntimeError(f"the server answered {event[:500]!r}")
        part = "".join(choice.get("text") or "" for choice in content["choices"])
        if part:
            text.append(part)
            arrivals.append(came - sent)
        if content.get("usage"):
            tokens = content["usage"]["completion_tokens"]
            _check_read(content["usage"])
    if not ended or tokens is None or not arrivals:
        shown = b"".join(data for _, data in pieces)[-500:]
        raise RuntimeError(f"a stream must have text, usage and an end, got ...{shown!r}")
    return Streamed("".join(text), tokens, sent - began, tuple(arrivals))


def _check_read(usage: Mapping[str, Any]) -> None:
    """Check that no part of the prompt came from a cache, if the server tells."""
    kept = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if kept:
        raise RuntimeError(
            f"the server read only {usage.get('prompt_tokens', 0) - kept} of the prompt's "
            f"{usage.get('prompt_tokens')} tokens: turn its cache of prompts off"
        )


def _events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the data of every event, with the time at which its end came."""
    buffer = b""
    chunked: bool | None = None
    body = b""
    for came, data in pieces:
        buffer += data
        if chunked is None:
            head, blank, rest = buffer.partition(b"\r\n\r\n")
            if not blank:
                continue
            if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
                everything = b"".join(part for _, part in pieces)
                raise RuntimeError(f"the server answered {everything[:1000]!r}")
            chunked = b"transfer-encoding: chunked" in head.lower()
            buffer = rest
        if chunked:
            whole, buffer = _take_chunks(buffer)
            body += whole
        else:
            body, buffer = body + buffer, b""
        *events, body = body.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield came, line[5:].strip()


def _take_chunks(buffer: bytes) -> tuple[bytes, bytes]:
    """Return the content of the complete chunks of a chunked body, and the rest."""
    content = b""
    while True:
        size, line_end, rest = buffer.partition(b"\r\n")
        if not line_end:
            return content, buffer
        length = int(size.split(b";")[0], 16)
        if len(rest) < length + 2:
            return content, buffer
        content += rest[:length]
        buffer = rest[length + 2 :]
