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


# The files in two processes of about the same time: each spends seconds on imports.
GROUPS = (
    ("test_routes.py", "test_tuning.py", "test_select_draft_nodes.py"),
    ("test_action_cache.py", "test_against_float64.py", "test_accept_draft.py"),
)


def _run(names: tuple[str, ...]) -> subprocess.CompletedProcess:
    files = [str(FOLDER / name) for name in names]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, ...], Future]]:
    """Run the requested groups side by side, with one thread each."""
    asked = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(len(GROUPS)) as pool:
        groups = [item.callspec.params["names"] for item in asked if hasattr(item, "callspec")]
        yield {names: pool.submit(_run, names) for names in groups}
        pool.shutdown(cancel_futures=True)


def test_every_file_is_run() -> None:
    assert sorted(name for names in GROUPS for name in names) == sorted(
        path.name for path in FOLDER.glob("test_*.py")
    )


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_interpreted(names: tuple[str, ...], running: dict[tuple[str, ...], Future]) -> None:
    result = running[names].result()
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
