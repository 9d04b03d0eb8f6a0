"""A second process that holds a lock, for tests of what the first does about it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = (
    "import sys, eaglerl.files as files\n"
    "with getattr(files, sys.argv[1])(sys.argv[2]):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def lock_holder(function: str, path: Path | str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until its input ends, or it is killed.

    Args:
        function: of `eaglerl.files`.
        path: what is locked.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, function, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()
