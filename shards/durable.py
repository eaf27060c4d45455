"""Files that are there whole or not at all, whatever happens in between."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError


def temporary_name(name: str) -> str:
    """Returns a name for an unfinished file that no other process uses, on any machine."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}.tmp"


def replace_file(target: Path, work: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    temporary = work / temporary_name(target.name)
    temporary.write_bytes(data)
    publish(temporary, target)


def publish(temporary: Path, target: Path) -> None:
    """Moves a finished file to its place, for good."""
    sync(temporary)
    temporary.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def locked(file: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock file while the block runs.

    Raises:
        InputError: another process holds it; the message is `busy`.
    """
    with file.open("w+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(busy) from error
        yield
