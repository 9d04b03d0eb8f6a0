"""Runs the tests of the interpreted kernels.

Triton decides on import whether kernels are compiled or interpreted, so these run in separate
processes; ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted`` runs them directly.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER = Path(__file__).parent / "interpreted"


def _run(name: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future]]:
    """Run the requested files, two at a time with one thread each."""
    asked = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(2) as pool:
        names = [item.callspec.params["name"] for item in asked]
        yield {name: pool.submit(_run, name) for name in names}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_interpreted(name: str, running: dict[str, Future]) -> None:
    result = running[name].result()
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
