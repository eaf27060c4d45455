"""Fetched shards, shared by the processes and the runs of a node.

A shard is there whole or not at all: it is written to `NAME.part` and renamed. Files that are being
fetched or read are locked (flock), and only what nobody holds is removed. Who fetches a shard also holds
a lock of its own for it, which the others wait for: a shard stays locked as long as it is read. The
kernel lets go of the locks of a process that was killed.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.durable import sync
from shards.errors import InputError
from shards.manifest import MANIFEST_NAME, Shard
from shards.ownership import read_mark

VARIABLE = "CPPRUNE_CACHE"
PART = ".part"
# How long a fetch waits for room that others hold, in seconds.
PATIENCE = 60.0
PAUSE = 0.05

Fetch = Callable[[Shard, BinaryIO], None]


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
            fetch: writes its bytes to a file, or raises InputError.

        Returns:
            A file descriptor that keeps the shard from being removed until it is closed.

        Raises:
            InputError: the shard cannot be fetched, or there is no room for it.
        """
        path = folder / shard.name
        file = None
        try:
            while file is None:
                # Another process may remove the shard, or finish it, between the two.
                file = _hold(path, os.O_RDONLY, fcntl.LOCK_SH)
                if file is None:
                    file = self._fetch(path, shard, fetch)
        except OSError as error:
            raise unwritable(self.root, error) from error
        with suppress(PermissionError):  # another user's
            os.utime(file)
        return file

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Waits until no other process or thread of the node is in a block of this name."""
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fetch(self, path: Path, shard: Shard, fetch: Fetch) -> int | None:
        """Fetches a shard and returns it open, or None if another process just did."""
        part = path.with_name(path.name + PART)
        with self.alone(f"{path.parent.name}-{path.name}"):
            if path.exists():
                return None
            file = _hold(part, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            if file is None:
                return None
            try:
                self._wait_for_room(file, path, shard)
                with os.fdopen(file, "r+b", closefd=False) as out:
                    fetch(shard, out)
                os.fsync(file)
                part.rename(path)
                sync(path.parent)
                fcntl.flock(file, fcntl.LOCK_SH)
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(file)
                raise
            return file

    def _wait_for_room(self, file: int, path: Path, shard: Shard) -> None:
        if self.limit and shard.bytes > self.limit:
            raise InputError(
                f"data.cache_bytes={self.limit}: is below the {shard.bytes} bytes of {shard.name}; "
                "raise it"
            )
        end = time.monotonic() + PATIENCE
        while not self._reserve(file, path, shard.bytes):
            if time.monotonic() > end:
                limit = f"data.cache_bytes={self.limit}" if self.limit else "the disk is full"
                raise InputError(
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
                files.append((path.parent == own, path.stat().st_mtime_ns, path))
        for _, _, path in sorted(files):
            try:
                file = _hold(path, os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                continue
            if file is not None:
                path.unlink()
                os.close(file)
                return True
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


def unwritable(root: Path, error: OSError) -> InputError:
    """Returns what to say when the cache folder cannot be written to."""
    return InputError(
        f"{root} cannot be written ({error.strerror}); set data.cache or ${VARIABLE} to another folder"
    )


def _hold(path: Path, flags: int, how: int) -> int | None:
    """Opens and locks a file; None if it is not there, or no longer once it is locked.

    Raises:
        BlockingIOError: with LOCK_NB, if another holds it.
    """
    try:
        file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, how)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None
