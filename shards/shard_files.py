"""Shard files of a local dataset, and the descriptors of the shards that a process holds open."""

import os
import resource
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from shlex import quote

from shards.errors import UserError
from shards.manifest import Shard
from shards.remote.folder import RemoteFolder

MAX_OPEN_SHARDS = 512


class LocalFolder:
    """Dataset folder on a local or mounted disk; `shards.remote.folder.RemoteFolder` is its counterpart.

    Attributes:
        location: the folder.
        files: the same.
        one_by_one: whether only one shard may be open at a time.
        remedy: what to do about a damaged sample; ends error messages.
    """

    one_by_one = False

    def __init__(self, path: Path) -> None:
        self.location = self.files = path
        self.remedy = f"see `cpprune shards verify {quote(str(path))}`"

    def open(self, shard: Shard) -> int:
        """Returns a new file descriptor of a shard.

        Raises:
            UserError: the shard cannot be read.
        """
        path = self.files / shard.name
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer. A positioned read from
            # one fails, with a message that says why.
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Does nothing: the shards are here."""

    def close(self) -> None:
        """Does nothing."""


class OpenShards:
    """Cache of open file descriptors, by shard number.

    Args:
        folder: folder of the dataset.
        shards: all shards of the dataset.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, shards
        self._files: dict[int, int] = {}

    def file(self, shard: int) -> int:
        """Returns the descriptor of a shard, which is opened if necessary.

        Raises:
            UserError: the shard cannot be opened.
        """
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = self.folder.open(self.shards[shard])
        return file

    def make_room(self, wanted: Collection[int], limit: int) -> None:
        """Closes the shards that were opened first, until `wanted` fit below `limit` open ones."""
        wanted = set(wanted)
        excess = len(self._files.keys() | wanted) - limit
        if excess > 0:
            for shard in [shard for shard in self._files if shard not in wanted][:excess]:
                self.close(shard)

    def close(self, shard: int) -> None:
        """Closes a shard, if it is open."""
        file = self._files.pop(shard, None)
        if file is not None:
            os.close(file)

    def close_all(self) -> None:
        """Closes all open shards."""
        while self._files:
            os.close(self._files.popitem()[1])


def max_open_shards() -> int:
    """Returns how many shards may be open: at most half of the process's limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MAX_OPEN_SHARDS, soft // 2)) if soft > 0 else MAX_OPEN_SHARDS


def read_fully(
    file: int, buffers: Sequence[bytearray | memoryview], offset: int, done: int = 0
) -> bool:
    """Fills buffers from an offset of a file.

    One read may return less than was asked for, on a network or above 2 GiB; only a read that returns
    nothing is at the end of the file.

    Args:
        file: descriptor to read from.
        buffers: where the bytes go, one buffer after the other.
        offset: of the first byte in the file.
        done: bytes that an earlier read has already put into the buffers.

    Returns:
        Whether the file was long enough.
    """
    left = [memoryview(buffer) for buffer in buffers]
    while True:
        offset += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if not left:
            return True
        left[0] = left[0][done:]
        done = os.preadv(file, left, offset)
        if done == 0:
            return False
