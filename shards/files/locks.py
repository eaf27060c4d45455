"""File locks: `locked` for a folder with one writer, `FileLock` for processes that take turns.

All of them are flock(2) locks, which on NFS work between machines too. The kernel releases a lock when
the process that holds it ends, however it ends.
"""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shards.errors import UserError
from shards.files.atomic import cannot_write, writing
from shards.log import LOG

# Seconds to wait for another process to end, such as one that a launcher is replacing.
PATIENCE = 5.0
_PAUSE = 0.05
# errno of flock on a file system without locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_warned: set[Path] = set()


@contextmanager
def locked(
    file: Path,
    busy: str,
    *,
    shared: bool = False,
    patience: float | None = None,
    keep: bool = False,
) -> Iterator[None]:
    """Holds a lock file while the block runs; the file names the process that holds it.

    On a file system without locks a warning is printed and the block runs unlocked.

    Args:
        file: the lock file; it and its folder are created.
        busy: start of the error message if another process holds the lock; the holder and a remedy are
            appended.
        shared: whether other processes may hold it as shared at the same time.
        patience: seconds to wait for the lock; `PATIENCE` if None.
        keep: whether the file stays when the block ends; otherwise it is removed.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while (lock := _try_lock(file, operation)) is None:
        if time.monotonic() >= deadline:
            raise UserError(f"{busy}{_holder(file)}; wait until it has ended, or stop it")
        time.sleep(_PAUSE)
    try:
        with suppress(OSError):  # a full disk does not prevent locking
            os.ftruncate(lock, 0)
            os.pwrite(lock, _this_process().encode(), 0)
        yield
    finally:
        with suppress(OSError):
            if keep:
                os.ftruncate(lock, 0)
            elif not shared or _is_last_holder(lock):
                file.unlink()
        os.close(lock)


class FileLock:
    """Reentrant lock that processes, also on several machines, hold in turn.

    It has the methods that Optuna's journal asks of a lock.

    Args:
        path: the lock file; it is created, and never removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.depth = 0
        self.file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Waits for the lock.

        Raises:
            UserError: the file cannot be opened for writing, or locked.
        """
        if self.depth == 0:
            self.file = _open_and_lock(self.path, fcntl.LOCK_EX)
        self.depth += 1
        return True

    def release(self) -> None:
        """Releases the lock once it has been released as often as it was acquired."""
        self.depth -= 1
        if self.depth == 0 and self.file is not None:
            self.file.close()

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_locked(path: Path) -> BinaryIO | None:
    """Opens a file for appending and locks it; returns None if another process holds it.

    A process that inherits the file, for example as its standard output, holds the lock too, and so do
    the processes that it starts.

    Raises:
        UserError: the file cannot be opened for writing, or locked.
    """
    try:
        return _open_and_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock of this file, which is created if it is missing."""
    file = open_locked(path)
    if file is not None:
        file.close()
    return file is None


def open_and_flock(path: Path, flags: int, operation: int) -> int | None:
    """Opens a file and locks it, without following links.

    Args:
        path: the file.
        flags: of `os.open`.
        operation: of `fcntl.flock`.

    Returns:
        A file descriptor; None if the file does not exist, or no longer does once it is locked.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` has LOCK_NB.
        OSError: the file cannot be opened or locked.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    return flock_in_place(file, path, operation)


def flock_in_place(file: int, path: Path, operation: int) -> int | None:
    """Locks an open file; closes it and returns None if it is no longer the one at `path`.

    Who holds a lock may remove the file, and a lock on a removed file excludes nobody.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` has LOCK_NB.
        OSError: the file cannot be locked. In both cases it is closed.
    """
    try:
        fcntl.flock(file, operation)
        if os.path.samestat(os.fstat(file), path.lstat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _try_lock(file: Path, operation: int) -> int | None:
    """Returns the lock file, open and locked; None if another process holds it."""
    flags = os.O_RDWR | os.O_CREAT
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return open_and_flock(file, flags, operation | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):  # or its holder has just removed the folder
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(file, error) from None
        _warn_once(file.parent, error)
        with writing(file):
            return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _is_last_holder(lock: int) -> bool:
    """Makes a shared lock exclusive if nobody else holds it, and returns whether that is so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _warn_once(folder: Path, error: OSError) -> None:
    if folder not in _warned:
        _warned.add(folder)
        LOG.warning(
            f"{folder}: its file system has no locks ({error.strerror}), so nothing keeps a second "
            "process from working there: start only one"
        )


def _this_process() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {now}\n"


def _holder(file: Path) -> str:
    try:
        with file.open("rb") as lock:
            text = " ".join(lock.read(200).decode(errors="replace").split())
    except OSError:
        text = ""
    return f" ({text})" if text.isprintable() and text else ""


def _open_and_lock(path: Path, operation: int) -> BinaryIO:
    """Opens a regular file for appending and locks it.

    Raises:
        BlockingIOError: another process holds it, and `operation` has LOCK_NB.
        UserError: it cannot be opened or locked, or is no regular file.
    """
    # Opening a named pipe for writing only would wait for a reader. A link may lead out of the folder.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with writing(path):
            file = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UserError(f"{path}: is a pipe or device, not a file; remove it")
        try:
            lock = flock_in_place(file, path, operation)
        except BlockingIOError:
            raise
        except OSError as error:
            raise UserError(
                f"{path.parent}: files cannot be locked there ({error.strerror}); choose a folder on "
                "another file system"
            ) from None
        if lock is not None:
            return os.fdopen(lock, "ab")
