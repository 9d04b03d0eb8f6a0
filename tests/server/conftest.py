"""A served tiny model, on a real port or in the same process."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from eaglerl.eagle3 import TreeParams
from eaglerl.server import Mode, Service, create_app

from .tiny import Slow, serving, tiny_service


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
    with serving(service) as address:
        yield address, service
