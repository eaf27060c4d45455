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
from typing import NamedTuple, TypeVar

from shards.errors import InputError

Result = TypeVar("Result")

BLOCK = 1 << 20
# Seconds without a byte after which a try has failed.
TIMEOUT = 60.0
# Seconds before each further try; they begin anew when a try brought something.
PAUSES = (1.0, 4.0, 16.0, 60.0)
# Answers that may be others in a while; the rest are final.
_PASSING = {408, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 300.0


class _BrokenError(Exception):
    """One try failed, and another may not; `wait` is for how long the server wants peace, in s."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Answer(NamedTuple):
    """An open answer, the place of its first byte in the file, and the length of the whole file."""

    response: io.BufferedIOBase
    offset: int
    total: int | None


def remote_size(url: str) -> int | None:
    """Returns the bytes of a file, or None where the server does not say.

    Raises:
        InputError: it cannot be had.
    """

    def ask() -> int | None:
        with closing((answer := _open(url, 0)).response):
            return answer.total

    return _repeated(url, ask, lambda: 0)


def fetch(url: str, part: Path, advance: Callable[[int], None]) -> None:
    """Fetches a file; what `part` already holds is not fetched again if the server can leave it out.

    Args:
        url: of the file.
        part: where it goes. It is kept when this fails, so that the next call goes on there.
        advance: is told of every change of the length of `part`, in bytes.

    Raises:
        InputError: it cannot be had, or not be written.
    """
    _repeated(url, lambda: _fetch_rest(url, part, advance), lambda: _length(part))


def _repeated(url: str, attempt: Callable[[], Result], reached: Callable[[], int]) -> Result:
    furthest, failures = reached(), 0
    while True:
        try:
            return attempt()
        except _BrokenError as error:
            if reached() > furthest:
                furthest, failures = reached(), 0
            if failures == len(PAUSES):
                raise InputError(
                    f"{url}: {error} (tried {failures + 1} times); check the network and start again: "
                    "it goes on where it broke off"
                ) from error
            time.sleep(max(PAUSES[failures], error.wait))
            failures += 1


def _fetch_rest(url: str, part: Path, advance: Callable[[int], None]) -> None:
    have = _length(part)
    answer = _open(url, have)
    with closing(answer.response) as response, part.open("ab") as file:
        file.truncate(answer.offset)
        advance(answer.offset - have)
        for block in _blocks(response):
            file.write(block)
            advance(len(block))
    found = _length(part)
    if answer.total is not None and found < answer.total:
        raise _BrokenError(f"broke off after {found:,} of {answer.total:,} bytes")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _open(url: str, start: int) -> _Answer:
    """Asks for a file from a byte on; the server may answer from an earlier one on."""
    headers = {"User-Agent": "cpprune", "Range": f"bytes={start}-"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked by the caller)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        with closing(error):
            return _refused(url, start, error)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"cannot be reached ({error})") from error
    length = response.headers["Content-Length"]
    if response.status != 206:
        return _Answer(response, 0, int(length) if length else None)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
    if span is None or int(span[1]) > start:
        response.close()
        raise _BrokenError(f"sends other bytes than those from {start:,} on")
    return _Answer(response, int(span[1]), None if span[2] == "*" else int(span[2]))


def _refused(url: str, start: int, error: urllib.error.HTTPError) -> _Answer:
    """Says what an answer that is no success means."""
    if error.code == 416 and start:
        # There is nothing from that byte on: the whole file is here, or something else is.
        total = (error.headers["Content-Range"] or "").rpartition("/")[2]
        if total == str(start):
            return _Answer(io.BytesIO(), start, start)
        return _open(url, 0)
    if error.code in _PASSING:
        wait = error.headers["Retry-After"] or ""
        seconds = min(float(wait), _LONGEST_WAIT) if wait.isdigit() else 0.0
        raise _BrokenError(f"the server says {error.code} {error.reason}", seconds)
    raise InputError(f"{url}: the server says {error.code} {error.reason}; check the address")


def _blocks(response: io.BufferedIOBase) -> Iterator[bytes]:
    try:
        while block := response.read1(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"broke off ({error or type(error).__name__})") from error
