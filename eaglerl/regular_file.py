"""Opening files that were written by others: regular ones alone, of a bounded size.

A pipe would block its reader for ever, a device never ends, and to open one may do something.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
        what: it in words, such as "cost table".

    Returns:
        Its size in bytes.

    Raises:
        MissingFileError: there is none; a ValueError and a FileNotFoundError.
        ValueError: it is something else, or cannot be looked at.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(error, path, what) from None
    return _size(status, path, what)


@contextmanager
def open_regular(path: str | Path, what: str) -> Iterator[BinaryIO]:
    """Open a regular file, and nothing else: what would block is not opened.

    The block does no more than read it: its errors of the system are taken for the file's.

    Args:
        path: the file.
        what: it in words.

    Yields:
        The file, read in bytes.

    Raises:
        MissingFileError: there is none; a ValueError and a FileNotFoundError.
        ValueError: it is something else, or cannot be opened or read.
    """
    check_regular(path, what)
    try:
        # Somebody may put a pipe in its place meanwhile: without waiting, and looked at again.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            _size(os.fstat(descriptor), path, what)
            yield file
    except OSError as error:
        raise unreadable(error, path, what) from None


def read_regular(path: str | Path, what: str, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        what: it in words.
        max_bytes: largest file that is read.

    Raises:
        MissingFileError: there is none; a ValueError and a FileNotFoundError.
        ValueError: it is something else, cannot be read, or is larger.
    """
    with open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        # Some regular files of the system say 0 whatever they hold.
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
    """What to raise for a file where the system, or a library, gave an error.

    Args:
        error: the error.
        path: the file.
        what: it in words.
    """
    where = f"the {what} {str(path)!r}"
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{where} cannot be read: no such file")
    reason = error.strerror if isinstance(error, OSError) else None
    # Libraries quote what they found, however long it is.
    return ValueError(f"{where} cannot be read: {reason or str(error)[:300]}")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """While what was read from a file is checked: errors get the file's name.

    Args:
        where: what it is and where it lies, such as "the head 'path'".

    Raises:
        ValueError: that of the block, with the name before it.
    """
    try:
        yield
    except ValueError as error:
        text = str(error) if where in str(error) else f"{where}: {error}"
        # What a file held is quoted, however long it is.
        raise ValueError(text if len(text) <= 2000 else f"{text[:2000]} ...") from error
