"""Audio files: whole files, or byte ranges of a file such as a member of a tar."""

import os
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple


class FileRange(NamedTuple):
    """`size` bytes of the file at `path`, from byte `start` on."""

    path: str
    start: int
    size: int


AudioFile = str | Path | FileRange


def size_and_time(file: AudioFile) -> tuple[int, int]:
    """Returns the size in bytes and the modification time in ns.

    Raises:
        OSError: the file does not exist.
    """
    path = file.path if isinstance(file, FileRange) else file
    status = os.stat(path)  # noqa: PTH116 (230,000 of them)
    return file.size if isinstance(file, FileRange) else status.st_size, status.st_mtime_ns


def open_range(file: AudioFile) -> tuple[int, int, int]:
    """Returns (descriptor, first byte, number of bytes); the caller closes the descriptor.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    if isinstance(file, FileRange):
        return os.open(file.path, os.O_RDONLY | os.O_NONBLOCK), file.start, file.size
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    return handle, 0, os.fstat(handle).st_size


def open_alone(file: AudioFile) -> int:
    """Returns a descriptor of a file with nothing but the audio; a range is copied to an unnamed file.

    So decoders see where it ends.

    Raises:
        OSError: the file does not exist, or cannot be read or copied.
    """
    handle, start, size = open_range(file)
    if not isinstance(file, FileRange) or not stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    try:
        with tempfile.TemporaryFile() as copy:
            end = start + size
            while start < end and (count := os.sendfile(copy.fileno(), handle, start, end - start)):
                start += count
            copy.seek(0)
            return os.dup(copy.fileno())
    finally:
        os.close(handle)
