"""Fetched shards, shared by the processes and the runs of a node, and by users who let each other.

A shard is there whole or not at all: it is written to `NAME.part` and renamed. Files that are being
fetched or read are locked (flock), and only what nobody holds is removed. Who fetches a shard also holds
a lock of its own for it, which the others wait for: a shard stays locked as long as it is read. The
kernel lets go of the locks of a process that was killed.

What is made here can be read by whoever can read the cache folder, and its locks can be held by whoever
may write there. A shard that another user fetched is used once its SHA-256 was compared.
"""

import errno
import fcntl
import hashlib
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.errors import UserError
from shards.files.atomic import publish, temporary_name
from shards.files.locks import flock_in_place, open_and_flock
from shards.files.ownership import read_mark
from shards.launcher import process_rank
from shards.manifest import MANIFEST_NAME, Shard

VARIABLE = "CPPRUNE_CACHE"
PART = ".part"
# How long a fetch waits for room that others hold, in seconds.
PATIENCE = 60.0
PAUSE = 0.05

Fetch = Callable[[Shard, BinaryIO], None]

# Shards of other users whose SHA-256 this process has compared: device, inode, time of writing.
_compared: set[tuple[int, int, int]] = set()


def default_root() -> Path:
    """Returns the folder that `$CPPRUNE_CACHE` names, or `~/.cache/cpprune`."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/cpprune").expanduser()


@dataclass(frozen=True)
class Cache:
    """A folder with one folder for each dataset.

    Attributes:
        root: the folder.
        limit: how many bytes the shards of all datasets may take; 0 is as many as the disk has.
    """

    root: Path
    limit: int = 0

    def prepared(self) -> "Cache":
        """Makes the folder and returns the cache to use.

        In a folder such as /tmp, where all may write but not remove what is others', that is one of
        this user's own.

        Raises:
            UserError: another user has taken its name.
            OSError: it cannot be made.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        mode = self.root.stat().st_mode
        if not (mode & stat.S_ISVTX and mode & 0o022):
            return self
        own = self.root / f"user-{os.getuid()}"
        with suppress(FileExistsError):
            own.mkdir(mode=0o700)
        found = own.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise UserError(
                f"{own} was made by another user; set data.cache or ${VARIABLE} to a folder of yours"
            )
        return Cache(own, self.limit)

    def folder(self, name: str) -> Path:
        """Returns a folder of the cache; makes it, for all who may write in the cache."""
        path = self.root / name
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(stat.S_IMODE(self.root.stat().st_mode))
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise UserError(f"{path} is no folder; remove it")
        return path

    @contextmanager
    def new_file(self, path: Path) -> Iterator[BinaryIO]:
        """Gives a file to write, which is at `path` when the block has come to its end."""
        temporary = path.with_name(temporary_name(path.name))
        temporary.unlink(missing_ok=True)
        try:
            with os.fdopen(self._create(temporary, 0o644), "w+b") as file:
                yield file
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _create(self, path: Path, most: int) -> int:
        """Makes a file, with no more permissions than the folder has and than `most`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        os.fchmod(file, self.root.stat().st_mode & most)
        return file

    def fits(self, needed: int) -> bool:
        """Says whether shards of so many bytes could all lie here if no others did."""
        disk = os.statvfs(self.root)
        room = disk.f_bavail * disk.f_frsize + self._used()
        return needed <= (min(room, self.limit) if self.limit else room)

    def open(self, folder: Path, shard: Shard, fetch: Fetch) -> int:
        """Opens a shard for reading, and fetches it first if it is not there.

        Args:
            folder: of the dataset, below `root`.
            shard: which one.
            fetch: writes its bytes to a file, or raises UserError.

        Returns:
            A file descriptor that keeps the shard from being removed until it is closed.

        Raises:
            UserError: the shard cannot be fetched, or there is no room for it.
        """
        path = folder / shard.name
        file = None
        try:
            while file is None:
                # Another process may remove the shard, or finish it, between the two.
                file = open_and_flock(path, os.O_RDONLY, fcntl.LOCK_SH)
                if file is None:
                    file = self._fetch(path, shard, fetch)
                elif not _trusted(file, path, shard):
                    os.close(file)
                    file = None
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from error
        with suppress(PermissionError):  # another user's
            os.utime(file, ns=(time.time_ns(), os.fstat(file).st_mtime_ns))
        return file

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Waits until no other process or thread of the node is in a block of this name."""
        path = self.folder("locks") / f"{name}.lock"
        while (file := flock_in_place(self._open_lock(path), path, fcntl.LOCK_EX)) is None:
            pass  # somebody has removed it meanwhile
        try:
            yield
        finally:
            os.close(file)

    def _open_lock(self, path: Path) -> int:
        for last in (False, True):
            try:
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    return self._create(path, 0o666)
            except PermissionError:
                if last:
                    raise
                time.sleep(PAUSE)  # just made by another user, and about to be opened to all
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _fetch(self, path: Path, shard: Shard, fetch: Fetch) -> int | None:
        """Fetches a shard and returns it open, or None if another process just did."""
        part = path.with_name(path.name + PART)
        with self.alone(f"{path.parent.name}-{path.name}"):
            if path.exists():
                return None
            part.unlink(missing_ok=True)  # of a process that was killed
            file = flock_in_place(self._create(part, 0o644), part, fcntl.LOCK_EX)
            if file is None:
                return None
            try:
                self._wait_for_room(file, path, shard)
                with os.fdopen(file, "r+b", closefd=False) as out:
                    fetch(shard, out)
                publish(part, path)
                fcntl.flock(file, fcntl.LOCK_SH)
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(file)
                raise
            return file

    def _wait_for_room(self, file: int, path: Path, shard: Shard) -> None:
        if self.limit and shard.bytes > self.limit:
            raise UserError(
                f"data.cache_bytes={self.limit}: is below the {shard.bytes} bytes of {shard.name}; "
                "raise it"
            )
        end = time.monotonic() + PATIENCE
        while not self._reserve(file, path, shard.bytes):
            if time.monotonic() > end:
                limit = f"data.cache_bytes={self.limit}" if self.limit else "the disk is full"
                raise UserError(
                    f"{self.root} has no room for the {shard.bytes} bytes of {shard.name} ({limit}), "
                    f"and running processes use what is there; make room, or set data.cache or "
                    f"${VARIABLE} to a folder on a larger disk"
                )
            time.sleep(PAUSE)

    def _reserve(self, file: int, path: Path, size: int) -> bool:
        """Takes `size` bytes of the disk for a file; removes others for it as far as needed."""
        with self.alone("room"):
            os.ftruncate(file, 0)
            while True:
                if not self.limit or self._used() + size <= self.limit:
                    try:
                        os.posix_fallocate(file, 0, size)
                        return True
                    except OSError as error:
                        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                            raise
                        os.ftruncate(file, 0)
                if not self._remove_one(path.parent):
                    return False

    def _remove_one(self, own: Path) -> bool:
        """Removes the shard that nobody holds and that was not used for longest.

        Those of other datasets than `own` go first. Returns whether there was one.
        """
        files = []
        for path in self._files():
            with suppress(FileNotFoundError):
                files.append((path.parent == own, path.stat().st_atime_ns, path))
        for _, _, path in sorted(files):
            flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
            try:
                file = open_and_flock(path, flags, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held, or not ours to remove
                continue
            if file is None:
                continue
            try:
                path.unlink()
                return True
            except PermissionError:
                continue
            finally:
                os.close(file)
        return False

    def _used(self) -> int:
        used = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                used += path.stat().st_size
        return used

    def _files(self) -> Iterator[Path]:
        """Yields the shards of the cache: its folders are named after the manifest in them."""
        for manifest in self.root.glob(f"*/{MANIFEST_NAME}"):
            folder = manifest.parent
            if not folder.is_symlink() and read_mark(manifest).get("sha256") == folder.name:
                for pattern in ("*.tar", f"*.tar{PART}"):
                    yield from folder.glob(pattern)


def unwritable(root: Path, error: OSError) -> UserError:
    """Returns what to say when the cache folder cannot be written to."""
    return UserError(
        f"{root} cannot be written ({error.strerror}); set data.cache or ${VARIABLE} to another folder"
    )


def note(text: str) -> None:
    """Prints a line on standard error, once for all processes of a run."""
    if process_rank() == 0:
        print(f"cpprune: {text}", file=sys.stderr)


def _trusted(file: int, path: Path, shard: Shard) -> bool:
    """Says whether an open shard is this user's own, or another's that holds what it should."""
    found = os.fstat(file)
    known = found.st_dev, found.st_ino, found.st_mtime_ns
    if found.st_uid == os.getuid() or known in _compared:
        return True
    with os.fdopen(os.dup(file), "rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    if sha256 == shard.sha256 and found.st_size == shard.bytes:
        _compared.add(known)
        return True
    note(f"{path}, which {_name(found.st_uid)} fetched, is damaged: it is fetched again")
    return False


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
