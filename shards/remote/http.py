"""Resumable HTTP downloads, retried while the network fails."""

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from shards.credentials import authorization
from shards.errors import UserError
from shards.remote import transfer
from shards.remote.transfer import Response, TransientError, with_retries, with_timeout

BLOCK = 1 << 20
# Status codes that are worth a retry.
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
_ADVICE = "check the network and start again: it resumes where it broke off"


def remote_size(url: str) -> int | None:
    """Returns the size of a file in bytes; None if the server does not say.

    Raises:
        UserError: the file is not available.
    """

    def ask() -> int | None:
        with closing(open_url(url, 0)) as response:
            return response.total

    return with_retries(url, ask, lambda: 0, _ADVICE)


def fetch(url: str, part: Path, max_bytes: int, advance: Callable[[int], None]) -> None:
    """Downloads a file, resuming after the bytes that `part` already holds if the server supports it.

    Args:
        url: URL of the file.
        part: file to write. It is kept on failure, so that the next call can resume.
        max_bytes: largest size that is accepted.
        advance: called with every change of the size of `part`, in bytes.

    Raises:
        UserError: the file is not available, or too large.
        OSError: `part` cannot be written.
    """
    with_retries(
        url, lambda: _fetch_rest(url, part, max_bytes, advance), lambda: file_size(part), _ADVICE
    )


def _fetch_rest(url: str, part: Path, max_bytes: int, advance: Callable[[int], None]) -> None:
    have = file_size(part)
    with closing(open_url(url, have)) as response, part.open("ab") as file:
        if (response.total or 0) > max_bytes:
            raise UserError(
                f"{url} has {response.total:,} bytes, and at most {max_bytes:,} are expected"
            )
        file.truncate(response.offset)
        advance(response.offset - have)
        found = response.offset
        for block in response.blocks:
            found += len(block)
            if found > max_bytes:
                raise UserError(f"{url} sends more than the {max_bytes:,} bytes that are expected")
            file.write(block)
            advance(len(block))
    if response.total is not None and found < response.total:
        raise TransientError(f"broke off after {found:,} of {response.total:,} bytes")


def file_size(path: Path) -> int:
    """Returns the size of a local file in bytes; 0 if it is missing."""
    return path.stat().st_size if path.is_file() else 0


def open_url(url: str, start: int) -> Response:
    """Requests a file from byte `start` on; a server without range requests sends all of it.

    Raises:
        TransientError: the request failed, and may succeed later.
        UserError: the request is refused or invalid.
    """
    try:
        address, credentials = authorization(url)
        headers = {"User-Agent": "cpprune"} | ({"Range": f"bytes={start}-"} if start else {})
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 - http(s) only
        if credentials:  # not sent on when redirected
            request.add_unredirected_header("Authorization", credentials)
    except ValueError as error:
        raise UserError(f"{url} is not a valid URL ({error})") from error
    try:
        response = with_timeout(transfer.TIMEOUT, _open, request)
    except urllib.error.HTTPError as error:
        with closing(error):
            return _refused(url, start, error)
    except TimeoutError as error:  # of the socket, which may end its wait first
        raise TransientError(f"timed out: nothing came for {transfer.TIMEOUT:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"cannot be reached ({error or type(error).__name__})") from error
    if response.status != 206:
        length = response.headers["Content-Length"] or ""
        compressed = response.headers["Content-Encoding"] not in (None, "identity")
        total = int(length) if length.isdecimal() and not compressed else None
        return Response(_blocks(response), 0, total, response.close)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
    if span is None or int(span[1]) > start:
        response.close()
        raise TransientError(f"sends other bytes than those from {start:,} on")
    total = None if span[2] == "*" else int(span[2])
    return Response(_blocks(response), int(span[1]), total, response.close)


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    response: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310
        request, timeout=transfer.TIMEOUT
    )
    return response


def _refused(url: str, start: int, error: urllib.error.HTTPError) -> Response:
    """Turns a response with an error status into an exception, or an empty rest of the file."""
    if error.code == 416 and start:
        # Nothing from that byte on: either the file is complete, or it is another one.
        total = (error.headers["Content-Range"] or "").rpartition("/")[2]
        if total == str(start):
            nothing = io.BytesIO()
            return Response(iter(()), start, start, nothing.close)
        return open_url(url, 0)
    if error.code in _TRANSIENT:
        wait = error.headers["Retry-After"] or ""
        seconds = min(float(wait), _LONGEST_WAIT) if wait.isdigit() else 0.0
        raise TransientError(f"the server says {error.code} {error.reason}", seconds)
    advice = "check the address"
    if error.code in (401, 403):
        advice = "give name and password in the address, or for its host in ~/.netrc (they are not "
        advice += "written down with a run)"
    raise UserError(f"{url}: the server says {error.code} {error.reason}; {advice}")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    start, received = time.monotonic(), 0
    try:
        while block := response.read1(BLOCK):
            yield block
            received += len(block)
            if received >= transfer.MIN_BYTES:
                start, received = time.monotonic(), 0
            elif time.monotonic() > start + transfer.TIMEOUT:
                raise TransientError(f"timed out: {received} bytes came in {transfer.TIMEOUT:g} s")
    except TimeoutError as error:
        raise TransientError(f"timed out: nothing came for {transfer.TIMEOUT:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"broke off ({error or type(error).__name__})") from error
