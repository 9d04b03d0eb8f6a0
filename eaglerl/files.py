"""The cache folder, and atomic writing of files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    raises: a reader finds the old file or the new one, never a part.

    Args:
        path: The file to write.

    Yields:
        The path to write to.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
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
