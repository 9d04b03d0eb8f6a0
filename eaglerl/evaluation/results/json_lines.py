"""JSON lines files that survive a process killed while writing."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter

from eaglerl.json_file import parse_json, read_lines

_T = TypeVar("_T")


def read_whole_lines(
    path: str | Path, schema: type[_T] | TypeAdapter[_T], what: str
) -> Iterator[tuple[int, _T]]:
    """Yield the number, from 1, and the content of every line; nothing if there is no file.

    A last line without a line end was cut short: it is left out with a warning.

    Args:
        path: the file.
        schema: schema of a line.
        what: name of the file's content for messages.

    Raises:
        ValueError: any other line is not JSON or does not fit the schema.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    for line in read_lines(path, what):
        if not line.ended:
            _warn_of_rest(path, len(line.data))
            return
        yield line.number, parse_json(line.data, schema, line.where)


class LineWriter:
    """A writer that appends JSON lines; the caller holds the lock of the file or its folder.

    What is appended together is written in one call and synced to the disk.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file; a last line without a line end is cut off with a warning."""
        self._path = Path(path)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _warn_of_rest(self._path, len(content) - whole)
            os.ftruncate(self._descriptor, whole)

    def append(self, *contents: Mapping[str, Any]) -> None:
        """Write a line for each content, all in one call: a killed process leaves all or none."""
        lines = b"".join(
            json.dumps(content, separators=(",", ":")).encode() + b"\n" for content in contents
        )
        written = os.write(self._descriptor, lines)
        if written != len(lines):
            raise OSError(f"only {written} of {len(lines)} bytes were written to {self._path}")
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
