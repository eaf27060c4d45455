"""Folders in which one process works at a time.

A lock is held on a file (flock, which on NFS works between machines too), so it ends with the process
that holds it, whatever ends that. The file says who holds it.
"""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import InputError
from shards.files.atomic import cannot_write

# How long to wait for another process to end, such as one that a launcher is just replacing.
PATIENCE = 5.0
_PAUSE = 0.05
# What flock says where a file system has no locks. That is no reason to refuse.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_told: set[Path] = set()


@contextmanager
def locked(
    file: Path,
    busy: str,
    *,
    shared: bool = False,
    patience: float | None = None,
    keep: bool = False,
) -> Iterator[None]:
    """Holds a lock file while the block runs.

    Args:
        file: the lock file; it and its folder are made.
        busy: what to say if another process holds it; who that is, and what to do, is added.
        shared: whether others may hold it in the same way.
        patience: seconds to wait for it; `PATIENCE` if None.
        keep: whether the file stays; else it is removed at the end.

    Raises:
        InputError: another process holds it, or the file cannot be written.
    """
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while (lock := _take(file, how)) is None:
        if time.monotonic() >= end:
            raise InputError(f"{busy}{_holder(file)}; wait until it has ended, or stop it")
        time.sleep(_PAUSE)
    try:
        with suppress(OSError):  # a full disk is no reason not to lock
            os.ftruncate(lock, 0)
            os.pwrite(lock, _about_me().encode(), 0)
        yield
    finally:
        # Others look again whether the file that they have locked is still in its place.
        with suppress(OSError):
            if keep:
                os.ftruncate(lock, 0)
            elif not shared or _alone(lock):
                file.unlink()
        os.close(lock)


def _take(file: Path, how: int) -> int | None:
    """Returns the lock file, open and locked; None if another process holds it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(file, flags, 0o666)
    except FileNotFoundError:
        return None  # who held it has just removed the folder
    except OSError as error:
        raise cannot_write(file, error) from None
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), file.lstat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _tell_once(file.parent, error)
            return lock
        os.close(lock)
        raise cannot_write(file, error) from None
    os.close(lock)
    return None


def _alone(lock: int) -> bool:
    """Says whether nobody else holds a lock that is shared; if so it is no longer shared."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _tell_once(folder: Path, error: OSError) -> None:
    if folder not in _told:
        _told.add(folder)
        print(
            f"cpprune: warning: {folder}: its file system has no locks ({error.strerror}), so nothing "
            "keeps a second process from working there: start only one",
            file=sys.stderr,
            flush=True,
        )


def _about_me() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {now}\n"


def _holder(file: Path) -> str:
    try:
        with file.open("rb") as lock:
            text = " ".join(lock.read(200).decode(errors="replace").split())
    except OSError:
        text = ""
    return f" ({text})" if text.isprintable() and text else ""
