"""Child processes of the comparison: how they start, answer and end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What is shown of the stderr of a process that ended by itself.
_SHOWN_LINES = 15
_END_SECONDS = 10.0


class Child:
    """A process whose stderr goes to a file."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        """Start it.

        Args:
            name: what messages call it.
            command: program and arguments.
            log: file for its stderr; an older one is replaced.
        """
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def ended(self) -> RuntimeError:
        """Make the error for a process that ended by itself, with the end of its stderr."""
        code = self.process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "\n".join(lines[-_SHOWN_LINES:]) or "(nothing)"
        return RuntimeError(f"{self.name} ended with {code}. Its stderr ({self._log}):\n{shown}")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Worker(Child):
    """A process that answers tasks, one JSON object a line."""

    def ask(self, **task: Any) -> dict[str, Any]:
        """Send a task and wait for its answer.

        Raises:
            RuntimeError: the process ended; the message names it and shows its stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.ended() from None
        line = self.process.stdout.readline()
        if not line:
            raise self.ended()
        return json.loads(line)
