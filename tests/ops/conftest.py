"""Fixtures for tests of native ops."""

from collections.abc import Iterator

import pytest

from eaglerl._ext import C

ISAS = tuple(C.available_isas())


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set that this processor has."""
    before = C.cpu_isa()
    C.set_isa(request.param)
    assert C.cpu_isa() == request.param
    yield request.param
    C.set_isa(before)
