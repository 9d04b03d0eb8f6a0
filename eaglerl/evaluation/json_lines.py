"""Files of JSON lines that survive a process which dies while it writes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self


def read_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the content of every line; nothing where there is no file.

    A last line without its end was cut short: it is reported with a warning and left out.

    Raises:
        ValueError: another line is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {str(path)!r} is not JSON: {error}") from error
    if rest:
        _warn_of_rest(path, len(rest))


class LineWriter:
    """Appends JSON lines to a file; who writes it holds its lock, or that of its folder.

    Each line is written in one call and synced to the disk.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, new or not, and cut off a last line without its end, with a warning."""
        self._path = Path(path)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _warn_of_rest(self._path, len(content) - whole)
            os.ftruncate(self._descriptor, whole)

    def append(self, content: Mapping[str, Any]) -> None:
        """Write one line."""
        line = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written to {self._path}")
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _warn_of_rest(path: Path, size: int) -> None:
    warnings.warn(
        f"the last line of {str(path)!r} was cut short after {size} bytes; it is left out",
        stacklevel=3,
    )
