"""A remote file system, `flaky://`, whose faults are made to order."""

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem


class FlakyFileSystem(AbstractFileSystem):
    """Gives the files of this machine, after `fault` had its way with them.

    `fault` gets a file's name and the block that was read, b"" at the end, and returns what arrives.
    Every file that is opened is noted in the file `log`.
    """

    protocol = "flaky"
    fault: ClassVar[Callable[[str, bytes], bytes]] = staticmethod(lambda name, block: block)
    log: ClassVar[Path] = Path(os.devnull)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "FlakyFile":
        with self.log.open("a") as log:
            log.write(Path(path).name + "\n")
        return FlakyFile(path)

    @classmethod
    def opened(cls, kind: str = ".tar") -> list[str]:
        """Return the names of the files that were opened, in order."""
        return [name for name in cls.log.read_text().split() if name.endswith(kind)]


class FlakyFile(FileIO):
    """A file that is being read."""

    def read(self, size: int | None = -1) -> bytes:
        """Read from it; what comes of that is up to the fault."""
        return FlakyFileSystem.fault(Path(str(self.name)).name, super().read(size) or b"")


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
