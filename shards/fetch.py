"""Files of a remote folder, over fsspec: repeated when the network fails, verified by SHA-256."""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from shards.errors import InputError

Result = TypeVar("Result")

BLOCK = 8 << 20
# Seconds before the second and the third try.
PAUSES = (1.0, 5.0)
# What fsspec needs beside itself.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}


class _FetchError(Exception):
    """One try failed; the message says why and what to do if the others fail too."""


def is_remote(location: str) -> bool:
    """Says whether a location is a URL and not a folder of this machine."""
    return "://" in location


def fetch_bytes(url: str) -> bytes:
    """Returns a small file.

    Raises:
        InputError: it does not exist or cannot be fetched.
    """
    filesystem, path = _filesystem(url)

    def attempt() -> bytes:
        try:
            return bytes(filesystem.cat_file(path))
        except FileNotFoundError as error:
            raise InputError(f"{url} does not exist: check the address") from error
        except Exception as error:  # every backend has its own
            raise _unreachable(error) from error

    return _repeated(url, attempt)


def fetch_file(url: str, sha256: str, size: int | None, file: BinaryIO) -> None:
    """Writes a remote file to one that is open, from its start.

    Args:
        url: of the file.
        sha256: that its bytes have to have.
        size: how many there have to be, and never more are written; None if that is not known.
        file: where they go.

    Raises:
        InputError: it cannot be fetched, or its bytes are others.
        OSError: `file` cannot be written.
    """
    filesystem, path = _filesystem(url)

    def attempt() -> None:
        digest, found = hashlib.sha256(), 0
        file.seek(0)
        for block in _blocks(filesystem, path):
            digest.update(block)
            found += len(block)
            if size is None or found <= size:
                file.write(block)
        file.flush()
        if digest.hexdigest() != sha256:
            expected = sha256 if size is None else f"{sha256} of {size} bytes"
            raise _FetchError(
                f"is damaged: expected sha256 {expected}, found {digest.hexdigest()} of {found} "
                "bytes; upload it again"
            )

    _repeated(url, attempt)


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        raise InputError(
            f"{url}: {protocol}:// needs {package}: `pip install {package}`"
            if package
            else f"{url}: {protocol}:// needs a package that is not installed ({error})"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{url}: cannot be used ({_reason(error)}); use a folder, s3://, gs:// or https://"
        ) from error
    return filesystem, path


def _blocks(filesystem: Any, path: str) -> Iterator[bytes]:
    try:
        with filesystem.open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except Exception as error:  # every backend has its own
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> _FetchError:
    return _FetchError(
        f"cannot be fetched ({_reason(error)}); check the address, your permissions and the network, "
        "and start again"
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _repeated(url: str, attempt: Callable[[], Result]) -> Result:
    for pause in PAUSES:
        try:
            return attempt()
        except _FetchError:
            time.sleep(pause)
    try:
        return attempt()
    except _FetchError as error:
        raise InputError(f"{url} {error} (tried {len(PAUSES) + 1} times)") from error
