"""Shards that a process holds open, no more than it may, and whole reads from them."""

import os
import resource
from collections.abc import Collection, Sequence

from shards.local import LocalFolder
from shards.manifest import Shard
from shards.remote.folder import RemoteFolder

MOST_OPEN_SHARDS = 512


def most_open_shards() -> int:
    """Returns how many shards may be held open: half of the files that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MOST_OPEN_SHARDS, soft // 2)) if soft > 0 else MOST_OPEN_SHARDS


class OpenShards:
    """File descriptors of shards, by their number.

    Args:
        folder: where the shards are.
        shards: of the dataset.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, shards
        self._files: dict[int, int] = {}

    def file(self, shard: int) -> int:
        """Returns the descriptor of a shard; opens it if need be.

        Raises:
            UserError: it cannot be opened.
        """
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = self.folder.open(self.shards[shard])
        return file

    def make_room(self, wanted: Collection[int], most: int) -> None:
        """Closes shards, those that were opened first, until `wanted` fit beside what stays open."""
        wanted = set(wanted)
        excess = len(self._files.keys() | wanted) - most
        if excess > 0:
            for shard in [shard for shard in self._files if shard not in wanted][:excess]:
                self.close(shard)

    def close(self, shard: int) -> None:
        """Closes a shard, if it is open."""
        file = self._files.pop(shard, None)
        if file is not None:
            os.close(file)

    def close_all(self) -> None:
        """Closes what is open."""
        while self._files:
            os.close(self._files.popitem()[1])


def read_on(
    file: int, buffers: Sequence[bytearray | memoryview], offset: int, got: int = 0
) -> bool:
    """Fills buffers from a place in a file, of which a first read brought `got` bytes.

    A read may bring less than it should: on a network, or above 2 GiB. Only when it brings nothing the
    file has ended.

    Returns:
        Whether the file has so many bytes there.
    """
    left = [memoryview(buffer) for buffer in buffers]
    while True:
        offset += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if not left:
            return True
        left[0] = left[0][got:]
        got = os.preadv(file, left, offset)
        if got == 0:
            return False
