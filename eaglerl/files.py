"""The cache folder, atomic writing of files, and locks that keep a second writer out."""

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".tmp"
#: Lock of a folder, inside it; that of a file NAME is ``.NAME.lock`` beside it.
LOCK_NAME = ".lock"


class AlreadyLockedError(RuntimeError):
    """Another process, or another call in this one, is writing the same file or folder.

    Attributes:
        pid: id of that process on this machine; None if unknown.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


def cache_root() -> Path:
    """Return eaglerl's cache folder: $EAGLERL_CACHE, $XDG_CACHE_HOME/eaglerl, ~/.cache/eaglerl."""
    if explicit := os.environ.get("EAGLERL_CACHE"):
        return Path(explicit).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "eaglerl"
    return Path.home() / ".cache" / "eaglerl"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that becomes ``path`` on success.

    When the block ends, the temporary file is synced to the disk and renamed; when it raises, the
    file is removed. A reader finds the old file or the new one, never a part of it. Temporary files
    of the same path that a killed process left behind are removed first.

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
        # Opened again, since the writer may have replaced the file that is locked.
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


def link_or_copy(source: str | Path, path: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links between them.

    What is at ``path`` already is replaced as a whole.

    Args:
        source: the file; a symbolic link is followed.
        path: the second name, in an existing folder.
    """
    source, path = Path(source).resolve(), Path(path)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    try:
        os.link(source, temporary)
    except OSError:
        # Another file system, one without links, or a file of another user.
        with atomic_path(path) as copy:
            shutil.copyfile(source, copy)
        return
    try:
        os.replace(temporary, path)
    finally:
        # Still there if both were names of the same file: a rename then does nothing.
        temporary.unlink(missing_ok=True)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Make and lock a temporary file; return the descriptor with the lock, and the path."""
    while True:
        lock, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        # On a file system without locks no file is ever taken for a leftover.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Between creation and lock, another process may have taken the file for a leftover.
        if os.path.exists(name):
            return lock, Path(name)
        os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """Remove a path's temporary files that are not locked: a writer locks its own."""
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
            # Renamed in the meantime, owned by another user, or not a file.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(leftover)
        except OSError:
            # Still being written, or the file system has no locks.
            pass
        finally:
            os.close(descriptor)


@contextmanager
def exclusive_folder(
    folder: str | Path, *, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keep other writers out of a folder while the block runs.

    The folder is created if missing. The lock is a file inside it, and therefore the same by every
    path that leads to the folder. The system releases it when the process ends, however it ends.
    Readers are not kept out.

    Args:
        folder: the folder to write to.
        waiting: called with a description of the current writer, which is then waited for. Without
            it, a second writer is refused.

    Raises:
        AlreadyLockedError: another process is writing; the message names the folder and the
            process.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.resolve() / LOCK_NAME, f"the folder {str(folder)!r}", waiting):
        yield


@contextmanager
def exclusive_file(
    path: str | Path, *, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keep other writers away from a file, or from a folder that is replaced as a whole.

    Like `exclusive_folder`, but the lock lies beside ``path``, whose folder is created if missing.
    Links are resolved first.
    """
    own = Path(path).resolve()
    own.parent.mkdir(parents=True, exist_ok=True)
    with _locked(own.with_name(f".{own.name}{LOCK_NAME}"), repr(str(path)), waiting):
        yield


@contextmanager
def _locked(path: Path, what: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
    descriptor = _lock(path, what, waiting)
    try:
        yield
    finally:
        # Removed while locked: a waiting process then finds that its file is no longer at the path.
        if _is_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, what: str, waiting: Callable[[str], None] | None) -> int:
    """Lock a lock file, write the owner into it, and return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner, pid = _owner(descriptor)
                if waiting is None:
                    raise AlreadyLockedError(
                        f"{what} is being written by {owner}: wait until it has ended, or name "
                        "another",
                        pid,
                    ) from None
                waiting(f"waiting for {owner}, which is writing {what}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                warnings.warn(
                    f"{what} lies on a file system without locks ({error}): nothing keeps a second "
                    "writer out",
                    stacklevel=2,
                )
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The former owner has removed the file: lock the one that is there now.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> tuple[str, int | None]:
    """Return the owner of a lock file, in words, and the process id if known."""
    process, _, host = os.pread(descriptor, 1024, 0).decode(errors="replace").strip().partition(" ")
    if not process.isdecimal():
        return "another process", None
    if host != socket.gethostname():
        return f"another process (pid {process} on {host})", None
    if int(process) == os.getpid():
        return f"another process, or another call in this one (pid {process})", int(process)
    return f"another process (pid {process})", int(process)
