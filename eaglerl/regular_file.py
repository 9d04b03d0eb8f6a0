"""Opening files of unknown origin: regular files only, up to a given size.

A pipe would block its reader for ever, a device may never end, and opening one can have effects.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class MissingFileError(ValueError, FileNotFoundError):
    """There is no file of that name."""


def check_regular(path: str | Path, what: str) -> int:
    """Check that a path names a regular file, or a link to one.

    Args:
        path: the file.
        what: the file in words, such as "cost table".

    Returns:
        Its size in bytes.

    Raises:
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
        ValueError: it is not a regular file, or cannot be inspected.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(error, path, what) from None
    return _size(status, path, what)


@contextmanager
def open_regular(path: str | Path, what: str) -> Iterator[BufferedReader]:
    """Open a regular file; refuse everything else before it can block.

    The block should only read the file: any OSError in it is reported as an error of the file.

    Args:
        path: the file.
        what: the file in words.

    Yields:
        The file, opened for reading bytes.

    Raises:
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
        ValueError: it is not a regular file, or cannot be read.
    """
    check_regular(path, what)
    try:
        # A pipe may have replaced the file after the check: open without blocking, and check again.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            _size(os.fstat(descriptor), path, what)
            yield file
    except OSError as error:
        raise unreadable(error, path, what) from None


def read_regular(path: str | Path, what: str, *, max_bytes: int) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        what: the file in words.
        max_bytes: largest file that is read.

    Raises:
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
        ValueError: it is not a regular file, cannot be read, or is larger.
    """
    with open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        # Regular files below /proc report a size of 0, whatever they hold.
        data = b"" if size > max_bytes else file.read(max_bytes + 1)
        if max(size, len(data)) > max_bytes:
            found = max(size, len(data))
            raise ValueError(
                f"the {what} {str(path)!r} must have at most {max_bytes:,} bytes, got {found:,}"
            )
        return data


def _size(status: os.stat_result, path: str | Path, what: str) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise ValueError(f"the {what} {str(path)!r} must be a regular file, got {kind}")
    return status.st_size


def unreadable(error: Exception, path: str | Path, what: str) -> ValueError:
    """Make the exception for a file that the system or a library failed to read.

    Args:
        error: the error.
        path: the file.
        what: the file in words.
    """
    where = f"the {what} {str(path)!r}"
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{where} cannot be read: no such file")
    reason = error.strerror if isinstance(error, OSError) else None
    # Cut, since libraries quote what they found at any length.
    return ValueError(f"{where} cannot be read: {reason or str(error)[:300]}")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the file's name in front of the errors that checking its content raises.

    Args:
        where: what it is and where it lies, such as "the head 'path'".

    Raises:
        ValueError: the error of the block, with the name in front.
    """
    try:
        yield
    except ValueError as error:
        text = str(error) if where in str(error) else f"{where}: {error}"
        # Cut, since messages quote the file's content at any length.
        raise ValueError(text if len(text) <= 2000 else f"{text[:2000]} ...") from error
