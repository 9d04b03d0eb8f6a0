"""A child process that runs cases and is replaced when it dies."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

_WORKER = Path(__file__).with_name("worker.py")
_PATIENCE_S = 120.0


class Worker:
    """Runs cases in a child process and returns the outcome of each."""

    def __init__(self, extension: Path | None = None, **environment: str) -> None:
        """Keep the command; the first case starts the child.

        Args:
            extension: another build of eaglerl._C.
            environment: variables of the child.
        """
        self._command = [sys.executable, str(_WORKER)] + ([str(extension)] if extension else [])
        self._environment = os.environ | {"OMP_NUM_THREADS": "2"} | environment
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self._environment,
        )
        return self._process

    def _end(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.stdin.close()
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code

    def ask(self, kind: str, name: str, seed: int) -> Any:
        """Return the outcome of a case: "ok", "refused: ...", or a failure."""
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps([kind, name, seed]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        if not select.select([process.stdout], [], [], _PATIENCE_S)[0]:
            process.kill()
            self._end()
            return "hang"
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._end()
        self._errors.seek(0)
        return f"crash: exit code {code}: {self._errors.read()[-3000:]}"
