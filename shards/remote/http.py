"""One file over HTTP: it goes on where it broke off, and is tried again while the network fails."""

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
from shards.remote.transfer import Answer, BrokenError, repeated, within

BLOCK = 1 << 20
# Answers that may be others in a while; the rest are final.
_PASSING = {408, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
_ADVICE = "check the network and start again: it goes on where it broke off"


def remote_size(url: str) -> int | None:
    """Returns the bytes of a file, or None where the server does not say.

    Raises:
        UserError: it cannot be had.
    """

    def ask() -> int | None:
        with closing(ask_for(url, 0)) as answer:
            return answer.total

    return repeated(url, ask, lambda: 0, _ADVICE)


def fetch(url: str, part: Path, most: int, advance: Callable[[int], None]) -> None:
    """Fetches a file; what `part` already holds is not fetched again if the server can leave it out.

    Args:
        url: of the file.
        part: where it goes. It is kept when this fails, so that the next call goes on there.
        most: bytes that it may have.
        advance: is told of every change of the length of `part`, in bytes.

    Raises:
        UserError: it cannot be had, or is too long.
        OSError: it cannot be written.
    """
    repeated(url, lambda: _fetch_rest(url, part, most, advance), lambda: _length(part), _ADVICE)


def _fetch_rest(url: str, part: Path, most: int, advance: Callable[[int], None]) -> None:
    have = _length(part)
    with closing(ask_for(url, have)) as answer, part.open("ab") as file:
        if (answer.total or 0) > most:
            raise UserError(f"{url} has {answer.total:,} bytes, and at most {most:,} are expected")
        file.truncate(answer.offset)
        advance(answer.offset - have)
        found = answer.offset
        for block in answer.blocks:
            found += len(block)
            if found > most:
                raise UserError(f"{url} sends more than the {most:,} bytes that are expected")
            file.write(block)
            advance(len(block))
    if answer.total is not None and found < answer.total:
        raise BrokenError(f"broke off after {found:,} of {answer.total:,} bytes")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def ask_for(url: str, start: int) -> Answer:
    """Asks for a file from a byte on; a server that cannot do that answers from its first byte on.

    Raises:
        BrokenError: it cannot be had now.
        UserError: it cannot be had.
    """
    try:
        address, credentials = authorization(url)
        headers = {"User-Agent": "cpprune"} | ({"Range": f"bytes={start}-"} if start else {})
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 (by the caller)
        if credentials:  # not for hosts that the server sends us to
            request.add_unredirected_header("Authorization", credentials)
    except ValueError as error:
        raise UserError(f"{url} is no address ({error})") from error
    try:
        response = within(transfer.SILENCE, _open, request)
    except urllib.error.HTTPError as error:
        with closing(error):
            return _refused(url, start, error)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(f"cannot be reached ({error or type(error).__name__})") from error
    if response.status != 206:
        length = response.headers["Content-Length"] or ""
        packed = response.headers["Content-Encoding"] not in (None, "identity")
        total = int(length) if length.isdecimal() and not packed else None
        return Answer(_blocks(response), 0, total, response.close)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
    if span is None or int(span[1]) > start:
        response.close()
        raise BrokenError(f"sends other bytes than those from {start:,} on")
    total = None if span[2] == "*" else int(span[2])
    return Answer(_blocks(response), int(span[1]), total, response.close)


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    response: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310
        request, timeout=transfer.SILENCE
    )
    return response


def _refused(url: str, start: int, error: urllib.error.HTTPError) -> Answer:
    """Says what an answer that is no success means."""
    if error.code == 416 and start:
        # There is nothing from that byte on: the whole file is here, or something else is.
        total = (error.headers["Content-Range"] or "").rpartition("/")[2]
        if total == str(start):
            nothing = io.BytesIO()
            return Answer(iter(()), start, start, nothing.close)
        return ask_for(url, 0)
    if error.code in _PASSING:
        wait = error.headers["Retry-After"] or ""
        seconds = min(float(wait), _LONGEST_WAIT) if wait.isdigit() else 0.0
        raise BrokenError(f"the server says {error.code} {error.reason}", seconds)
    advice = "check the address"
    if error.code in (401, 403):
        advice = "give name and password in the address, or for its host in ~/.netrc (they are not "
        advice += "written down with a run)"
    raise UserError(f"{url}: the server says {error.code} {error.reason}; {advice}")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    began, came = time.monotonic(), 0
    try:
        while block := response.read1(BLOCK):
            yield block
            came += len(block)
            if came >= transfer.LEAST:
                began, came = time.monotonic(), 0
            elif time.monotonic() > began + transfer.SILENCE:
                raise BrokenError(f"timed out: {came} bytes came in {transfer.SILENCE:g} s")
    except TimeoutError as error:
        raise BrokenError(f"timed out: nothing came for {transfer.SILENCE:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(f"broke off ({error or type(error).__name__})") from error
