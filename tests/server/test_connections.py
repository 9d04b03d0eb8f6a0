"""Connections that send too little, too slowly, too much, or no HTTP: with real sockets."""

import json
import select
import socket
import time
from contextlib import suppress

import httpx
import psutil
import pytest

from eaglerl.server.connections import ConnectionLimits
from eaglerl.server.middleware import RequestChecks

from .connecting import serving
from .tiny import NAME, PATIENCE, tiny_service, wait_until

BODY = {"model": NAME, "prompt": "a", "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_CONTENT = json.dumps(BODY).encode()
WHOLE = HEAD + f"Content-Length: {len(_CONTENT)}\r\n\r\n".encode() + _CONTENT


@pytest.fixture(scope="module")
def hasty():
    """A server without patience."""
    limits = {"header_seconds": 0.4, "body_seconds": 0.4, "idle_seconds": 0.4}
    with serving(tiny_service(), **limits) as (host, port, _):
        yield host, port


def send(address: tuple[str, int], *parts: bytes, pause: float = 0.0) -> bytes:
    """All that a server says before it closes."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        for part in parts:
            client.sendall(part)
            if select.select([client], [], [], pause)[0] and pause:
                break
        return heard_from(client)


def heard_from(client: socket.socket) -> bytes:
    """All that a server says on a connection before it closes."""
    said = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65536):
            said += piece
    return said


def refusal(said: bytes) -> tuple[int, dict]:
    """Status and error of the first response."""
    head, _, content = said.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower()
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), json.loads(content[:length])["error"]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"POST /v1/comp"],
        [HEAD],
        [bytes([byte]) for byte in HEAD[:20]],
        [HEAD + b"Content-Length: 100\r\n\r\n"],
        [HEAD + b"Content-Length: 100\r\n\r\n" + b'{"model'],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"],
    ],
    ids=["nothing", "half a line", "half the headers", "byte by byte", "no body", "half", "chunk"],
)
def test_who_is_too_slow_is_told_so(hasty, parts: list[bytes]) -> None:
    started = time.monotonic()
    status, error = refusal(send(hasty, *parts, pause=0.05 if len(parts) > 2 else 0.0))
    assert (status, error["code"]) == (408, "request_timeout")
    # Bytes that trickle in do not prolong it.
    assert 0.3 < time.monotonic() - started < 20


def test_a_second_request_has_to_come_in_time_as_well(hasty) -> None:
    with socket.create_connection(hasty, timeout=PATIENCE) as client:
        client.sendall(WHOLE)
        said = b""
        while b'"speculative"' not in said:
            said += client.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")
        client.sendall(b"POST /v1")
        status, error = refusal(heard_from(client))
    assert (status, error["code"]) == (408, "request_timeout")


def test_a_connection_that_is_left_alone_is_closed(hasty) -> None:
    for said in (WHOLE, WHOLE + b"POST /v1"):
        assert send(hasty, said).count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA" + b"b" * 70_000,
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\r\n" * 50 + b"x",
        bytes(range(256)),
    ],
)
def test_what_is_no_http_is_refused_in_the_shape_of_errors(hasty, said: bytes) -> None:
    status, error = refusal(send(hasty, said))
    assert (status, error["code"]) in ((400, "invalid_http"), (408, "request_timeout"))
    assert error["type"] == "invalid_request_error"


def test_the_preface_of_http_2_names_no_host(hasty) -> None:
    status, error = refusal(send(hasty, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    assert (status, error["code"]) == (403, "wrong_host")


def test_garbage_after_a_request_does_not_harm_its_answer(hasty) -> None:
    said = send(hasty, WHOLE + b"\x00garbage\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200")
    ask(hasty)


def ask(address: tuple[str, int]) -> float:
    """Seconds of a request that is in order."""
    started = time.monotonic()
    url = f"http://{address[0]}:{address[1]}/v1/completions"
    response = httpx.post(url, json=BODY, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return time.monotonic() - started


def test_a_websocket_is_not_spoken(hasty) -> None:
    upgrade = (
        b"GET /live/info HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert send(hasty, upgrade).startswith(b"HTTP/1.1 200")


def test_half_open_connections_keep_nobody_out() -> None:
    with serving(tiny_service(), connections=20) as (host, port, server):
        ask((host, port))
        held = [socket.create_connection((host, port)) for _ in range(60)]
        for client in held:
            client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        ask((host, port))
        assert len(server.server_state.connections) <= 20
        # The oldest have had to go.
        held[0].settimeout(PATIENCE)
        with suppress(ConnectionResetError):
            assert held[0].recv(10) == b""
        for client in held:
            client.close()
        wait_until(lambda: not server.server_state.connections)


def test_who_is_answered_keeps_the_place() -> None:
    with serving(tiny_service(), connections=2) as (host, port, _):
        url = f"http://{host}:{port}/live/sessions"
        live = {"prompt": "a", "modes": ["plain"], "paused": True}
        with httpx.Client(timeout=PATIENCE) as client:
            with (
                client.stream("POST", url, json=live) as first,
                client.stream("POST", url, json=live) as second,
            ):
                assert [first.status_code, second.status_code] == [200, 200]
                status, error = refusal(send((host, port)))
                assert (status, error["code"]) == (503, "server_busy")
            ask((host, port))


def test_bodies_at_work_are_bounded_together(monkeypatch) -> None:
    monkeypatch.setattr("eaglerl.server.middleware._MOST_BYTES", 300_000)
    begin, checks = RequestChecks.__init__, []

    def keep(self: RequestChecks, *arguments: object, **options: object) -> None:
        begin(self, *arguments, **options)
        checks.append(self)

    monkeypatch.setattr(RequestChecks, "__init__", keep)
    with serving(tiny_service(max_body_bytes=150_000)) as (host, port, _):
        held = []
        for _ in range(3):
            client = socket.create_connection((host, port))
            client.sendall(HEAD + b"Content-Length: 140000\r\n\r\n" + b" " * 100_000)
            held.append(client)
        wait_until(lambda: sum(check._bytes for check in checks) == 300_000)
        # A small one is read in any case, another large one is not.
        ask((host, port))
        large = httpx.post(
            f"http://{host}:{port}/v1/completions", content=b" " * 140_000, timeout=PATIENCE
        )
        assert large.status_code == 503
        assert large.json()["error"]["code"] == "server_busy"
        assert large.headers["Retry-After"] == "1"
        for client in held:
            client.close()


def test_who_does_not_read_is_given_up() -> None:
    service = tiny_service()
    with serving(service, stalled_seconds=0.3) as (host, port, server), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, port))
        # As many bytes as no buffer between the two holds.
        url = f"http://{host}:{port}"
        length = len(httpx.get(f"{url}/openapi.json", timeout=PATIENCE).content)
        client.sendall(
            b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * (2 + 20_000_000 // length)
        )
        wait_until(lambda: not server.server_state.connections)


def test_a_stop_does_not_wait_for_half_a_request() -> None:
    with serving(tiny_service()) as (host, port, server):
        clients = [socket.create_connection((host, port)) for _ in range(3)]
        clients[0].sendall(HEAD)
        clients[1].sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        wait_until(lambda: len(server.server_state.connections) == 3)
        time.sleep(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 8
    for client in clients:
        client.close()


@pytest.mark.slow
def test_600_half_open_connections_cost_little() -> None:
    process = psutil.Process()
    with serving(tiny_service()) as (host, port, _):
        alone = min(ask((host, port)) for _ in range(5))
        before = process.memory_info().rss
        held = []
        for _ in range(600):
            client = socket.create_connection((host, port))
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 400_000)
            held.append(client)
        slowest = max(ask((host, port)) for _ in range(5))
        grown = process.memory_info().rss - before
        for client in held:
            client.close()
    print(f"alone {alone:.3f} s, slowest {slowest:.3f} s, grown {grown / 1e6:.0f} MB")  # noqa: T201
    # It was 4.5 s without bounds.
    assert slowest < alone + 2.5
    # It was 240 MB. 32 MiB of bodies, what uvicorn and the kernel's readers hold beside them.
    assert grown < 100e6


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="header_seconds must be positive and finite"):
        ConnectionLimits(header_seconds=value)
