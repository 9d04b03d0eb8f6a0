"""A server on a real port, with the limits of connections that a test wants."""

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
