"""The cache folder, atomic writing of files, and locks that keep a second writer out."""

import fcntl
import os
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
    """Somebody else is writing what was to be written.

    Attributes:
        pid: id of the process on this machine that is; None where it is not known.
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


@contextmanager
def exclusive_folder(
    folder: str | Path, *, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keep other writers out of a folder while the block runs.

    The folder is made if it is not there. Its lock is a file in it, so it is the same one whatever
    path the folder is reached by; the system releases it when the process ends, however it ends.
    Readers are not kept out.

    Args:
        folder: what is written.
        waiting: is told who is at work in it, and then that writer is waited for; without it, a
            second writer is refused.

    Raises:
        AlreadyLockedError: somebody else is writing it; the message names the folder and the
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

    As `exclusive_folder`, but the lock lies beside ``path``, whose folder is made. Links are
    followed first.
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
        # While it is locked: who waits for it finds that it is not the path's file any more.
        if _is_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, what: str, waiting: Callable[[str], None] | None) -> int:
    """The descriptor of a lock file that is locked and tells by whom."""
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
        # Whoever held it has removed it meanwhile.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> tuple[str, int | None]:
    """Who has locked a lock file, as far as it says so: in words, and the process's id."""
    process, _, host = os.pread(descriptor, 1024, 0).decode(errors="replace").strip().partition(" ")
    if not process.isdecimal():
        return "another process", None
    if host != socket.gethostname():
        return f"another process (pid {process} on {host})", None
    if int(process) == os.getpid():
        return f"another process, or another call in this one (pid {process})", int(process)
    return f"another process (pid {process})", int(process)
