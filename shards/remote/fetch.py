"""Fetching files of a remote dataset: bounded in size, retried, verified by SHA-256.

http(s) is read by `shards.remote.http`, every other protocol by fsspec.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from shards.errors import UserError, one_line
from shards.remote import transfer
from shards.remote.http import open_url
from shards.remote.transfer import Response, TransientError, with_retries, with_timeout

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Bytes of one read; when a read times out, the next attempt uses an eighth of it.
BLOCK, MIN_BLOCK = 8 << 20, 1 << 14
# Packages that fsspec needs for a protocol.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}

_ADVICE = "check the address, your permissions and the network, and start again"


def is_remote(location: str) -> bool:
    """Returns whether a location is a URL rather than a local path."""
    return "://" in location


def fetch_bytes(url: str, max_bytes: int) -> bytes:
    """Returns the contents of a small file.

    Raises:
        UserError: the file does not exist, cannot be fetched, or has more than `max_bytes`.
    """
    file = io.BytesIO()
    _fetch(url, _Received(file), max_bytes, None)
    return file.getvalue()


def fetch_file(
    url: str, sha256: str, max_bytes: int, file: BinaryIO | None, *, exact: bool = True
) -> None:
    """Fetches a remote file and verifies its SHA-256.

    Args:
        url: URL of the file.
        sha256: expected SHA-256.
        max_bytes: no more bytes are accepted.
        file: open file to write to, from its start; None to verify only.
        exact: whether the file has to have exactly `max_bytes`.

    Raises:
        UserError: the file cannot be fetched, or differs from what is expected.
        OSError: `file` cannot be written.
    """
    _fetch(url, _Received(file), max_bytes, sha256, exact=exact)


class _Received:
    """Received bytes of a file: their number and SHA-256, and where they are written."""

    def __init__(self, file: BinaryIO | None) -> None:
        self.file = file
        self.begin()

    def begin(self) -> None:
        """Starts over from the first byte."""
        self.bytes, self.digest = 0, hashlib.sha256()
        if self.file is not None:
            self.file.seek(0)

    def add(self, block: bytes) -> None:
        self.bytes += len(block)
        self.digest.update(block)
        if self.file is not None:
            self.file.write(block)

    def end(self) -> None:
        """Cuts off what an earlier, longer attempt may have written."""
        if self.file is not None:
            self.file.truncate(self.bytes)
            self.file.flush()


def _fetch(
    url: str, received: _Received, max_bytes: int, sha256: str | None, *, exact: bool = False
) -> None:
    open_at = _opener(url)
    bound = f"{max_bytes:,} bytes that it has" if exact else f"{max_bytes:,} bytes that it may have"

    def attempt() -> None:
        with closing(open_at(received.bytes)) as response:
            if response.total is not None and (
                response.total > max_bytes or (exact and response.total < max_bytes)
            ):
                raise UserError(
                    f"{url} is damaged: the server has {response.total:,} bytes, not the {bound}; "
                    "upload it again"
                )
            if response.offset != received.bytes:
                received.begin()
            for block in response.blocks:
                if received.bytes + len(block) > max_bytes:
                    raise UserError(f"{url} is damaged: the server sends more than the {bound}")
                received.add(block)
        whole = max_bytes if exact else response.total
        if whole is not None and received.bytes < whole:
            raise TransientError(
                f"cannot be fetched (it ends after {received.bytes:,} of {whole:,} bytes)"
            )
        received.end()
        found = received.digest.hexdigest()
        if sha256 not in (None, found):
            size = received.bytes
            received.begin()
            raise TransientError(
                f"damaged: expected sha256 {sha256}, found {found} of {size:,} bytes",
                advice="upload it again",
            )

    with_retries(url, attempt, lambda: received.bytes, _ADVICE)


def _opener(url: str) -> Callable[[int], Response]:
    """Returns a function that opens the file at a byte offset."""
    if url.startswith(("http://", "https://")):
        return partial(open_url, url)
    filesystem, path = _filesystem(url)
    size = BLOCK

    def open_at(start: int) -> Response:
        try:
            file = with_timeout(
                transfer.TIMEOUT, partial(filesystem.open, block_size=size), path, "rb"
            )
        except FileNotFoundError as error:
            raise UserError(f"{url} does not exist: check the address") from error
        except TransientError:
            raise
        except Exception as error:  # each backend raises its own
            raise _unreachable(error) from error
        total = getattr(file, "size", None)
        offset = _seek(file, start)
        return Response(blocks(file), offset, total if isinstance(total, int) else None, file.close)

    def blocks(file: BinaryIO) -> Iterator[bytes]:
        nonlocal size
        try:
            while block := with_timeout(transfer.TIMEOUT, file.read, size):
                yield block
        except TransientError:
            size = max(size >> 3, MIN_BLOCK)
            raise
        except Exception as error:  # each backend raises its own
            raise _unreachable(error) from error

    return open_at


def _seek(file: BinaryIO, start: int) -> int:
    """Seeks to an offset if the file supports it; returns the position reached."""
    try:
        file.seek(start)
    except Exception:  # each backend raises its own
        return 0
    return start


def _filesystem(url: str) -> "tuple[AbstractFileSystem, str]":
    """Returns the fsspec file system of a URL, and the path in it."""
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
            f"{url}: cannot be used ({one_line(error)}); use a folder, s3://, gs:// or https://"
        ) from error
    return filesystem, path


def _unreachable(error: Exception) -> TransientError:
    return TransientError(f"cannot be fetched ({one_line(error)})")
