"""A server on a real port, with the limits of connections that a test wants, and its clients."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from eaglerl.server import Service
from eaglerl.server.connections import ConnectionLimits
from eaglerl.server.run import server_config

from .tiny import PATIENCE, wait_until


@contextmanager
def unread_request(address: str, path: str, content: dict) -> Iterator[socket.socket]:
    """A connection on which a request was sent; it closes at the end, whatever has been answered.

    Args:
        address: of the server, as "http://HOST:PORT".
        path: what is asked, as "/v1/completions".
        content: the body.
    """
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(content).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall(head.encode() + body)
        yield client


@contextmanager
def serving(service: Service, **limits: float) -> Iterator[tuple[str, int, uvicorn.Server]]:
    """A server on a free port."""
    config = server_config(service, connections=ConnectionLimits(**limits))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield (*listener.getsockname(), server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
