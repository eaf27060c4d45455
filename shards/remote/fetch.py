"""Files of a remote folder: bounded, repeated when the network fails, verified by SHA-256.

http and https are ours (`shards.remote.http`); what else there is, fsspec knows.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO

from shards.errors import UserError
from shards.remote import transfer
from shards.remote.http import ask_for
from shards.remote.transfer import Answer, BrokenError, repeated, within

# What is asked for in one piece, in bytes; when it does not come in time, an eighth of it.
BLOCK, LEAST_BLOCK = 8 << 20, 1 << 14
# What fsspec needs beside itself.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}

_ADVICE = "check the address, your permissions and the network, and start again"


def is_remote(location: str) -> bool:
    """Says whether a location is a URL and not a folder of this machine."""
    return "://" in location


def fetch_bytes(url: str, most: int) -> bytes:
    """Returns a small file of at most so many bytes.

    Raises:
        UserError: it does not exist, cannot be fetched, or is longer.
    """
    file = io.BytesIO()
    _fetch(url, _Received(file), most, None)
    return file.getvalue()


def fetch_file(
    url: str, sha256: str, most: int, file: BinaryIO | None, *, exact: bool = True
) -> None:
    """Writes a remote file to one that is open, from its start.

    Args:
        url: of the file.
        sha256: that its bytes have to have.
        most: how many there may be; no more are taken.
        file: where they go; None to look at them only.
        exact: whether there have to be so many.

    Raises:
        UserError: it cannot be fetched, or its bytes are others.
        OSError: `file` cannot be written.
    """
    _fetch(url, _Received(file), most, sha256, exact=exact)


class _Received:
    """What has arrived of a file: how many bytes, and their SHA-256."""

    def __init__(self, file: BinaryIO | None) -> None:
        self.file = file
        self.begin()

    def begin(self) -> None:
        """Takes the next block for the first one."""
        self.bytes, self.digest = 0, hashlib.sha256()
        if self.file is not None:
            self.file.seek(0)

    def add(self, block: bytes) -> None:
        self.bytes += len(block)
        self.digest.update(block)
        if self.file is not None:
            self.file.write(block)

    def end(self) -> None:
        """Leaves nothing behind the last byte that an earlier try may have brought."""
        if self.file is not None:
            self.file.truncate(self.bytes)
            self.file.flush()


def _fetch(
    url: str, received: _Received, most: int, sha256: str | None, *, exact: bool = False
) -> None:
    ask = _source(url)
    bound = f"{most:,} bytes that it has" if exact else f"{most:,} bytes that it may have"

    def attempt() -> None:
        with closing(ask(received.bytes)) as answer:
            if answer.total is not None and (
                answer.total > most or (exact and answer.total < most)
            ):
                raise UserError(
                    f"{url} is damaged: the server has {answer.total:,} bytes, not the {bound}; "
                    "upload it again"
                )
            if answer.offset != received.bytes:
                received.begin()
            for block in answer.blocks:
                if received.bytes + len(block) > most:
                    raise UserError(f"{url} is damaged: the server sends more than the {bound}")
                received.add(block)
        whole = most if exact else answer.total
        if whole is not None and received.bytes < whole:
            raise BrokenError(
                f"cannot be fetched (it ends after {received.bytes:,} of {whole:,} bytes)"
            )
        received.end()
        found = received.digest.hexdigest()
        if sha256 not in (None, found):
            size = received.bytes
            received.begin()
            raise BrokenError(
                f"damaged: expected sha256 {sha256}, found {found} of {size:,} bytes",
                advice="upload it again",
            )

    repeated(url, attempt, lambda: received.bytes, _ADVICE)


def _source(url: str) -> Callable[[int], Answer]:
    """Returns what opens a file from a byte on."""
    if url.startswith(("http://", "https://")):
        return partial(ask_for, url)
    filesystem, path = _filesystem(url)
    size = BLOCK

    def ask(start: int) -> Answer:
        try:
            file = within(transfer.SILENCE, partial(filesystem.open, block_size=size), path, "rb")
        except FileNotFoundError as error:
            raise UserError(f"{url} does not exist: check the address") from error
        except BrokenError:
            raise
        except Exception as error:  # every backend has its own
            raise _unreachable(error) from error
        total = getattr(file, "size", None)
        offset = _moved(file, start)
        return Answer(blocks(file), offset, total if isinstance(total, int) else None, file.close)

    def blocks(file: Any) -> Iterator[bytes]:
        nonlocal size
        try:
            while block := within(transfer.SILENCE, file.read, size):
                yield block
        except BrokenError:
            size = max(size >> 3, LEAST_BLOCK)
            raise
        except Exception as error:  # every backend has its own
            raise _unreachable(error) from error

    return ask


def _moved(file: Any, start: int) -> int:
    """Goes to a byte of a file, if that can be done, and returns where it is."""
    try:
        file.seek(start)
    except Exception:  # every backend has its own
        return 0
    return start


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        raise UserError(
            f"{url}: {protocol}:// needs {package}: `pip install {package}`"
            if package
            else f"{url}: {protocol}:// needs a package that is not installed ({error})"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{url}: cannot be used ({_reason(error)}); use a folder, s3://, gs:// or https://"
        ) from error
    return filesystem, path


def _unreachable(error: Exception) -> BrokenError:
    return BrokenError(f"cannot be fetched ({_reason(error)})")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
