"""The cache folder, and atomic writing of files."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".tmp"


def cache_root() -> Path:
    """Return eaglerl's cache folder: $EAGLERL_CACHE, $XDG_CACHE_HOME/eaglerl, ~/.cache/eaglerl."""
    if explicit := os.environ.get("EAGLERL_CACHE"):
        return Path(explicit).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "eaglerl"
    return Path.home() / ".cache" / "eaglerl"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path`` that becomes ``path`` on success.

    The temporary file is synced to the disk and renamed when the block ends, and removed when it
    raises: a reader finds the old file or the new one, never a part. What a process that was killed
    left of the same file is removed first.

    Args:
        path: The file to write.

    Yields:
        The path to write to.
    """
    path = Path(path)
    _remove_leftovers(path)
    lock, temporary = _locked_temporary(path)
    try:
        yield temporary
        # Not the locked one: a writer may have put another file in its place.
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new temporary file, and the descriptor that locks it while it is being written."""
    while True:
        lock, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        # On a file system without locks, nothing is ever taken for a leftover.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Before it was locked, another process may have taken this one for a leftover.
        if os.path.exists(name):
            return lock, Path(name)
        os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """Remove a path's temporary files that nobody has locked: who writes one, does."""
    with os.scandir(path.parent) as entries:
        leftovers = [
            entry.path
            for entry in entries
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(_SUFFIX)
        ]
    for leftover in leftovers:
        try:
            descriptor = os.open(leftover, os.O_RDWR)
        except OSError:
            # Renamed meanwhile, somebody else's, or no file.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(leftover)
        except OSError:
            # Being written, or the file system has no locks.
            pass
        finally:
            os.close(descriptor)
