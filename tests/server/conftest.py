"""A served tiny model, on a real port or in the same process."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient

from eaglerl.eagle3 import TreeParams
from eaglerl.server import Mode, Service, create_app

from .tiny import Slow, tiny_service


@pytest.fixture(scope="module")
def service() -> Service:
    """A service whose engine has yet to be started."""
    return tiny_service()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    """A client in the same process."""
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Service]]:
    """The address of a server on a free port, and its service."""
    service = tiny_service(Mode("slow", "Takes its time.", lambda: Slow(TreeParams(8, 2, 2))))
    config = uvicorn.Config(create_app(service), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", service
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
