"""Locks on files, which end with the processes that hold them, whatever ends those."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from shards.errors import InputError
from shards.files.atomic import writing


class FileLock:
    """A lock that processes, also on several machines, hold one after another.

    Who holds it may take it again. It has the methods that Optuna's journal asks of a lock.

    Args:
        path: of a file that is there for this only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.depth = 0
        self.file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        if self.depth == 0:
            self.file = _open(self.path)
            _lock(self.file, self.path, fcntl.LOCK_EX)
        self.depth += 1
        return True

    def release(self) -> None:
        """Give it back, if it was not taken before by the same process."""
        self.depth -= 1
        if self.depth == 0 and self.file is not None:
            self.file.close()

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def held(path: Path) -> BinaryIO | None:
    """Return a file opened to append, and locked; None if another holds it.

    A process to which it is handed on, as what it prints to, holds it too, and so do those it starts.
    """
    file = _open(path)
    try:
        _lock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_held(path: Path) -> bool:
    """Return whether a process holds this file."""
    file = held(path)
    if file is not None:
        file.close()
    return file is None


def _open(path: Path) -> BinaryIO:
    # Opened to write alone, a named pipe would wait for a reader. A link may lead out of the folder.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with writing(path):
        file = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InputError(f"{path}: is a pipe or device, not a file; remove it")
    return os.fdopen(file, "ab")


def _lock(file: BinaryIO, path: Path, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise InputError(
            f"{path.parent}: files cannot be locked there ({error.strerror}); choose a folder on "
            "another file system"
        ) from None


def cut_torn_line(path: Path) -> None:
    """Take away what a killed process has left of a line; only for who holds the lock on the file."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
