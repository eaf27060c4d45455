"""A dataset folder on this machine."""

import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from shards.errors import UserError
from shards.manifest import Shard


class LocalFolder:
    """The files of a dataset, where they were built; see `shards.remote.folder.RemoteFolder`.

    Attributes:
        location: the folder.
        files: the same.
        one_by_one: whether no more than one shard may be held open.
        remedy: what to do about a damaged clip.
    """

    one_by_one = False

    def __init__(self, path: Path) -> None:
        self.location = self.files = path
        self.remedy = f"see `cpprune shards verify {quote(str(path))}`"

    def open(self, shard: Shard) -> int:
        """Returns a file descriptor of a shard.

        Raises:
            UserError: it cannot be read.
        """
        path = self.files / shard.name
        try:
            # A named pipe would wait for a writer; reading at an offset then says what it is.
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def expect(self, shards: Iterable[Shard]) -> None:
        """Does nothing: all are there."""

    def close(self) -> None:
        """Does nothing."""
