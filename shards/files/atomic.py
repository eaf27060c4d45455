"""Atomic writes, and output files that the user names.

Every file is written by `replace_file`, in a folder of ours (see `shards.files.ownership`), or by
`write_output`, for a path that the user named.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import UserError

# Bytes of a name that its temporary name keeps, which must not get too long.
_LONGEST_STEM = 120
# Streams of this process: they may lead to a file with other contents, which is appended to.
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")

_REMEDIES = {
    errno.ENOSPC: "make room there or choose another place",
    errno.EDQUOT: "your quota is used up: make room there or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "it is a link: remove it or choose another place",
    errno.ENXIO: "no process reads from it: start the reader first",
}


def cannot_write(path: Path, error: OSError, option: str = "") -> UserError:
    """Returns the error for a file or folder that cannot be written.

    Args:
        path: the file or folder.
        error: what the system reported.
        option: command-line option that named the path, if any.
    """
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    reason = error.strerror or str(error)
    return UserError(f"{option} {path}: cannot be written ({reason}); {remedy}".strip())


@contextmanager
def writing(path: Path, option: str = "") -> Iterator[None]:
    """Turns an OSError in the block into the error that `path` cannot be written.

    Raises:
        UserError: in place of an OSError, unless that names a file outside of `path`.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str) else path
        if path not in (named, *named.parents):
            raise
        raise cannot_write(path, error, option) from error


@contextmanager
def unfinished(temporary: Path) -> Iterator[None]:
    """Removes the temporary file if the block fails."""
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output(path: Path, option: str = "") -> None:
    """Checks that a path which the user named can be written, before the work; changes nothing.

    Parent folders may be missing: `write_output` creates them.

    Raises:
        UserError: the path is a folder or block device, or it or its folder cannot be written.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise cannot_write(path, error, option) from None
    except ValueError as error:  # a NUL in it
        raise UserError(f"{option} {str(path)!r}: is not a file name ({error})".strip()) from None
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a disk"
        raise UserError(f"{option} {path}: is {kind}; name a file".strip())
    if mode and not os.access(path, os.W_OK):
        raise cannot_write(path, _refusal(path), option)
    if not _in_place(path):
        target = Path(os.path.realpath(path))
        try:
            check_folder(target.parent)
        except OSError as error:
            raise cannot_write(path, error, option) from None


def check_name(path: Path, option: str = "") -> None:
    """Checks that a path is a possible one.

    Raises:
        UserError: the path has a NUL in it.
    """
    if "\0" in str(path):
        raise UserError(f"{option} {str(path)!r}: a name cannot have a NUL in it".strip())


def check_folder(folder: Path) -> None:
    """Checks that files can be created in a folder, which may itself be missing.

    Raises:
        OSError: they cannot.
    """
    for place in (folder, *folder.parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise _refusal(place)
        return


def _refusal(path: Path) -> OSError:
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    return OSError(number, os.strerror(number))


def _in_place(path: Path) -> bool:
    """Returns whether a path is written in place: a device, FIFO or stream of this process."""
    if str(path.absolute()).startswith(_STREAMS):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def write_output(path: Path, data: bytes, option: str = "") -> None:
    """Writes a file that the user named, and creates its parent folders.

    A regular file is replaced atomically; behind a link, the target of the link. A device, FIFO or
    terminal is written to, never replaced.

    Raises:
        UserError: the file cannot be written; its old contents are still there.
    """
    check_output(path, option)
    with writing(path, option):
        if _in_place(path):
            # With O_NONBLOCK, a FIFO without a reader is an error; otherwise this would wait forever.
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            os.set_blocking(file, True)
            with os.fdopen(file, "wb") as out:
                out.write(data)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, target.parent, data)


def temporary_name(name: str) -> str:
    """Returns a name for an unfinished file, unique among the processes of all machines."""
    stem = os.fsdecode(os.fsencode(name)[:_LONGEST_STEM])
    return f"{stem}.{socket.gethostname()}.{os.getpid()}.tmp"


def is_temporary(name: str, of: str) -> bool:
    """Returns whether `name` looks like a `temporary_name` of `of`."""
    return name.startswith(f"{of}.") and name.endswith(".tmp")


def replace_file(target: Path, work: Path, data: bytes) -> None:
    """Writes a file in a folder of ours atomically.

    Args:
        target: a regular file or missing; a link is not followed.
        work: folder for the unfinished file, on the same file system.
        data: contents of the file.

    Raises:
        OSError: the file cannot be written, or `target` is not a regular file, which then stays.
    """
    mode = None
    if os.path.lexists(target):
        there = target.lstat().st_mode
        if not stat.S_ISREG(there):
            raise FileExistsError(errno.EEXIST, "something else has that name", str(target))
        mode = stat.S_IMODE(there)
    temporary = work / temporary_name(target.name)
    with unfinished(temporary):
        write_bytes(temporary, data)
        if mode is not None:
            temporary.chmod(mode)
        publish(temporary, target)


def write_bytes(path: Path, payload: bytes) -> None:
    """Writes a file and syncs it to disk; an OSError names the file."""
    try:
        with path.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def publish(temporary: Path, target: Path) -> None:
    """Renames a finished file to its final name; both are synced to disk."""
    sync(temporary)
    temporary.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Syncs a file or folder to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def drop_partial_line(path: Path) -> None:
    """Truncates a log to its last complete line, after a writer was killed.

    The caller holds the lock of the file. A missing file is left alone.
    """
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
