"""Cache of fetched shards, shared by the processes, runs and users of a node.

Shards appear atomically: each is written to `NAME.part` and renamed. A file is locked while it is
fetched or read, and only unlocked files are evicted. A separate lock for each shard, which the other
processes wait for, makes one process fetch it: the file itself stays locked as long as it is read. The
kernel releases the locks of a process that was killed.

Files get the permissions of the cache folder: who may read the folder may read them, and who may write
to it may lock them. A shard that another user fetched is used after its SHA-256 has been verified.
"""

import errno
import fcntl
import hashlib
import os
import pwd
import stat
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
from shards.log import LOG
from shards.manifest import MANIFEST_NAME, Shard

VARIABLE = "CPPRUNE_CACHE"
PART = ".part"
# Seconds that a fetch waits for room that other processes hold.
PATIENCE = 60.0
PAUSE = 0.05

Fetch = Callable[[Shard, BinaryIO], None]

# Device, inode and mtime of other users' shards whose SHA-256 this process has verified.
_verified: set[tuple[int, int, int]] = set()


def default_root() -> Path:
    """Returns `$CPPRUNE_CACHE`, or `~/.cache/cpprune`."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/cpprune").expanduser()


@dataclass(frozen=True)
class Cache:
    """Cache folder, with a folder for each dataset.

    Attributes:
        root: the cache folder.
        limit: bytes that the shards of all datasets may take together; 0 for no limit but the disk.
    """

    root: Path
    limit: int = 0

    def prepared(self) -> "Cache":
        """Creates the folder and returns the cache to use.

        In a folder with the sticky bit, such as /tmp, that is a folder of this user in it.

        Raises:
            UserError: another user has made the folder of that name.
            OSError: the folder cannot be created.
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
        """Returns a folder in the cache, which is created with the permissions of the cache folder."""
        path = self.root / name
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(stat.S_IMODE(self.root.stat().st_mode))
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise UserError(f"{path} is not a folder; remove it")
        return path

    @contextmanager
    def new_file(self, path: Path) -> Iterator[BinaryIO]:
        """Yields a file to write, which is moved to `path` at the end of the block."""
        temporary = path.with_name(temporary_name(path.name))
        temporary.unlink(missing_ok=True)
        try:
            with os.fdopen(self._create(temporary, 0o644), "w+b") as file:
                yield file
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _create(self, path: Path, mode: int) -> int:
        """Creates a file with the permissions that both `mode` and the cache folder grant."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        os.fchmod(file, self.root.stat().st_mode & mode)
        return file

    def fits(self, size: int) -> bool:
        """Returns whether shards of `size` bytes in all would fit if no others were cached."""
        disk = os.statvfs(self.root)
        room = disk.f_bavail * disk.f_frsize + self._used()
        return size <= (min(room, self.limit) if self.limit else room)

    def open(self, folder: Path, shard: Shard, fetch: Fetch) -> int:
        """Opens a shard for reading; fetches it first if it is missing.

        Args:
            folder: folder of the dataset, below `root`.
            shard: the shard.
            fetch: writes the shard to an open file, or raises UserError.

        Returns:
            A file descriptor; the shard is not evicted until it is closed.

        Raises:
            UserError: the shard cannot be fetched, or there is no room for it.
        """
        path = folder / shard.name
        file = None
        try:
            while file is None:
                # Between the two, another process may evict the shard, or finish it.
                file = open_and_flock(path, os.O_RDONLY, fcntl.LOCK_SH)
                if file is None:
                    file = self._fetch(path, shard, fetch)
                elif not _trusted(file, path, shard):
                    os.close(file)
                    file = None
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write_cache(self.root, error) from error
        with suppress(PermissionError):  # a file of another user
            os.utime(file, ns=(time.time_ns(), os.fstat(file).st_mtime_ns))
        return file

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Runs the block while no other process or thread of the node runs one of this name."""
        path = self.folder("locks") / f"{name}.lock"
        while (file := flock_in_place(self._open_lock(path), path, fcntl.LOCK_EX)) is None:
            pass  # it was removed meanwhile
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
                time.sleep(
                    PAUSE
                )  # just created by another user, who has yet to widen its permissions
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _fetch(self, path: Path, shard: Shard, fetch: Fetch) -> int | None:
        """Fetches a shard and returns its descriptor; None if another process has just fetched it."""
        part = path.with_name(path.name + PART)
        with self.exclusive(f"{path.parent.name}-{path.name}"):
            if path.exists():
                return None
            part.unlink(missing_ok=True)  # left by a process that was killed
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
        """Allocates `size` bytes of disk for a file; evicts as many shards as that needs."""
        with self.exclusive("room"):
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
                if not self._evict_one(path.parent):
                    return False

    def _evict_one(self, own: Path) -> bool:
        """Evicts the least recently used shard that nobody holds; returns whether there was one.

        Shards of datasets other than `own` go first.
        """
        files = []
        for path in self._files():
            with suppress(FileNotFoundError):
                files.append((path.parent == own, path.stat().st_atime_ns, path))
        for _, _, path in sorted(files):
            flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
            try:
                file = open_and_flock(path, flags, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # in use, or not accessible
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
        """Yields the shard files of the cache, only from folders named after the manifest in them."""
        for manifest in self.root.glob(f"*/{MANIFEST_NAME}"):
            folder = manifest.parent
            if not folder.is_symlink() and read_mark(manifest).get("sha256") == folder.name:
                for pattern in ("*.tar", f"*.tar{PART}"):
                    yield from folder.glob(pattern)


def cannot_write_cache(root: Path, error: OSError) -> UserError:
    """Returns the error for a cache folder that cannot be written."""
    return UserError(
        f"{root} cannot be written ({error.strerror}); set data.cache or ${VARIABLE} to another folder"
    )


def warn_on_rank_0(text: str) -> None:
    """Logs a warning, from rank 0 of a run."""
    if process_rank() == 0:
        LOG.warning(text)


def _trusted(file: int, path: Path, shard: Shard) -> bool:
    """Returns whether an open shard belongs to this user, or is another user's and intact."""
    found = os.fstat(file)
    known = found.st_dev, found.st_ino, found.st_mtime_ns
    if found.st_uid == os.getuid() or known in _verified:
        return True
    with os.fdopen(os.dup(file), "rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    if sha256 == shard.sha256 and found.st_size == shard.bytes:
        _verified.add(known)
        return True
    warn_on_rank_0(
        f"{path}, which {_user_name(found.st_uid)} fetched, is damaged: it is fetched again"
    )
    return False


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
